"""The training loop, readable top to bottom in one sitting. The only place that steps an optimiser."""

import hashlib
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from copyscope.training.checkpoints.series import Checkpoint, step_folder
from copyscope.training.config import RunConfig
from copyscope.training.data.batches import batch, windows
from copyscope.training.data.prefetch import batches_on
from copyscope.training.data.store import TokenStore
from copyscope.training.engines.locks import Busy, held
from copyscope.training.environment import environment, note_environment
from copyscope.training.errors import InputError, Stopped
from copyscope.training.files import write_folder
from copyscope.training.model.interventions import active, predictable
from copyscope.training.model.llama import build_model
from copyscope.training.model.loss import NextTokenLoss
from copyscope.training.model.machine import fast_bf16, keep_freed_memory
from copyscope.training.model.optimizers import build_optimizers, retune
from copyscope.training.model.threads import all_threads, one_share_each
from copyscope.training.processes import Stopping, accelerator_of, copied, own_rows, summed
from copyscope.training.progress import Progress
from copyscope.training.run_folder import check_folder, claim_folder, diverged, fill_checkpoint, store_of
from copyscope.training.running_mean import RunningMean
from copyscope.training.schedule import (
    checkpoint_steps,
    kept_steps,
    learning_rate,
    order_of_data,
    settings_at,
    tokens_at,
    window_at,
)
from copyscope.training.signals import stop_signals
from copyscope.training.speed import flops_per_token, mfu, peak_flops
from copyscope.training.state import load_state, save_state, states
from copyscope.training.tracking import RunLog, check_trackers


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which updates to do, and which steps to save."""

    last: int
    """The step to end at."""
    saved: frozenset[int]
    kept: frozenset[int]
    """Those of `saved` that stay on disk once `on_checkpoint` has seen them."""
    start_from: tuple[Path, ...] = ()
    """Full states of another folder to start from, where the run's own has none: the first that is sound."""
    begin: int = 0
    """The step that a state has to be there for: what came before it was not trained with this configuration."""
    text: TokenStore | None = None
    """Where training sequences are read, if not in the run's own store; both have one tokenizer."""


def train(
    config: RunConfig | str | Path,
    out: str | Path,
    on_checkpoint: Callable[[Checkpoint], object] | None = None,
    progress: Progress | None = None,
    device: str = "auto",
) -> Path:
    """Trains the run in folder `out`, or resumes it, and returns the folder.

    `config`: the settings, or a preset's name or TOML file. `on_checkpoint(checkpoint)` is called after each checkpoint
    is on disk, before `checkpoints.keep` takes it away; `progress` hears of each line of metrics.jsonl. `device`: auto
    (an NVIDIA GPU that is there, else the CPU), cpu, cuda or cuda:1. A run already finished is returned as it is.

    Ctrl-C and SIGTERM save the full state and raise `Stopped`; a loss that is not finite, a full
    disk or a folder that holds another run raise InputError, with every earlier checkpoint kept. Started by
    `accelerate launch` or `torchrun`, the processes share each batch, and the first of them writes.
    """
    config = config if isinstance(config, RunConfig) else RunConfig.load(config)
    out = Path(out)
    if config.fork.of:
        raise InputError(f"{out}: a configuration of a fork; rerun the `copyscope fork` that wrote it to resume")
    check_folder(config, out)
    check_trackers(config)
    accelerator = accelerator_of(config, out, device=device)
    with accelerator.main_process_first():
        store = store_of(config, out)
        reader(config, store)(0)  # a corpus too small is refused before the folder is claimed
        if accelerator.is_main_process:
            claim_folder(config, out, store)
    plan = Plan(last=config.train.steps, saved=frozenset(checkpoint_steps(config)), kept=frozenset(kept_steps(config)))
    run_updates(config, out, store, plan, accelerator, on_checkpoint, progress)
    return out


