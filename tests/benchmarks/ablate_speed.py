"""The sweep over all heads against the plain loop, side by side in one run: `ablate_speed.py [quickstart|12x12]`.

The plain loop is what everybody writes: for each head one forward pass over the whole prompts with `run_with_hooks`,
in batches. Both measure copying accuracy, copying loss and natural-text loss with heads zeroed, on the same prompts (in
the proportions of `copyscope ablate`) and a model of random weights; effects must agree to 1e-5. The two take turns: in
each round the sweep does all heads and the plain loop a few, whose median time counts for every head. Also printed:
peak memory of each way (in a process of its own), and how the time compares with what the matrix products that no exact
sweep can leave out would take at this machine's best.
"""

import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from copyscope.interp.ablation.hooks import sweep_heads
from copyscope.interp.prompts.generate import SUFFIX, CopyingTest, copying_test, repeated_random_tokens

ROUNDS = 3


class Size(NamedTuple):
    fields: dict[str, Any]
    samples: int
    prompts: int
    windows: int
    plain_heads: int
    """Heads that a round of the plain loop does."""


SIZES = {
    "quickstart": Size(
        {"n_layers": 4, "n_heads": 4, "d_model": 128, "d_head": 64, "d_mlp": 320, "n_ctx": 256, "d_vocab": 1024},
        63,
        4,
        2,
        3,
    ),
    "12x12": Size(
        {"n_layers": 12, "n_heads": 12, "d_model": 192, "d_head": 16, "d_mlp": 512, "n_ctx": 256, "d_vocab": 2048},
        9,
        1,
        1,
        3,
    ),
}


class Setting(NamedTuple):
    model: HookedTransformer
    test: CopyingTest
    repeated: torch.Tensor
    windows: torch.Tensor


