"""The training loop, readable top to bottom in one sitting. The only place that steps an optimiser."""

import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from training.batches import batch, windows
from training.checkpoints import (
    Checkpoint,
    disk_full,
    is_disk_full,
    read_manifest,
    sha256_of,
    step_folder,
    write_folder,
    write_json,
    write_text,
)
from training.config import RunConfig
from training.errors import InputError, Stopped
from training.forward import Rotary, native_bf16, next_token_loss
from training.model import build_model
from training.tokens import BOS, TokenStore, open_store, token_store

RESUME_KEPT = 2


def checkpoint_steps(config: RunConfig) -> list[int]:
    """The steps saved: 0, 1, 2, 4, … up to `checkpoints.every`, then evenly, plus the listed ones and the last."""
    every, last = config.checkpoints.every, config.train.steps
    powers = [2**k for k in range(every.bit_length()) if 2**k < every]
    steps = {0, *powers, *range(every, last + 1, every), *config.checkpoints.steps, last}
    return sorted(step for step in steps if 0 <= step <= last)


def learning_rate(config: RunConfig, step: int) -> float:
    """The learning rate of update `step` (from 0)."""
    optimizer = config.optimizer
    warm = min(1.0, (step + 1) / max(1, optimizer.warmup_steps))
    length = max(1, round(config.train.steps * optimizer.decay_share))
    done = max(0.0, (step - (config.train.steps - length)) / length)
    if optimizer.schedule == "constant" or done == 0:
        return optimizer.lr * warm
    left = 1 - done if optimizer.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return optimizer.lr * warm * (optimizer.final_lr_share + (1 - optimizer.final_lr_share) * left)