def run_updates(
    config: RunConfig,
    out: Path,
    store: TokenStore,
    plan: Plan,
    accelerator: Accelerator,
    on_checkpoint: Callable[[Checkpoint], object] | None = None,
    progress: Progress | None = None,
) -> None:
    """The updates of a run, with checkpoints, full states and metrics.jsonl in folder `out`.

    Resumes from the newest full state in `out`, else from the first sound one of `plan.start_from`, else starts at step
    0. environment.json says what the updates were computed with. What else is passed and raised is as in `train`.
    """
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    keep_freed_memory()
    run = _prepare(config, out, store, accelerator)
    step = load_state([*states(out / "resume"), *plan.start_from], run.model, run.optimizers, run.means)
    if step < plan.begin:
        raise InputError(f"{out}: no sound full state of step {plan.begin} or later to continue from")
    with _alone(out) if run.main and step < plan.last else nullcontext():
        _updates(run, plan, step, on_checkpoint, progress)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two processes in one folder would write over each other's files. Raises InputError for the second."""
    try:
        with held(out / "resume" / "lock", lost=lambda: os.kill(os.getpid(), signal.SIGTERM)):
            yield
    except Busy as busy:
        raise InputError(f"{out}: {busy} is training this run; wait for it, or name another folder") from None


def _updates(
    run: "_Run",
    plan: Plan,
    step: int,
    on_checkpoint: Callable[[Checkpoint], object] | None,
    progress: Progress | None,
) -> None:
    """Those from `step` on; `run` is as it was then."""
    config, out, store = run.config, run.out, run.store
    now = _use_settings(run, step)
    if run.main and step < plan.last:
        facts = environment(run.device, run.accelerator.num_processes, run.loss_of.dtype, config.train.compile)
        note_environment(out, step, facts)
    log = RunLog(config, out, step, plan.last, run.accelerator, progress) if run.main else None
    tokens_a_step = config.train.batch_size * config.model.n_ctx

    if step == plan.begin and step in plan.saved:
        _save_checkpoint(run, step, plan, on_checkpoint)
        validation_loss = _validation_loss(run)
        if log:
            log.write(step=step, tokens=tokens_at(config, step), validation_loss=validation_loss)
    recent, finite, stopping = _Recent(step), _Finite(run), Stopping(run.accelerator)
    with (
        stop_signals() as stop,
        closing(log) if log else nullcontext(),
        one_share_each(),
        batches_on(run.device, reader(config, plan.text or store, run.rows), range(step, plan.last)) as batches,
    ):
        while step < plan.last:
            if step == config.fork.until:
                now = _use_settings(run, step)
            rate = learning_rate(now, step)
            loss, left_out = _forward_and_backward(run, next(batches), step, now)
            norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), now.optimizer.clip)
            finite.check(step, loss, norm)
            step_optimizers(run.optimizers, rate)
            recent.add(loss, left_out)
            step += 1
            run.means.add(step)

            line: dict[str, Any] = {}
            if step % config.train.log_every == 0 or step == plan.last:
                finite.settle()
                line |= recent.line(run.accelerator, step, rate, float(norm), tokens_a_step)
                if run.peak_flops:
                    line["mfu"] = mfu(line["tokens_per_second"], run.flops_per_token, run.peak_flops)
            if step in plan.saved or step % config.train.validate_every == 0:
                finite.settle()
                line["validation_loss"] = _validation_loss(run)
                if not math.isfinite(line["validation_loss"]):  # before it is saved
                    raise diverged(out, run.main, step, validation_loss=line["validation_loss"])
            if step in plan.saved:
                with recent.paused():  # saving and scoring are no part of the speed of training
                    _save_checkpoint(run, step, plan, on_checkpoint)
            if line and log:
                log.write(step=step, tokens=tokens_at(config, step), **line)
            is_stopping = stopping.any(stop.is_set())
            if step % config.checkpoints.resume_every == 0 or step == plan.last or is_stopping:
                finite.settle()
                _save_full_state(run, step)
            if is_stopping and step < plan.last:
                raise Stopped(
                    f"stopped at step {step} of {plan.last}, saved in {out}; rerun the same command to resume"
                )


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What the loop works with; the same objects from the first update to the last."""

    config: RunConfig
    out: Path
    store: TokenStore
    accelerator: Accelerator
    model: Any
    loss_of: NextTokenLoss
    shared_loss: Any
    """`loss_of`, whose gradients are averaged over the processes."""
    optimizers: tuple[torch.optim.Optimizer, ...]
    means: RunningMean
    rows: range
    """Which sequences of a batch this process computes."""
    held_out: torch.Tensor
    flops_per_token: float
    peak_flops: float | None
    """Of all processes' GPUs, in bf16; None where it is not known, or products are not in bf16."""

    @property
    def main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        return self.accelerator.device