def setting(size: Size) -> Setting:
    f = size.fields
    config = HookedTransformerConfig(
        **f,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=f["d_head"],
        rotary_adjacent_pairs=False,
        final_rms=True,
        device="cpu",
        seed=0,
        original_architecture="LlamaForCausalLM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = HookedTransformer(config).eval().requires_grad_(False)
    vocab = range(1, f["d_vocab"])
    windows = torch.randint(1, f["d_vocab"], (size.windows, f["n_ctx"]), generator=torch.Generator().manual_seed(1))
    test = copying_test(vocab, f["n_ctx"], size.samples, 0, 0)
    length = min(100, (f["n_ctx"] - 1) // 2)
    return Setting(model, test, repeated_random_tokens(vocab, length, size.prompts, 0, 0), windows)


@torch.no_grad()
def plain(s: Setting, head: tuple[int, int] | None, batch: int = 16) -> dict[str, float]:
    """One hooked forward pass over all prompts, as in TransformerLens' own tutorials."""

    def zero(z: torch.Tensor, hook: Any) -> torch.Tensor:
        if head:
            z[:, :, head[1]] = 0.0
        return z

    hooks: list[Any] = [(f"blocks.{head[0] if head else 0}.attn.hook_z", zero)]
    hits, result = [], {}
    full = torch.cat([s.test.tokens, s.test.suffix[:, :-1]], dim=1)
    for some, suffix in zip(full.split(batch), s.test.suffix.split(batch), strict=True):
        logits = s.model.run_with_hooks(some, fwd_hooks=hooks)
        hits.append(logits[:, -SUFFIX:].argmax(dim=-1) == suffix)
    hit = torch.cat(hits)
    result["copying_accuracy_exact"] = hit.all(dim=1).double().mean().item()
    result["copying_accuracy_token"] = hit.double().mean().item()
    for name, tokens, last in (
        ("copying_loss", s.repeated, s.repeated.shape[1] // 2),
        ("natural_loss", s.windows, s.windows.shape[1] - 1),
    ):
        losses = [
            s.model.run_with_hooks(some, return_type="loss", loss_per_token=True, fwd_hooks=hooks)[:, -last:]
            for some in tokens.split(batch)
        ]
        result[name] = torch.cat(losses).double().mean().item()
    return result


def sweep(s: Setting) -> dict[tuple[int, int, str], float]:
    table = sweep_heads(s.model, s.test, ("zero",), repeated=s.repeated, windows=s.windows)
    return {(r["layer"], r["head"], r["measure"]): r["value"] for r in table.iter_rows(named=True)}


def unavoidable_flops(s: Setting) -> float:
    """Floating-point operations of the products that no exact sweep can leave out: every layer after the ablated one,
    for every prompt (shared contexts once), in the last layer only for the rows that are read."""
    c = s.model.cfg
    width, d_mlp = c.n_heads * c.d_head, c.d_mlp or 0
    context = s.test.tokens.shape[1] - 12
    asked = torch.bincount(s.test.context)
    half = s.repeated.shape[1] // 2
    total = 0.0
    rows = [(context, context + 17 * int(a), SUFFIX * int(a)) for a in asked]
    rows += [(s.repeated.shape[1],) * 2 + (half,)] * len(s.repeated)
    rows += [(s.windows.shape[1],) * 2 + (s.windows.shape[1] - 1,)] * len(s.windows)
    for first, pos, read in rows:
        mlp, o = 6 * c.d_model * d_mlp, 2 * width * c.d_model
        qkv, mix = 6 * c.d_model * width, 4 * width * (first * first / 2 + (pos - first) * (first + 9))
        whole = pos * (mlp + o + qkv) + mix
        last = pos * qkv * 2 / 3 + read * (mlp + o + qkv / 3) + 4 * width * read * first
        logits = read * 2 * c.d_model * c.d_vocab
        for layer in range(c.n_layers):
            later = c.n_layers - 1 - layer
            own = (pos if later else read) * mlp
            total += c.n_heads * (own + max(0, later - 1) * whole + (last if later else 0.0) + logits)
    return total


def peak_flops() -> float:
    a, best = torch.randn(2048, 2048), 0.0
    for _ in range(20):
        started = time.perf_counter()
        torch.mm(a, a)
        best = max(best, 2 * 2048**3 / (time.perf_counter() - started))
    return best


def peak_memory(name: str, way: str) -> float:
    """Megabytes above what the model and the prompts take, in a process of its own."""
    program = [sys.executable, __file__, name, way]
    return json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def alone(name: str, way: str) -> None:
    s = setting(SIZES[name])
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts again from here
    before = resident("VmRSS")
    if way == "plain":
        plain(s, (0, 0))
    else:
        sweep(s)
    print(json.dumps(resident("VmHWM") - before))


def resident(field: str) -> float:
    """Megabytes of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def compare(name: str) -> None:
    size = SIZES[name]
    s = setting(size)
    c = s.model.cfg
    heads = [(layer, head) for layer in range(c.n_layers) for head in range(c.n_heads)]
    # The plain loop's heads are spread over the layers; a forward pass costs the same for all of them.
    order = [heads[i * len(heads) // (ROUNDS * size.plain_heads)] for i in range(ROUNDS * size.plain_heads)]
    clean = plain(s, None)
    fast_seconds, plain_seconds, worst = [], [], 0.0
    for number in range(ROUNDS):
        started = time.perf_counter()
        fast = sweep(s)
        fast_seconds.append(time.perf_counter() - started)
        for head in order[number * size.plain_heads : (number + 1) * size.plain_heads]:
            started = time.perf_counter()
            slow = plain(s, head)
            plain_seconds.append(time.perf_counter() - started)
            worst = max(worst, *(abs(fast[(*head, m)] - (slow[m] - clean[m])) for m in slow))
    sweep_time, loop_time = statistics.median(fast_seconds), statistics.median(plain_seconds) * len(heads)
    bound = unavoidable_flops(s) / peak_flops()
    print(
        f"\n{name}: {len(heads)} heads, {len(s.test.tokens)} copying samples, {len(s.repeated)} repeated prompts, "
        f"{len(s.windows)} windows, n_ctx {c.n_ctx}, {torch.get_num_threads()} threads"
    )
    print(f"{'':12} {'seconds':>8} {'MB':>6}")
    print(f"{'plain loop':12} {loop_time:8.1f} {peak_memory(name, 'plain'):6.0f}")
    print(f"{'sweep_heads':12} {sweep_time:8.1f} {peak_memory(name, 'sweep'):6.0f}")
    print(
        f"{loop_time / sweep_time:.1f} times faster; largest difference of effects {worst:.1e}; "
        f"{sweep_time / bound:.1f} times what the unavoidable products take at their best"
    )


def main() -> None:
    if len(sys.argv) == 3:
        alone(*sys.argv[1:])
        return
    for name in sys.argv[1:] or SIZES:
        compare(name)


if __name__ == "__main__":
    main()
