from .driver import Outcome as Outcome
from .driver import outcomes as outcomes
from .driver import run_sweep as run_sweep
from .plan import Sweep as Sweep
from .plan import load_sweep as load_sweep
from .plan import parse_sweep as parse_sweep
from .worker import as_child as as_child
