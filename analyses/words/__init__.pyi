from .glossary import MEASURES as MEASURES
from .glossary import describe as describe
from .text import visible as visible
