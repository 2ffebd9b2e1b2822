"""The training loop, readable top to bottom in one sitting. The only place that steps an optimiser."""

import hashlib
import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from copyscope.training.checkpoints.average import ABOUT
from copyscope.training.checkpoints.series import Checkpoint, step_folder
from copyscope.training.config import RunConfig
from copyscope.training.data.batches import batch, windows
from copyscope.training.data.store import BOS, TokenStore, open_store, token_store
from copyscope.training.environment import environment, note_environment
from copyscope.training.errors import InputError, Stopped
from copyscope.training.files import write_folder, write_json, write_text
from copyscope.training.model.interventions import active, predictable
from copyscope.training.model.llama import build_model
from copyscope.training.model.loss import NextTokenLoss
from copyscope.training.model.machine import keep_freed_memory, native_bf16
from copyscope.training.progress import Progress
from copyscope.training.schedule import checkpoint_steps, kept_steps, learning_rate
from copyscope.training.state import load_state, save_state, states
from copyscope.training.tracking import RunLog, check_trackers


def train(
    config: RunConfig | str | Path,
    out: str | Path,
    on_checkpoint: Callable[[Checkpoint], object] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Trains the run in folder `out`, or goes on with it, and returns the folder.

    `config`: the settings, or a preset's name or TOML file. `on_checkpoint(checkpoint)` is called after each
    checkpoint is on disk, before `checkpoints.keep` takes it away; `progress` hears of each line of
    metrics.jsonl. A run already finished is returned as it is.

    Ctrl-C and SIGTERM save the full state and raise `Stopped`; a loss that is not finite, a full
    disk or a folder that holds another run raise InputError, with every earlier checkpoint kept. Started by
    `accelerate launch` or `torchrun`, the processes share each batch, and the first of them writes.
    """
    config = config if isinstance(config, RunConfig) else RunConfig.load(config)
    out = Path(out)
    _check_claim(config, out)
    check_trackers(config)
    accelerator = _accelerator(config, out)
    with accelerator.main_process_first():
        store = _store(config, out)
        _read(config, store, 0)  # a corpus too small is refused before the folder is claimed
        if accelerator.is_main_process:
            _claim(config, out, store)
    steps, kept = set(checkpoint_steps(config)), kept_steps(config)
    run_updates(config, out, store, steps, kept, config.train.steps, (), accelerator, on_checkpoint, progress)
    return out


def run_updates(
    config: RunConfig,
    out: Path,
    store: TokenStore,
    to_save: set[int],
    kept: set[int],
    last: int,
    start_from: tuple[Path, ...] = (),
    accelerator: Accelerator | None = None,
    on_checkpoint: Callable[[Checkpoint], object] | None = None,
    progress: Progress | None = None,
) -> None:
    """The updates of a run up to step `last`, with checkpoints, full states and metrics.jsonl in folder `out`.

    Goes on from the newest full state in `out`, else from the first sound one of `start_from`, else from step 0. Saves
    the steps `to_save`, of which those in `kept` stay, and in environment.json what they were computed with. What else
    is passed and raised is as in `train`.
    """
    accelerator = accelerator or _accelerator(config, out)
    main = accelerator.is_main_process
    rows = _rows(config, accelerator)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    keep_freed_memory()
    precision = torch.bfloat16 if _bf16(config) else torch.float32
    m = config.model
    model = build_model(config, store.index["vocab_size"])
    model.to(accelerator.device)  # type: ignore[arg-type] # transformers hides the method behind a decorator
    plain = NextTokenLoss(model, m.n_ctx, precision, m.attention_dropout, m.residual_dropout)
    plain.to(accelerator.device)
    loss_of = accelerator.prepare(plain)
    optimizer = _adamw(config, model)
    held_out = windows(store.validation, m.n_ctx, config.train.validation_sequences, config.seeds.eval)

    step = load_state([*states(out / "resume"), *start_from], model, optimizer)
    if main and step < last:
        note_environment(out, step, environment(accelerator.device, accelerator.num_processes, precision))
    plain.intervention = active(config.intervention, step)
    parts = config.train.gradient_accumulation
    tokens_a_step = config.train.batch_size * m.n_ctx
    log = RunLog(config, out, step, last, accelerator, progress) if main else None

    def write_line(**line: Any) -> None:
        if log:
            log.write(step=step, tokens=step * tokens_a_step, **line)

    def save_checkpoint() -> None:
        folder = out / "checkpoints" / step_folder(step)
        if main:
            if not folder.is_dir():
                labels = {"step": step, "tokens": step * tokens_a_step, "run_id": config.run_id}
                write_folder(folder, lambda temp: _fill_checkpoint(temp, model, store), **labels)
            if on_checkpoint:
                on_checkpoint(Checkpoint(step, step * tokens_a_step, str(folder)))
            if step not in kept:
                shutil.rmtree(folder)
        accelerator.wait_for_everyone()

    def save_full_state() -> None:
        if main:
            save_state(out / "resume", model, optimizer, step, config.run_id, config.checkpoints.state_every)
        accelerator.wait_for_everyone()

    def validation_loss() -> float:
        # Each process takes its share, and all learn the same value, so that all decide alike.
        mine = held_out[accelerator.process_index :: accelerator.num_processes]
        total = torch.zeros((), dtype=torch.float64)
        plain.eval()
        with torch.no_grad():
            for some in mine.split(max(1, len(rows) // parts)):
                total += float(plain(some.to(accelerator.device))) * len(some)
        plain.train()
        return float(_sum(accelerator, total)) / len(held_out)

    if step == 0 and 0 in to_save:
        save_checkpoint()
        write_line(validation_loss=validation_loss())
    losses: list[torch.Tensor] = []
    left_out: list[torch.Tensor] = []
    started, started_step = time.perf_counter(), step
    with _stop_signals() as stop:
        while step < last:
            rate = learning_rate(config, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            sequences = _read(config, store, step, rows).to(accelerator.device)
            plain.intervention = active(config.intervention, step)
            if config.intervention.skip_predictable:
                skipping = plain.intervention is not None
                left_out.append(predictable(sequences).double().mean() * skipping)
            loss = torch.zeros((), device=accelerator.device)
            for part, some in enumerate(sequences.chunk(parts)):
                if m.attention_dropout or m.residual_dropout:  # so that dropout too depends on the step alone
                    torch.manual_seed(_seed(config.seeds.data, step, accelerator.process_index, part))
                together = part == parts - 1  # gradients of all processes are averaged once an update
                with nullcontext() if together else accelerator.no_sync(loss_of):
                    part_loss = loss_of(some) / parts
                    part_loss.backward()
                loss += part_loss.detach()
            norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip))
            if not math.isfinite(norm):  # the same in all processes; a loss that is not finite has no finite gradient
                raise _diverged(out, main, step, loss=float(loss), gradient_norm=norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss)
            step += 1

            line: dict[str, Any] = {}
            if step % config.train.log_every == 0 or step == last:
                mean = _sum(accelerator, torch.stack(losses).mean().double()) / accelerator.num_processes
                line |= {"loss": float(mean), "lr": rate, "grad_norm": norm}
                if left_out:
                    share = float(_sum(accelerator, torch.stack(left_out).mean()) / accelerator.num_processes)
                    line |= {"loss": float(mean) / max(1 - share, 1e-9), "predictable_share": share}
                    left_out.clear()
                line["tokens_per_second"] = tokens_a_step * (step - started_step) / (time.perf_counter() - started)
                losses.clear()
            if step in to_save or step % config.train.validate_every == 0:
                line["validation_loss"] = validation_loss()
                if not math.isfinite(line["validation_loss"]):  # before it is saved
                    raise _diverged(out, main, step, validation_loss=line["validation_loss"])
            if step in to_save:
                save_checkpoint()
            if line:
                write_line(**line)
            stopping = _any(accelerator, stop.is_set())
            if step % config.checkpoints.resume_every == 0 or step == last or stopping:
                save_full_state()
            if stopping and step < last:
                raise Stopped(f"stopped at step {step} of {last}, saved in {out}; the same command goes on")
    if config.train.track:
        accelerator.end_training()


def _accelerator(config: RunConfig, out: Path) -> Accelerator:
    """Device and processes. Precision is ours (`NextTokenLoss`): autocast casts each weight at each use."""
    return Accelerator(
        cpu=not torch.cuda.is_available(),  # unless told, accelerate shares work between GPUs only
        mixed_precision="no",
        log_with=list(config.train.track) or None,
        project_dir=out / "tracking",
    )


def _rows(config: RunConfig, accelerator: Accelerator) -> range:
    """Which sequences of a batch this process computes."""
    batch_size, processes = config.train.batch_size, accelerator.num_processes
    if batch_size % (processes * config.train.gradient_accumulation):
        raise InputError(
            f"train.batch_size {batch_size} cannot be shared evenly by {processes} processes in "
            f"{config.train.gradient_accumulation} parts (train.gradient_accumulation); change one of the three"
        )
    share = batch_size // processes
    return range(accelerator.process_index * share, (accelerator.process_index + 1) * share)


def _read(config: RunConfig, store: TokenStore, step: int, rows: range | None = None) -> torch.Tensor:
    sizes = (config.model.n_ctx, config.train.batch_size)
    choice = config.data.repeat_choice
    return batch(store.train, *sizes, config.seeds.data, step, choice, store.surprisal if choice > 1 else None, rows)


def _sum(accelerator: Accelerator, value: torch.Tensor) -> torch.Tensor:
    if accelerator.num_processes == 1:
        return value
    total: Any = accelerator.reduce(value.to(accelerator.device), "sum")
    return total


def _any(accelerator: Accelerator, flag: bool) -> bool:
    return bool(_sum(accelerator, torch.tensor(float(flag))) > 0)


def _seed(*numbers: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big", signed=True)


def _diverged(out: Path, main: bool, step: int, **values: float) -> InputError:
    if main:
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
    if (out / ABOUT).is_file():
        raise InputError(f"{out}: holds means of a run's weights, which are not trained on; choose another --out")
    if (out / "config.toml").is_file():
        held = RunConfig.load(out / "config.toml")
        if held.run_id != config.run_id:
            raise InputError(
                f"{out}: holds run {held.run_id}, not this configuration ({config.run_id}); choose another --out"
            )


def _store(config: RunConfig, out: Path) -> TokenStore:
    """The tokens this run began on, whatever has become of the corpus since; for a new run, those of its corpus."""
    return run_store(out) or token_store(config.data, out.parent / "tokens")


def run_store(run: Path) -> TokenStore | None:
    """The token store that the run in this folder began on; None if it has none, or none any more."""
    path = run / "data.json"
    if path.is_file():
        folder = run.parent / "tokens" / json.loads(path.read_text())["store"]
        if (folder / "index.json").is_file():
            return open_store(folder)
    return None


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


def _bf16(config: RunConfig) -> bool:
    return config.train.precision == "bf16" or (config.train.precision == "auto" and native_bf16())


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
