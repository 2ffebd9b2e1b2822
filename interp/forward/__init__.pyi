from .layers import can_run as can_run
from .layers import run_layers as run_layers
from .residual import final_residual as final_residual
from .residual import logits_of as logits_of
from .residual import token_losses as token_losses
