"""The converter of docs/series.md on a model with nanoGPT's names and layout, against nanoGPT's own arithmetic."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from run_command import copyscope
from torch import Tensor
from torch.nn import functional

from copyscope.interp.models.hooked import load_hooked

DOCS = Path(__file__).parents[2] / "docs" / "series.md"
SIZE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 64, "vocab_size": 90, "dropout": 0.0}


def nano_weights(bias: bool) -> dict[str, Tensor]:
    """Random weights as nanoGPT's `GPT` names and shapes them (Linear layers: out × in)."""
    draw, d = torch.Generator().manual_seed(0), SIZE["n_embd"]
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (90, 16), "transformer.wpe.weight": (64, 16)}
    for block in ("transformer.h.0.", "transformer.h.1."):
        shapes |= {block + "ln_1.weight": (d,), block + "ln_2.weight": (d,)}
        linear = {"attn.c_attn": (3 * d, d), "attn.c_proj": (d, d), "mlp.c_fc": (4 * d, d), "mlp.c_proj": (d, 4 * d)}
        shapes |= {f"{block}{name}.weight": shape for name, shape in linear.items()}
        if bias:
            shapes |= {f"{block}{name}.bias": (shape[0],) for name, shape in linear.items()}
            shapes |= {block + "ln_1.bias": (d,), block + "ln_2.bias": (d,)}
    shapes["transformer.ln_f.weight"] = (d,)
    if bias:
        shapes["transformer.ln_f.bias"] = (d,)
    weights = {name: torch.randn(shape, generator=draw) * 0.3 for name, shape in shapes.items()}
    return weights | {"lm_head.weight": weights["transformer.wte.weight"]}


def nano_logits(w: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """nanoGPT's forward pass, written out."""

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w.get(f"{name}.bias"), 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    n = tokens.shape[1]
    x = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][:n]
    for block in ("transformer.h.0", "transformer.h.1"):
        q, k, v = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").split(16, dim=2)
        q, k, v = (part.view(-1, n, 2, 8).transpose(1, 2) for part in (q, k, v))
        z = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + linear(z, f"{block}.attn.c_proj")
        x = x + linear(functional.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")), f"{block}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ w["lm_head.weight"].T


def run_docs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The page's Python blocks, one after the other, in `folder`."""
    script = folder / "blocks.py"
    script.write_text("\n".join(re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)))
    monkeypatch.chdir(folder)
    return runpy.run_path(str(script))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_converted_checkpoint_has_nanogpts_logits(
    bias: bool, compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = nano_weights(bias)
    named = {f"_orig_mod.{name}" if compiled else name: tensor for name, tensor in weights.items()}
    (tmp_path / "out").mkdir()
    state = {"model": named, "model_args": SIZE | {"bias": bias}, "iter_num": 250, "optimizer": {}, "config": {}}
    torch.save(state, tmp_path / "out" / "ckpt.pt")  # what nanoGPT does; copyscope never reads it
    run_docs(tmp_path, monkeypatch)
    tokens = torch.randint(0, 90, (2, 40), generator=torch.Generator().manual_seed(1))
    model = load_hooked(tmp_path / "nano" / "step250")  # with the logits proved equal to transformers'
    assert torch.allclose(model(tokens), nano_logits(weights, tokens), atol=1e-4)


@pytest.mark.parametrize("given", ["out", "out/ckpt.pt"])
@pytest.mark.parametrize("command", ["score", "verify", "ablate", "map", "report"])
def test_a_pickle_is_refused_with_what_to_do(
    given: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ckpt.pt").write_bytes(b"never opened")
    assert copyscope(monkeypatch, command, str(tmp_path / given)) == 2
    error = capsys.readouterr().err
    assert "ckpt.pt is a pickle, which is never opened" in error
    assert "docs/series.md" in error
    assert len(error.splitlines()) == 1