def train(
    config: RunConfig,
    out: str | Path,
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Trains the run in folder `out`, or goes on with it, and returns the folder.

    `on_checkpoint(checkpoint)` is called after each checkpoint is on disk; `progress(line)` with each line of
    metrics.jsonl; `say(text)` with what is worth telling. A run already finished is returned as it is. Ctrl-C and
    SIGTERM save the full state and raise `Stopped`; a loss that is not finite, a full disk or a folder that holds
    another run raise InputError, with every earlier checkpoint kept.
    """
    out = Path(out)
    say = say or (lambda text: None)
    _check_claim(config, out)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    store = _store(config, out, say)
    precision = _precision(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    model = build_model(config, store.index["vocab_size"])
    model.to(device)  # type: ignore[arg-type] # transformers hides the method behind a decorator
    optimizer = _adamw(config, model)
    rotary = Rotary(model, config.model.n_ctx, torch.bfloat16 if precision == "bf16" else torch.float32)
    held_out = windows(store.validation, config.model.n_ctx, config.train.validation_sequences, config.seeds.eval).to(
        device
    )

    def read_batch(number: int) -> torch.Tensor:
        sizes = (config.model.n_ctx, config.train.batch_size)
        return batch(store.train, *sizes, config.seeds.data, number, config.data.repeat_choice, store.surprisal)

    read_batch(0)  # a corpus too small is refused before the folder is claimed
    _claim(config, out, store)
    step = _resume(out, model, optimizer, say)
    _truncate_metrics(out, step)
    to_save = set(checkpoint_steps(config))
    tokens_a_step = config.train.batch_size * config.model.n_ctx
    log = _Log(out / "metrics.jsonl", progress)

    def save_checkpoint() -> None:
        folder = out / "checkpoints" / step_folder(step)
        if not folder.is_dir():
            write_folder(
                folder,
                lambda temp: _fill_checkpoint(temp, model, store),
                step=step,
                tokens=step * tokens_a_step,
                run_id=config.run_id,
            )
        if on_checkpoint:
            on_checkpoint(Checkpoint(step, step * tokens_a_step, str(folder)))

    def validation_loss() -> float:
        with torch.no_grad():
            parts = held_out.split(max(1, config.train.batch_size))
            total = sum(float(next_token_loss(model, part, rotary)) * len(part) for part in parts)
        return total / len(held_out)

    if step == 0:
        save_checkpoint()
        log.write(step=0, tokens=0, validation_loss=validation_loss())
    losses: list[torch.Tensor] = []
    started, started_step = time.perf_counter(), step
    with _stop_signals() as stop:
        while step < config.train.steps:
            rate = learning_rate(config, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            if config.model.attention_dropout:
                torch.manual_seed(hash((config.seeds.data, step)))  # so that dropout too depends on the step alone
            sequences = read_batch(step).to(device)
            loss = next_token_loss(model, sequences, rotary, config.model.attention_dropout)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
            if not math.isfinite(float(norm)) or not math.isfinite(float(loss.detach())):
                raise _diverged(out, step, loss=float(loss.detach()), gradient_norm=float(norm))
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            step += 1

            line: dict[str, Any] = {}
            if step % config.train.log_every == 0 or step == config.train.steps:
                line |= {"loss": float(torch.stack(losses).mean()), "lr": rate, "grad_norm": float(norm)}
                line["tokens_per_second"] = tokens_a_step * (step - started_step) / (time.perf_counter() - started)
                losses.clear()
            if step in to_save or step % config.train.validate_every == 0:
                line["validation_loss"] = validation_loss()
                if not math.isfinite(line["validation_loss"]):  # before it is saved
                    raise _diverged(out, step, validation_loss=line["validation_loss"])
            if step in to_save:
                save_checkpoint()
            if line:
                log.write(step=step, tokens=step * tokens_a_step, **line)
            if step % config.checkpoints.resume_every == 0 or step == config.train.steps or stop.is_set():
                _save_state(config, out, model, optimizer, step)
            if stop.is_set() and step < config.train.steps:
                raise Stopped(
                    f"stopped at step {step} of {config.train.steps}, saved in {out}; the same command goes on"
                )
    return out


def _diverged(out: Path, step: int, **values: float) -> InputError:
    write_json(out / "diverged.json", {"step": step} | {name: str(value) for name, value in values.items()})
    found = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in values.items())
    return InputError(
        f"{out}: diverged at step {step} ({found}); the checkpoints before it are kept; lower optimizer.lr or raise "
        "optimizer.warmup_steps, and train into another --out"
    )


def _check_claim(config: RunConfig, out: Path) -> None:
    """The folder is new, or holds this very configuration."""
    if not out.is_dir() and (out.exists() or any(parent.is_file() for parent in out.parents)):
        raise InputError(f"{out}: is a file or lies under one, not a folder; choose another --out")
    if (out / "config.toml").is_file():
        held = RunConfig.load(out / "config.toml")
        if held.run_id != config.run_id:
            raise InputError(
                f"{out}: holds run {held.run_id}, not this configuration ({config.run_id}); choose another --out"
            )


def _store(config: RunConfig, out: Path, say: Callable[[str], None]) -> TokenStore:
    """The tokens this run began on, whatever has become of the corpus since; for a new run, those of its corpus."""
    root, path = out.parent / "tokens", out / "data.json"
    if path.is_file():
        folder = root / json.loads(path.read_text())["store"]
        if (folder / "index.json").is_file():
            return open_store(folder)
    return token_store(config.data, root, say)


def _claim(config: RunConfig, out: Path, store: TokenStore) -> None:
    """Writes config.toml, and data.json: which text this run reads. A store made anew from other text must not pass
    for the first."""
    path = out / "data.json"
    if path.is_file():
        held = json.loads(path.read_text())
        if held["fingerprint"] != store.index["fingerprint"]:
            raise InputError(f"{out}: began on other text (the corpus has changed since); train into another --out")
    else:
        write_json(path, {**store.index, "store": store.folder.name})
        write_text(out / "config.toml", config.to_toml())


def _precision(config: RunConfig) -> str:
    if config.train.precision != "auto":
        return config.train.precision
    return "bf16" if native_bf16() else "fp32"


def _adamw(config: RunConfig, model: LlamaForCausalLM) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    o = config.optimizer
    groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, fused=True)


def _fill_checkpoint(folder: Path, model: LlamaForCausalLM, store: TokenStore) -> None:
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.named_parameters()}  # tied ones once
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(store.tokenizer_path), bos_token=BOS, eos_token=BOS)
    tokenizer.save_pretrained(folder)


def _save_state(config: RunConfig, out: Path, model: LlamaForCausalLM, optimizer: torch.optim.AdamW, step: int) -> None:
    """The full training state: weights and both moments in fp32. Batches and dropout follow from the step."""

    def fill(folder: Path) -> None:
        state = {f"model.{name}": value.contiguous() for name, value in model.named_parameters()}
        for name, parameter in model.named_parameters():
            moments = optimizer.state[parameter]
            state[f"exp_avg.{name}"], state[f"exp_avg_sq.{name}"] = moments["exp_avg"], moments["exp_avg_sq"]
        save_file(state, folder / "state.safetensors")

    write_folder(out / "resume" / step_folder(step), fill, step=step, tokens=None, run_id=config.run_id)
    for old in sorted((out / "resume").glob("step*"))[:-RESUME_KEPT]:
        shutil.rmtree(old)


def _resume(out: Path, model: LlamaForCausalLM, optimizer: torch.optim.AdamW, say: Callable[[str], None]) -> int:
    """Loads the newest sound full state; returns its step, or 0 for a new run."""
    for folder in sorted((out / "resume").glob("step*"), reverse=True):
        try:
            manifest = read_manifest(folder)
            if sha256_of(folder / "state.safetensors") != manifest["files"]["state.safetensors"]:
                raise InputError(f"{folder}: damaged")
            state = load_file(folder / "state.safetensors")
        except (InputError, OSError, SafetensorError) as error:
            say(f"full state {folder.name} cannot be used ({error}); going back to the one before")
            continue
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state[f"model.{name}"])
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(manifest["step"]), device=parameter.device),  # the fused kernel wants it
                    "exp_avg": state[f"exp_avg.{name}"].to(parameter.device),
                    "exp_avg_sq": state[f"exp_avg_sq.{name}"].to(parameter.device),
                }
        return manifest["step"]
    return 0


def _truncate_metrics(out: Path, step: int) -> None:
    """Drops lines after the step resumed from (they will be written again) and a last line cut off by a kill."""
    path = out / "metrics.jsonl"
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step and step > 0:
                kept.append(line)
        except (ValueError, KeyError):
            continue
    write_text(path, "".join(line + "\n" for line in kept))


class _Log:
    def __init__(self, path: Path, progress: Callable[[dict[str, Any]], None] | None):
        self.path, self.progress = path, progress

    def write(self, **line: Any) -> None:
        try:
            with self.path.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        except OSError as error:
            raise disk_full(self.path) if is_disk_full(error) else error from None
        if self.progress:
            self.progress(line)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that a step is never cut in the middle. A second Ctrl-C is immediate."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
