from .evidence import Evidence as Evidence
from .evidence import gather as gather
from .judge import Claims as Claims
from .judge import claims as claims
from .page import write_claims as write_claims
from .verdict import Verdict as Verdict
