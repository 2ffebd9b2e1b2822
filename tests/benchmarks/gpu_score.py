"""Scoring and ablating the paper's 12-layer model (162 M random weights) on a GPU: `gpu_score.py [--out FILE]`.

Side by side in one run: ours in float32 and bfloat16 on the GPU, ours on one core (a part of the prompts, like for
like), `run_with_cache` and a hooked forward pass a head on the same GPU, and the time that the products no exact way
can leave out take at the rate this GPU reaches in a large product. Last, a series of checkpoints by `copyscope score`.
Each line is printed, and written to FILE as JSON, once it is known. `--tiny`: a small model, on the CPU if need be.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ablate_speed import Setting, plain, unavoidable_flops
from score_speed import MEASURES, ours, prompts_for, usual
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import copyscope as cs
from copyscope.interp.ablation.hooks import sweep_heads
from copyscope.interp.measures.behavior import copying_accuracy, copying_loss, icl_score, natural_losses
from copyscope.interp.measures.heads import score_heads
from copyscope.interp.models.hooked import load_hooked, load_weights_into
from copyscope.interp.prompts.generate import CopyingTest, copying_test, repeated_random_tokens
from copyscope.training.devices import device_named

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Bench:
    def __init__(self, tiny: bool, out: Path | None) -> None:
        self.out, self.device = out, device_named("auto")
        self.name = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        self.config = LlamaConfig(
            num_hidden_layers=2 if tiny else 12,
            num_attention_heads=2 if tiny else 12,
            hidden_size=32 if tiny else 768,
            intermediate_size=64 if tiny else 3072,
            vocab_size=500 if tiny else 32000,
            max_position_embeddings=256 if tiny else 1024,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        few = 10 if tiny else 500
        self.vocab = torch.arange(10, self.config.vocab_size)
        n_ctx = self.config.max_position_embeddings
        self.test = copying_test(self.vocab, n_ctx, few, 0, 0)
        self.repeated = repeated_random_tokens(self.vocab, 100, 4 if tiny else 32, 0, 0)
        generator = torch.Generator().manual_seed(1)
        self.text = torch.randint(10, self.config.vocab_size, (4 if tiny else 64, n_ctx - 1), generator=generator)

    def say(self, what: str, **values: Any) -> None:
        print(
            f"{what}: " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        )
        sys.stdout.flush()
        if self.out:
            with self.out.open("a") as stream:
                stream.write(json.dumps({"what": what, "device": self.name, **values}) + "\n")

    def seconds(self, work: Callable[[], object], times: int = 2) -> float:
        """Of the last of so many; those before warm up."""
        for _ in range(times):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
        return time.perf_counter() - started

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def rate(self, dtype: torch.dtype) -> float:
        """Operations a second of a large product."""
        n = 8192 if self.device.type == "cuda" else 1024
        a, b = (torch.randn(n, n, device=self.device, dtype=dtype) for _ in range(2))
        return 2 * n**3 / self.seconds(lambda: a @ b, 5)

    def parts(self, share: float = 1.0) -> tuple[CopyingTest, Tensor, Tensor]:
        """The prompts, or the first of them."""
        keep = self.test.context < max(1, round(share * (int(self.test.context.max()) + 1)))
        test = CopyingTest(*(column[keep] for column in self.test))
        return (
            test,
            self.repeated[: max(2, round(share * len(self.repeated)))],
            self.text[: max(2, round(share * len(self.text)))],
        )

    def score(self, model: Any, share: float = 1.0) -> None:
        """What `copyscope score` computes of a checkpoint, prompts of heads included."""
        test, repeated, text = self.parts(share)
        score_heads(model, vocab=self.vocab, bos_id=0, n_prompts=max(2, round(16 * share)))
        copying_accuracy(model, test)
        copying_loss(model, repeated)
        icl_score(model, text, natural_losses(model, text))

    def ablation(self, share: float = 1.0) -> Setting:
        test, repeated, text = self.parts(share)
        return Setting(None, test, repeated, text[: max(1, len(text) // 4)])  # type: ignore[arg-type]


def checkpoints(bench: Bench, folder: Path, count: int) -> list[Path]:
    """Three sets of random weights in turn, as so many checkpoints; files are shared."""
    for i in range(count):
        place = folder / f"step{i:04d}"
        if i < 3:
            torch.manual_seed(i)
            LlamaForCausalLM(bench.config).save_pretrained(place)
            continue
        place.mkdir()
        for file in (folder / f"step{i % 3:04d}").iterdir():
            os.link(file, place / file.name)
    return sorted(folder.iterdir())


def on_one_core(folder: Path, tiny: bool, share: float) -> None:
    """In a process of its own: seconds of scoring, and of ablating one head, on one core."""
    torch.set_num_threads(1)
    bench = Bench(tiny, None)
    bench.device = torch.device("cpu")
    model = load_hooked(folder, prove=False)
    scored = bench.seconds(lambda: bench.score(model, share), 1)
    s = bench.ablation(share)
    heads = f"L{bench.config.num_hidden_layers // 2}H0"
    ablated = bench.seconds(lambda: sweep_heads(model, s.test, repeated=s.repeated, windows=s.windows, heads=heads), 1)
    print(json.dumps({"score": scored, "ablate": ablated}), flush=True)


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--checkpoints", type=int, default=30)
    parser.add_argument("--share", type=float, default=0.1, help="of the prompts, on one core")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--only", default="load,score,measures,ablate,plain,series,core", help="which parts")
    parser.add_argument("--one-core", type=Path)
    given = parser.parse_args()
    if given.one_core:
        on_one_core(given.one_core, given.tiny, given.share)
        return
    only = given.only.split(",")
    dtypes = {name: DTYPES[name] for name in given.dtypes.split(",")}
    bench = Bench(given.tiny, given.out)
    bench.say("device", name=bench.name, torch=torch.__version__)
    with tempfile.TemporaryDirectory() as root:
        series = checkpoints(bench, Path(root) / "series", given.checkpoints)
        core = [sys.executable, __file__, "--one-core", series[0], "--share", given.share]
        core = "core" in only and subprocess.Popen(
            [*map(str, core), *(["--tiny"] if given.tiny else [])],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )
        for name, dtype in dtypes.items():
            measured(bench, series, name, dtype, given.share, only)
        for name in dtypes if "series" in only else ():
            out = Path(root) / f"scored-{name}"
            opened = cs.open_run(series[0].parent, out=out)
            started = time.perf_counter()
            cs.score(opened, dtype=name)
            took = time.perf_counter() - started
            bench.say("series", dtype=name, checkpoints=len(series), seconds=took, each=took / len(series))
        if core:
            line = core.communicate()[0].splitlines()[-1:]
            bench.say("one core", share=given.share, **json.loads(line[0] if line else "{}"))


def measured(bench: Bench, series: list[Path], name: str, dtype: torch.dtype, share: float, only: list[str]) -> None:
    model: Any = load_hooked(series[0], device=bench.device, dtype=dtype)
    if "load" in only:
        new = bench.seconds(lambda: load_hooked(series[0], device=bench.device, dtype=dtype))
        paths = iter(series[1:] * 2)
        swapped = bench.seconds(lambda: load_weights_into(model, next(paths)))
        bench.say("load", dtype=name, anew=new, weights_only=swapped)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if "score" in only:
        whole, part = bench.seconds(lambda: bench.score(model)), bench.seconds(lambda: bench.score(model, share))
        bench.say("score", dtype=name, seconds=whole, of_share=part)
    if "measures" in only:
        prompts = prompts_for(model, 8)
        mine = bench.seconds(lambda: ours(model, prompts), 3)
        theirs = bench.seconds(lambda: usual(model, prompts.to(bench.device)), 3)
        bench.say("three measures", dtype=name, ours=mine, run_with_cache=theirs, ratio=theirs / mine, of=len(MEASURES))
    if "ablate" in only:
        ablated(bench, model, name, share, "plain" in only)
    if bench.device.type == "cuda":
        bench.say("memory", dtype=name, gigabytes=torch.cuda.max_memory_allocated() / 1e9)


def ablated(bench: Bench, model: Any, name: str, share: float, plainly: bool) -> None:
    s = bench.ablation()._replace(model=model)
    n_heads, middle = model.cfg.n_layers * model.cfg.n_heads, model.cfg.n_layers // 2

    def sweep(s: Setting, heads: Any = None) -> None:
        sweep_heads(model, s.test, repeated=s.repeated, windows=s.windows, heads=heads)

    sweep(s, "L0H0")  # warms up
    all_heads = bench.seconds(lambda: sweep(s), 1)
    rate = bench.rate(DTYPES[name])
    limit = unavoidable_flops(s) / rate
    values = {"seconds": all_heads, "limit": limit, "of_limit": limit / all_heads, "tera": rate / 1e12}
    if plainly:
        prompts = (s.repeated.to(bench.device), s.windows.to(bench.device))
        on_gpu = Setting(model, CopyingTest(*(x.to(bench.device) for x in s.test)), *prompts)
        one = bench.seconds(lambda: plain(on_gpu, (middle, 0)), 2)
        values |= {"plain_loop": one * n_heads, "ratio": one * n_heads / all_heads}
    bench.say("ablate all heads", dtype=name, **values)
    of_share = bench.ablation(share)
    bench.say("ablate one head of share", dtype=name, seconds=bench.seconds(lambda: sweep(of_share, f"L{middle}H0")))


if __name__ == "__main__":
    main()
