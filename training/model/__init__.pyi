from .interventions import Intervention as Intervention
from .interventions import active as active
from .interventions import predictable as predictable
from .llama import build_model as build_model
from .loss import NextTokenLoss as NextTokenLoss
from .machine import fast_bf16 as fast_bf16
from .machine import keep_freed_memory as keep_freed_memory
