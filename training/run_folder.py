"""The folder of a run: whose it is, which text the run reads, and the files of a checkpoint in it."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from copyscope.training.checkpoints.average import ABOUT
from copyscope.training.checkpoints.trunk import TRUNK, places, read_trunk, tokens_of
from copyscope.training.config import RunConfig
from copyscope.training.data.store import BOS, COUNTS, TokenStore, open_store, token_store
from copyscope.training.errors import InputError
from copyscope.training.files import write_bytes, write_json, write_text


def check_folder(config: RunConfig, out: Path) -> None:
    """The folder is new, or holds this very configuration; else InputError names the first field that differs."""
    if not out.is_dir() and (out.exists() or any(parent.is_file() for parent in out.parents)):
        raise InputError(f"{out}: is a file or lies under one, not a folder; choose another --out")
    if (out / TRUNK).is_file():
        raise InputError(f"{out}: holds a fork of a run; choose another --out")
    if (out / ABOUT).is_file():
        raise InputError(f"{out}: holds means of a run's weights, which are not trained on; choose another --out")
    if (out / "config.toml").is_file():
        there = RunConfig.load(out / "config.toml")
        if there.run_id != config.run_id:
            raise InputError(
                f"{out}: holds another run ({_difference(there, config)}); choose another --out, or its configuration"
            )


def run_store(run: Path) -> TokenStore | None:
    """The token store that the run in this folder began with; None if it has none, or none any more."""
    path = run / "data.json"
    if path.is_file():
        folder = tokens_of(run, json.loads(path.read_text())["store"])
        if (folder / "index.json").is_file():
            return open_store(folder)
    return None


def text_of_fork(fork: Path) -> TokenStore | None:
    """The store of the text that a fork reads from its step on; None where it is the run's own.

    Raises InputError if it is not there any more.
    """
    trunk = read_trunk(fork)
    if trunk is None or trunk.text is None:
        return None
    found = [folder for folder in places(fork, trunk.text) if (folder / "index.json").is_file()]
    if not found:
        raise InputError(f"{fork}: the tokens of its text are not in {trunk.text['absolute']} any more; put them back")
    return open_store(found[0])


def store_of(config: RunConfig, out: Path) -> TokenStore:
    """The tokens this run began with, whatever has become of the corpus since; for a new run, those of its corpus."""
    return run_store(out) or token_store(config.data, out.parent / "tokens")


def claim_folder(config: RunConfig, out: Path, store: TokenStore) -> None:
    """Writes config.toml, data.json (which text this run reads) and counts.bin (how often it holds each token, so that
    a copy of the run without its tokens can be looked at). A store rebuilt from other text must not pass for the
    first."""
    if not claim_text(out, store):
        write_text(out / "config.toml", config.to_toml())


def claim_text(out: Path, store: TokenStore) -> bool:
    """`claim_folder` without config.toml; whether data.json was there."""
    path = out / "data.json"
    is_there = path.is_file()
    if is_there:
        held = json.loads(path.read_text())
        if held["fingerprint"] != store.index["fingerprint"]:
            raise InputError(f"{out}: began on other text (the corpus has changed since); train into another --out")
    else:
        write_json(path, {**store.index, "store": store.folder.name})
    if not (out / COUNTS).is_file():
        write_bytes(out / COUNTS, store.counts.tobytes())
    return is_there


def fill_checkpoint(folder: Path, model: LlamaForCausalLM, store: TokenStore) -> None:
    """Writes a Hugging Face model with its tokenizer into an empty folder."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.named_parameters()}  # tied ones once
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(store.tokenizer_path), bos_token=BOS, eos_token=BOS)
    tokenizer.save_pretrained(folder)


def diverged(out: Path, main: bool, step: int, **values: float) -> InputError:
    """What to raise when a value is not finite at `step`; the main process also writes it to diverged.json."""
    if main:
        write_json(out / "diverged.json", {"step": step} | {name: str(value) for name, value in values.items()})
    words = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in values.items())
    return InputError(
        f"{out}: diverged at step {step} ({words}); the checkpoints before it are kept; lower optimizer.lr or raise "
        "optimizer.warmup_steps, and train into another --out"
    )


def _difference(there: RunConfig, here: RunConfig) -> str:
    """The first field that differs, as `optimizer.name is 'adamw' there, 'muon' here`, and how many more do."""
    old, new = there.model_dump(), here.model_dump()
    fields: list[tuple[str, Any, Any]] = [
        (f"{section}.{name}", old[section][name], new[section][name])
        for section in new
        for name in new[section]
        if old[section][name] != new[section][name]
    ]
    name, before, after = fields[0]
    more = f", and {len(fields) - 1} more" if len(fields) > 1 else ""
    return f"{name} is {before!r} there, {after!r} here{more}"