def _prepare(config: RunConfig, out: Path, store: TokenStore, accelerator: Accelerator) -> _Run:
    m = config.model
    rows = own_rows(config, accelerator)
    model: Any = build_model(config, store.index["vocab_size"])
    model.to(accelerator.device)
    precision = torch.bfloat16 if _bf16(config) else torch.float32
    loss_of = NextTokenLoss(
        model, m.n_ctx, precision, m.attention_dropout, m.residual_dropout, compiled=config.train.compile
    )
    loss_of.to(accelerator.device)
    peak = None
    if accelerator.device.type == "cuda" and precision is torch.bfloat16:
        peak = peak_flops(torch.cuda.get_device_name(accelerator.device))
    return _Run(
        config=config,
        out=out,
        store=store,
        accelerator=accelerator,
        model=model,
        loss_of=loss_of,
        shared_loss=accelerator.prepare(loss_of),
        optimizers=build_optimizers(config.optimizer, model),
        means=RunningMean(model, config.checkpoints.mean_every),
        rows=rows,
        held_out=windows(store.validation, m.n_ctx, config.train.validation_sequences, config.seeds.eval),
        flops_per_token=flops_per_token(m, store.index["vocab_size"]),
        peak_flops=peak and peak * accelerator.num_processes,
    )


def _use_settings(run: _Run, step: int) -> RunConfig:
    """The settings from update `step` on, which loss and optimisers use from then on."""
    now = settings_at(run.config, step)
    run.loss_of.attention_dropout = now.model.attention_dropout
    run.loss_of.residual_dropout = now.model.residual_dropout
    run.loss_of.intervention = active(now.intervention, step)
    retune(run.optimizers, now.optimizer, run.model)
    return now


