from .answers import TaskResult as TaskResult
from .answers import ask as ask
from .questions import Source as Source
from .registry import TASKS as TASKS
from .registry import draw_tasks as draw_tasks
from .registry import run_tasks as run_tasks
