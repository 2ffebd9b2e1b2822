"""Models with known answers: a perfect induction circuit built by hand, and small random ones saved to disk."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from copyscope.interp.models.lens import HAS_HOOKED, HookedTransformer, HookedTransformerConfig

needs_hooked = pytest.mark.skipif(not HAS_HOOKED, reason="TransformerLens 4 has no HookedTransformer")
NO_SPECIAL: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
CODE = 64


def hooked(config: Any) -> HookedTransformer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return HookedTransformer(config).eval().requires_grad_(False)


def induction_model(n_ctx: int = 128, d_vocab: int = 600, copies: float = 1.0) -> HookedTransformer:
    """Two attention-only layers of two heads: (0, 0) looks one back, (1, 0) is an induction head, the rest do nothing.

    The residual stream has three parts: the token's code, the position (one-hot), and the previous token's code, which
    head (0, 0) writes and head (1, 0) matches with the current token. `copies` scales what (1, 0) writes; -1 makes it
    a negative copier. Token 0 serves as BOS.
    """
    if not HAS_HOOKED:
        pytest.skip("TransformerLens 4 has no HookedTransformer to build by hand")
    d_model = CODE + n_ctx + CODE
    config = HookedTransformerConfig(
        n_layers=2,
        n_heads=2,
        d_model=d_model,
        d_head=n_ctx,
        d_vocab=d_vocab,
        n_ctx=n_ctx,
        attn_only=True,
        normalization_type=None,
        positional_embedding_type="standard",
        use_attn_scale=False,
        device="cpu",
        seed=0,
    )
    model = hooked(config)
    generator = torch.Generator().manual_seed(0)
    code = torch.randn(d_vocab, CODE, generator=generator)
    # As many tokens as dimensions can be told apart without any overlap.
    code = torch.linalg.qr(code.T)[0].T if d_vocab <= CODE else code / code.norm(dim=1, keepdim=True)
    token, place, before = slice(0, CODE), slice(CODE, CODE + n_ctx), slice(CODE + n_ctx, d_model)
    for parameter in model.parameters():
        parameter.zero_()
    model.embed.W_E[:, token] = code
    model.pos_embed.W_pos[:, place] = torch.eye(n_ctx)
    model.unembed.W_U[token] = code.T
    looks_back, inducts = model.blocks[0].attn, model.blocks[1].attn
    looks_back.W_Q[0, place] = 100 * torch.eye(n_ctx).roll(-1, dims=1).tril(-1)  # position i asks for i - 1
    looks_back.W_K[0, place] = torch.eye(n_ctx)
    looks_back.W_V[0, token, :CODE] = torch.eye(CODE)
    looks_back.W_O[0, :CODE, before] = torch.eye(CODE)
    inducts.W_Q[0, token, :CODE] = 100 * torch.eye(CODE)
    inducts.W_K[0, before, :CODE] = torch.eye(CODE)
    inducts.W_V[0, token, :CODE] = torch.eye(CODE)
    inducts.W_O[0, :CODE, token] = copies * 20 * torch.eye(CODE)
    return model


def llama(seed: int = 0, spread: float = 0.1, **changes: object) -> LlamaForCausalLM:
    """A tiny Llama with norm weights away from 1, so that ignoring them would show."""
    fields: dict[str, Any] = {
        "vocab_size": 90,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        **NO_SPECIAL,
        **changes,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**fields)).eval()
    jitter(model, spread)
    return model


def jitter(model: torch.nn.Module, spread: float = 0.1) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)


def saved(model: PreTrainedModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory
