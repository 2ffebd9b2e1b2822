"""Scoring heads against the usual ways, side by side in one run: `make bench`.

One model (12 layers of 12 heads, 162 M random weights) on prompts of 1,023 tokens, and a series of 30 checkpoints of
the quickstart model. The usual way runs the model with a cache of all layers and takes the measures from the patterns
with einops; TransformerLens' `detect_head` does the same for its three detection patterns, one prompt at a time. Each
way has a process of its own and they take turns; values of ours and the usual way must agree to 1e-5. Seconds are those
of the processor, summed over threads.

Then everything that `copyscope score` computes of one more checkpoint, part by part, against the usual way to compute
the same: a new model, a cache, one prompt a sample, TransformerLens' own eigenvalues and composition scores. Last, the
command with one process and with two (`python tests/benchmarks/score_speed.py scaling` does that alone).
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from einops import einsum
from torch import Tensor
from transformer_lens import HookedTransformer

from copyscope.interp.forward.residual import token_losses
from copyscope.interp.measures.behavior import copying_hits
from copyscope.interp.measures.circuits import composition_table, head_weights, model_eigenvalue_positivity
from copyscope.interp.measures.pattern_scores import pattern_scores
from copyscope.interp.models.hooked import load_hooked, load_weights_into
from copyscope.interp.prompts.generate import SUFFIX, CopyingTest, copying_test, repeated_random_tokens
from copyscope.training.config import RunConfig
from copyscope.training.engines.child import usable_cores
from copyscope.training.model.llama import build_model

MEASURES = ("induction_attention", "previous_token", "duplicate_token")
CHECKPOINTS = 30
SHARED = 12
"""Checkpoints that two processes share."""
ROUNDS = 2


def prompts_for(model: HookedTransformer, n_prompts: int) -> Tensor:
    """As long as the context allows."""
    vocab = torch.arange(10, model.cfg.d_vocab)
    return repeated_random_tokens(vocab, (model.cfg.n_ctx - 1) // 2, n_prompts, 0, 0, 2)


def ours(model: HookedTransformer, prompts: Tensor) -> dict[str, Tensor]:
    scores = pattern_scores(model, prompts, MEASURES, (), (), range(model.cfg.n_layers), 0)
    return {name: scores[name].float() for name in MEASURES}


def usual(model: HookedTransformer, prompts: Tensor) -> dict[str, Tensor]:
    """What everyone writes: a cache of everything, then diagonals of the patterns."""
    half = prompts.shape[1] // 2
    found: dict[str, list[Tensor]] = {name: [] for name in MEASURES}
    with torch.no_grad():
        _, cache = model.run_with_cache(prompts)
    for layer in range(model.cfg.n_layers):
        pattern = cache["pattern", layer]
        for name, offset in (("induction_attention", 1 - half), ("previous_token", -1), ("duplicate_token", -half)):
            diagonal = pattern.diagonal(offset, dim1=-2, dim2=-1)
            # Queries of the second half only, which begins after a BOS and the first half.
            diagonal = diagonal[..., {"induction_attention": 2, "duplicate_token": 1}.get(name, 0) :]
            ones = diagonal.new_ones(diagonal.shape[0], diagonal.shape[-1]) / diagonal[:, 0].numel()
            found[name].append(einsum(diagonal, ones, "batch head pos, batch pos -> head"))
    return {name: torch.stack(values) for name, values in found.items()}


def detect(model: HookedTransformer, prompts: Tensor) -> dict[str, Tensor]:
    from transformer_lens.head_detector import detect_head

    model.to_tokens = lambda seq, **_: seq  # type: ignore[method-assign] # it takes text; we have tokens
    names = {
        "induction_head": "induction_attention",
        "previous_token_head": "previous_token",
        "duplicate_token_head": "duplicate_token",
    }
    found: dict[str, Tensor] = {}
    for pattern, name in names.items():
        with torch.no_grad():
            found[name] = torch.stack([detect_head(model, row[None], pattern) for row in prompts]).mean(dim=0)  # type: ignore[arg-type]
    return found


WAYS: dict[str, Callable[[HookedTransformer, Tensor], dict[str, Tensor]]] = {
    "copyscope": ours,
    "run_with_cache": usual,
    "detect_head": detect,
}


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(way: str, folder: Path) -> None:
    """One way: loads, then runs once for each line on standard input."""
    warnings.simplefilter("ignore")
    series = sorted(folder.glob("step*"))
    model: Any = load_hooked(series[0], prove=False)
    prompts = prompts_for(model, 2 if len(series) == 1 else 16)
    before = megabytes()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        started = time.process_time()
        for i, path in enumerate(series):
            if i and way == "copyscope":
                load_weights_into(model, path)
            elif i:
                model: Any = load_hooked(path, prove=False)
            scores = WAYS[way](model, prompts)
        seconds = time.process_time() - started
        values = {name: table.flatten().tolist() for name, table in scores.items()}
        print(json.dumps({"seconds": seconds, "megabytes": megabytes() - before, "values": values}), flush=True)


def compare(title: str, folder: Path, ways: tuple[str, ...]) -> None:
    processes = {
        way: subprocess.Popen(
            [sys.executable, __file__, way, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for way in ways
    }

    def hear(way: str) -> dict[str, Any]:
        stream = processes[way].stdout
        assert stream is not None
        for line in stream:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{way} ended early")

    for way in ways:
        hear(way)
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way in ways:
            stream = processes[way].stdin
            assert stream is not None
            stream.write("go\n")
            stream.flush()
            results[way].append(hear(way))
    for process in processes.values():
        process.communicate()
    print(f"\n{title}, {torch.get_num_threads()} threads, median of {ROUNDS} rounds")
    print(f"{'':16} {'seconds':>8} {'ratio':>6} {'MB beyond loading':>20} {'largest difference':>19}")
    seconds = {way: statistics.median(r["seconds"] for r in rows) for way, rows in results.items()}
    for way, rows in results.items():
        values, wanted = rows[-1]["values"], results["copyscope"][-1]["values"]
        apart = max(abs(a - b) for name in MEASURES for a, b in zip(values[name], wanted[name], strict=True))
        difference = "own definitions" if way == "detect_head" else f"{apart:.1e}"
        print(
            f"{way:16} {seconds[way]:8.2f} {seconds[way] / seconds['copyscope']:6.1f} "
            f"{rows[-1]['megabytes']:20,.0f} {difference:>19}"
        )
        if way == "run_with_cache" and apart > 1e-5:
            raise SystemExit("the two ways do not agree")


def save_models(config: RunConfig, folder: Path, n: int) -> Path:
    for step in range(n):
        model = build_model(config.with_values({"seeds.init": step}), config.data.vocab_size)
        model.save_pretrained(folder / f"step{step:08d}")
    return folder


def loading(folder: Path) -> None:
    """What it costs to load one more checkpoint of a series."""
    paths = sorted(folder.glob("step*"))
    model: Any = load_hooked(paths[0], prove=False)

    def seconds(load: Callable[[Path], object]) -> float:
        times = []
        for path in paths[1:]:
            started = time.perf_counter()
            load(path)
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    read = seconds(lambda path: (path / "model.safetensors").read_bytes())
    place = seconds(lambda path: load_weights_into(model, path))
    anew = seconds(lambda path: load_hooked(path, prove=False))
    proven = seconds(lambda path: load_hooked(path))
    print(f"\none more checkpoint of {folder.name}, ms (ratio to loading in place)")
    for what, value in (("reading the file", read), ("in place", place), ("anew", anew), ("anew, proven", proven)):
        print(f"{what:18} {1000 * value:8.1f} {value / place:7.2f}")


def slow_losses(model: HookedTransformer, tokens: Tensor, batch: int = 16) -> Tensor:
    return torch.cat([model(some, return_type="loss", loss_per_token=True) for some in tokens.split(batch)])


def slow_hits(model: HookedTransformer, test: CopyingTest, batch: int = 16) -> Tensor:
    full = torch.cat([test.tokens, test.suffix[:, :-1]], dim=1)
    best = [model(some)[:, -SUFFIX:].argmax(dim=-1) for some in full.split(batch)]
    return (torch.cat(best) == test.suffix).double()


def slow_positivity(model: HookedTransformer) -> Tensor:
    found = []
    for layer in range(model.cfg.n_layers):
        whole = model.W_E @ model.OV[layer] @ model.W_U  # a FactoredMatrix: eigenvalues of d_head × d_head
        values = whole.eigenvalues
        found.append(values.real.sum(dim=-1) / values.abs().sum(dim=-1))
    return torch.stack(found)


def slow_composition(model: HookedTransformer) -> Tensor:
    n = model.cfg.n_heads
    table = model.all_composition_scores("K")  # (layer, head, layer, head), 0 unless the second layer is later
    pairs = [table[a, :, a + 1 :].reshape(n, -1) for a in range(model.cfg.n_layers - 1)]
    return torch.cat([p.flatten() for p in pairs])


@torch.no_grad()
def whole_score(folder: Path, n: int = 3) -> None:
    """Everything of a checkpoint, in the proportions of `copyscope score`."""
    paths = sorted(folder.glob("step*"))[: n + 1]
    model: Any = load_hooked(paths[0], prove=False)
    vocab = range(10, model.cfg.d_vocab)
    test = copying_test(vocab, model.cfg.n_ctx, 500, 0, 0)
    repeated = repeated_random_tokens(vocab, 100, 32, 0, 0)
    windows = torch.randint(1, model.cfg.d_vocab, (64, model.cfg.n_ctx), generator=torch.Generator().manual_seed(0))
    prompts = prompts_for(model, 16)
    fast: dict[str, Callable[[], Tensor]] = {
        "attention": lambda: torch.stack(list(ours(model, prompts).values())),
        "copying accuracy": lambda: copying_hits(model, test).forced.double(),
        "copying loss": lambda: token_losses(model, repeated),
        "natural loss": lambda: token_losses(model, windows),
        "eigenvalue positivity": lambda: model_eigenvalue_positivity(head_weights(model), folded=False),
        "K-composition": lambda: composition_table(model, folded=False)["value"].to_torch(),
    }
    slow: dict[str, Callable[[], Tensor]] = {
        "attention": lambda: torch.stack(list(usual(model, prompts).values())),
        "copying accuracy": lambda: slow_hits(model, test),
        "copying loss": lambda: slow_losses(model, repeated),
        "natural loss": lambda: slow_losses(model, windows),
        "eigenvalue positivity": lambda: slow_positivity(model),
        "K-composition": lambda: slow_composition(model).double(),
    }
    seconds: dict[tuple[str, str], list[float]] = {}

    def timed(way: str, part: str, run: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = run()
        seconds.setdefault((way, part), []).append(time.process_time() - started)
        return result

    for path in paths[1:]:
        timed("usual", "loading", lambda path=path: load_hooked(path, prove=False))
        timed("ours", "loading", lambda path=path: load_weights_into(model, path))
        for part in fast:
            apart = (timed("ours", part, fast[part]) - timed("usual", part, slow[part])).abs().max().item()
            if apart > (1e-4 if "K-" in part or "eigen" in part else 1e-5):
                raise SystemExit(f"{part}: the two ways differ by {apart:.1e}")
    print(f"\neverything of one more checkpoint of {folder.name}, processor seconds, median of {n}")
    print(f"{'':22} {'ours':>7} {'usual':>7} {'ratio':>6}")
    total = {"ours": 0.0, "usual": 0.0}
    for part in ("loading", *fast):
        mine, theirs = (statistics.median(seconds[way, part]) for way in ("ours", "usual"))
        total = {"ours": total["ours"] + mine, "usual": total["usual"] + theirs}
        print(f"{part:22} {mine:7.3f} {theirs:7.3f} {theirs / mine:6.1f}")
    print(f"{'all':22} {total['ours']:7.3f} {total['usual']:7.3f} {total['usual'] / total['ours']:6.1f}")


def growth() -> None:
    """Seconds and MB of scoring one prompt set, along one size at a time."""
    base = {"model.n_layers": 4, "model.n_heads": 4, "model.d_model": 256, "model.d_head": 64, "model.n_ctx": 256}
    print(f"\n{'layers':>7} {'heads':>6} {'context':>8} {'seconds':>8}")
    for change in (
        *({"model.n_layers": n} for n in (2, 4, 8, 16)),
        *({"model.n_heads": n} for n in (2, 8, 16)),
        *({"model.n_ctx": n} for n in (128, 512, 1024)),
    ):
        values = base | change
        with tempfile.TemporaryDirectory() as folder:
            config = RunConfig.load("quickstart").with_values({**values, "data.vocab_size": 1024})
            model: Any = load_hooked(save_models(config, Path(folder), 1) / "step00000000", prove=False)
        prompts = prompts_for(model, 4)
        times = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            ours(model, prompts)
            times.append(time.perf_counter() - started)
        sizes = (values[f"model.{name}"] for name in ("n_layers", "n_heads", "n_ctx"))
        print("{:7} {:6} {:8} {:8.3f}".format(*sizes, statistics.median(times)))


def scaling(folder: Path) -> None:
    """`copyscope score` of a small series by one process and by two, from the start of the command to its end; each
    process that is started loads the libraries."""
    print(f"\ncopyscope score of {SHARED} checkpoints of {folder.name}, {usable_cores()} cores, wall seconds")
    alone = 0.0
    for jobs in (1, 2):
        with tempfile.TemporaryDirectory() as temp:
            series = Path(temp) / "series"
            series.mkdir()
            for path in sorted(folder.glob("step*"))[:SHARED]:
                (series / path.name).symlink_to(path)
            started = time.perf_counter()
            command = [sys.executable, "-m", "copyscope", "score", str(series), "--jobs", str(jobs), "--quiet"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - started
        alone = alone or seconds
        print(f"--jobs {jobs} {seconds:7.1f} {alone / seconds:6.2f} times as fast")


def main() -> None:
    if sys.argv[1:] == ["scaling"]:
        with tempfile.TemporaryDirectory() as temp:
            scaling(save_models(RunConfig.load("quickstart"), Path(temp) / "quickstart", SHARED))
        return
    if len(sys.argv) > 1:
        child(sys.argv[1], Path(sys.argv[2]))
        return
    quickstart, paper = RunConfig.load("quickstart"), RunConfig.load("paper")
    with tempfile.TemporaryDirectory() as temp:
        one = save_models(paper, Path(temp) / "paper", 1)
        compare("12 layers, 12 heads, 2 prompts of 1,023 tokens", one, tuple(WAYS))
    with tempfile.TemporaryDirectory() as temp:
        many = save_models(quickstart, Path(temp) / "quickstart", CHECKPOINTS)
        compare(
            f"{CHECKPOINTS} checkpoints of the quickstart model, 16 prompts of 255",
            many,
            ("copyscope", "run_with_cache"),
        )
        loading(many)
        whole_score(many)
        scaling(many)
    growth()


if __name__ == "__main__":
    main()