def _forward_and_backward(
    run: _Run, sequences: torch.Tensor, step: int, config: RunConfig
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mean loss of this process's part of the batch, with gradients of the whole batch in the parameters; and the share
    of its tokens that the intervention leaves out of the loss (None where it never does). `config`: of this update."""
    parts = config.train.gradient_accumulation
    intervention = active(config.intervention, step)
    if intervention != run.loss_of.intervention:  # another object, though equal, would be compiled again
        run.loss_of.intervention = intervention
    left_out = None
    if run.config.intervention.skip_predictable or config.intervention.skip_predictable:
        skips = run.loss_of.intervention is not None and run.loss_of.intervention.skip_predictable
        left_out = predictable(sequences).double().mean() * skips
    loss = torch.zeros((), device=run.device)
    for part, some in enumerate(sequences.chunk(parts)):
        if config.model.attention_dropout or config.model.residual_dropout:  # so that dropout depends on the step alone
            torch.manual_seed(_seed(config.seeds.data, step, run.accelerator.process_index, part))
        last = part == parts - 1  # gradients of all processes are averaged once an update
        with nullcontext() if last else run.accelerator.no_sync(run.shared_loss):
            part_loss = run.shared_loss(some) / parts
            part_loss.backward()
        loss += part_loss.detach()
    return loss, left_out


def step_optimizers(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    """One update at this learning rate; the gradients are used up."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()


def _validation_loss(run: _Run) -> float:
    """Each process takes its share, and all get the same value, so that all decide alike."""
    mine = run.held_out[run.accelerator.process_index :: run.accelerator.num_processes]
    total = torch.zeros((), dtype=torch.float64)
    run.loss_of.eval()
    with torch.no_grad(), all_threads():
        for some in mine.split(max(1, len(run.rows) // run.config.train.gradient_accumulation)):
            total += float(run.loss_of(some.to(run.device))) * len(some)
    run.loss_of.train()
    return float(summed(run.accelerator, total)) / len(run.held_out)


def _save_checkpoint(run: _Run, step: int, plan: Plan, on_checkpoint: Callable[[Checkpoint], object] | None) -> None:
    folder = run.out / "checkpoints" / step_folder(step)
    if run.main:
        tokens = tokens_at(run.config, step)
        if not folder.is_dir():
            labels = {"step": step, "tokens": tokens, "run_id": run.config.run_id, **run.means.labels}

            def fill(temp: Path) -> None:
                fill_checkpoint(temp, run.model, run.store)
                run.means.write(temp)

            write_folder(folder, fill, **labels)
        if on_checkpoint:
            with all_threads():
                on_checkpoint(Checkpoint(step, tokens, str(folder)))
        if step not in plan.kept:
            shutil.rmtree(folder)
    run.means.begin(step)
    run.accelerator.wait_for_everyone()


def _save_full_state(run: _Run, step: int) -> None:
    if run.main:
        every = run.config.checkpoints.state_every
        save_state(run.out / "resume", run.model, run.optimizers, step, run.config.run_id, every, run.means)
    run.accelerator.wait_for_everyone()


class _Finite:
    """Stops a run whose gradients are no longer finite.

    On the CPU before such an update is done. Reading a value waits for a GPU, so there the norm of an update is read
    once the next is queued, or earlier: `settle` is called before anything is logged, validated or saved. What such an
    update made of the weights is never seen.
    """

    def __init__(self, run: _Run):
        self._run = run
        self.is_late = run.device.type == "cuda"
        self._pending: tuple[int, Callable[[], list[float]]] | None = None

    def check(self, step: int, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Raises InputError if the norm of update `step` is not finite, or on a GPU that of the one before. It is the
        same in all processes, and a loss that is not finite has no finite gradient."""
        values = copied(torch.stack([loss, norm]))  # begun now, before the update is queued
        if self.is_late:
            self.settle()
        self._pending = (step, values)
        if not self.is_late:
            self.settle()

    def settle(self) -> None:
        """Raises InputError if a norm that has not been read yet is not finite."""
        if self._pending is None:
            return
        (step, values), self._pending = self._pending, None
        loss, norm = values()
        if not math.isfinite(norm):
            raise diverged(self._run.out, self._run.main, step, loss=loss, gradient_norm=norm)


@dataclass
class _Recent:
    """Losses since the last line of metrics.jsonl, and since when the speed is counted."""

    started_step: int
    started: float = field(default_factory=time.perf_counter)
    losses: list[torch.Tensor] = field(default_factory=list)
    left_out: list[torch.Tensor] = field(default_factory=list)

    def add(self, loss: torch.Tensor, left_out: torch.Tensor | None) -> None:
        self.losses.append(loss)
        if left_out is not None:
            self.left_out.append(left_out)

    def line(
        self, accelerator: Accelerator, step: int, rate: float, norm: float, tokens_a_step: int
    ) -> dict[str, float]:
        """Means over the updates since the last call, over all processes."""
        mean = float(summed(accelerator, torch.stack(self.losses).mean().double()) / accelerator.num_processes)
        line = {"loss": mean, "lr": rate, "grad_norm": norm}
        if self.left_out:
            share = float(summed(accelerator, torch.stack(self.left_out).mean()) / accelerator.num_processes)
            line |= {"loss": mean / max(1 - share, 1e-9), "predictable_share": share}
        seconds = time.perf_counter() - self.started
        line["tokens_per_second"] = tokens_a_step * (step - self.started_step) / seconds
        self.losses.clear()
        self.left_out.clear()
        return line

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What its body takes does not count for the speed."""
        before = time.perf_counter()
        yield
        self.started += time.perf_counter() - before


def reader(config: RunConfig, store: TokenStore, rows: range | None = None) -> Callable[[int], torch.Tensor]:
    """Reads the batch of an update, or `rows` of it."""
    sizes, choice = (config.model.n_ctx, config.train.batch_size), config.data.repeat_choice
    order = order_of_data(config)
    surprisal = store.surprisal if choice > 1 else None  # here, so that threads which read need not make it

    def read(step: int) -> torch.Tensor:
        return batch(store.train, *sizes, order, step, choice, surprisal, rows, window_at(config, step))

    return read


def _seed(*numbers: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big", signed=True)


def _bf16(config: RunConfig) -> bool:
    return config.train.precision == "bf16" or (config.train.precision == "auto" and fast_bf16())
