from .generate import CopyingTest as CopyingTest
from .generate import copying_test as copying_test
from .generate import fitting_length as fitting_length
from .generate import natural_windows as natural_windows
from .generate import random_token_vocab as random_token_vocab
from .generate import repeated_random_tokens as repeated_random_tokens
from .of_model import bos_id as bos_id
from .packing import pack as pack
