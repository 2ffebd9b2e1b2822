"""What the installed TransformerLens has: 3.9 both `HookedTransformer` and `TransformerBridge`, 4 the bridge only."""

import importlib.util
from typing import TYPE_CHECKING, Any

from transformer_lens.model_bridge import TransformerBridge

HAS_HOOKED = importlib.util.find_spec("transformer_lens.HookedTransformer") is not None
"""Whether models can load as a `HookedTransformer`; without, every model loads as a bridge."""

if TYPE_CHECKING or HAS_HOOKED:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
else:

    class HookedTransformer:
        """Stands in for the class that TransformerLens 4 no longer has: no model is one."""

    HookedTransformerConfig: Any = None

HookedModel = HookedTransformer | TransformerBridge
"""What measures accept: a `HookedTransformer`, or a `TransformerBridge` in compatibility mode."""

__all__ = ["HAS_HOOKED", "HookedModel", "HookedTransformer", "HookedTransformerConfig", "TransformerBridge"]
