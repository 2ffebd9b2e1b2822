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

    The residual stream has three parts: the token's code, the previous token's code, which head (0, 0) writes and head
    (1, 0) matches with the current token, and the position (one-hot). `copies` scales what (1, 0) writes; -1 makes it a
    negative copier. Token 0 serves as BOS.
    """
    model = _attention_only(2, n_ctx, d_vocab, parts=2)
    token, place, before = slice(0, CODE), slice(-n_ctx, None), slice(CODE, 2 * CODE)
    _looks_back(model, (0, 0), 1, place, token, before)
    inducts = model.blocks[1].attn
    inducts.W_Q[0, token, :CODE] = 100 * torch.eye(CODE)
    inducts.W_K[0, before, :CODE] = torch.eye(CODE)
    inducts.W_V[0, token, :CODE] = torch.eye(CODE)
    inducts.W_O[0, :CODE, token] = copies * 20 * torch.eye(CODE)
    return model


def ahead_model(n_ctx: int = 64, d_vocab: int = 600) -> HookedTransformer:
    """Three attention-only layers of two heads that name a token one position late: (0, 0) looks two back, (1, 0) finds
    the place two after the current token's earlier copy and notes what stands there, (2, 0) fetches the note of one
    position back and names it; the rest do nothing. Token 0 serves as BOS."""
    model = _attention_only(3, n_ctx, d_vocab, parts=3)
    token, before, note = (slice(CODE * i, CODE * (i + 1)) for i in range(3))
    place = slice(-n_ctx, None)
    _looks_back(model, (0, 0), 2, place, token, before)
    finds = model.blocks[1].attn
    finds.W_Q[0, token, :CODE] = 100 * torch.eye(CODE)
    finds.W_K[0, before, :CODE] = torch.eye(CODE)
    finds.W_V[0, token, :CODE] = torch.eye(CODE)
    finds.W_O[0, :CODE, note] = torch.eye(CODE)
    _looks_back(model, (2, 0), 1, place, note, token, 20)
    return model


def _attention_only(n_layers: int, n_ctx: int, d_vocab: int, parts: int) -> HookedTransformer:
    """A model whose residual stream has so many parts for codes of tokens, the current token's first, and then the
    position (one-hot); its heads do nothing, and the unembedding reads the first part."""
    if not HAS_HOOKED:
        pytest.skip("TransformerLens 4 has no HookedTransformer to build by hand")
    config = HookedTransformerConfig(
        n_layers=n_layers,
        n_heads=2,
        d_model=CODE * parts + n_ctx,
        d_head=max(CODE, n_ctx),
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
    for parameter in model.parameters():
        parameter.zero_()
    model.embed.W_E[:, :CODE] = code
    model.pos_embed.W_pos[:, -n_ctx:] = torch.eye(n_ctx)
    model.unembed.W_U[:CODE] = code.T
    return model


def _looks_back(
    model: Any, head: tuple[int, int], far: int, place: slice, read: slice, write: slice, times: float = 1.0
) -> None:
    """Makes a head copy the part `read` from `far` positions back to the part `write`."""
    attention, number = model.blocks[head[0]].attn, head[1]
    n_ctx = model.cfg.n_ctx
    attention.W_Q[number, place, :n_ctx] = 100 * torch.eye(n_ctx).roll(-far, dims=1).tril(-far)
    attention.W_K[number, place, :n_ctx] = torch.eye(n_ctx)
    attention.W_V[number, read, :CODE] = torch.eye(CODE)
    attention.W_O[number, :CODE, write] = times * torch.eye(CODE)


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
