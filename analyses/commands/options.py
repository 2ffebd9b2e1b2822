"""Arguments and options that commands share, how their text is parsed, and how results are printed as JSON."""

import itertools
import json
import os
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

Source = Annotated[
    Path,
    typer.Argument(
        help="A run folder, a folder of Hugging Face checkpoints, one model's folder or GGUF file, or a hub model with "
        "revisions: org/model@revision,revision."
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a config field, as in --set optimizer.lr=1e-3; may be repeated."),
]
Steps = Annotated[str | None, typer.Option(help="Comma-separated training steps, as in 0,100,200.  [default: all]")]
Samples = Annotated[int, typer.Option(min=1, help="Samples of the copying test; fewer is faster.")]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder for the results.  [default: the series' own; runs/NAME of files and hub ids]"),
]
Order = Annotated[
    str | None,
    typer.Option(help="step: by the number in the names; name: by name, counted 0, 1, 2, ….  [default: step]"),
]
TokenizerFolder = Annotated[
    Path | None,
    typer.Option("--tokenizer", help="Folder of the tokenizer for all checkpoints.  [default: theirs, or beside them]"),
]
CacheLimit = Annotated[
    float | None,
    typer.Option(help="GB that weights fetched from a hub may take; then the oldest are deleted.  [default: any]"),
]
Device = Annotated[str, typer.Option(help="Where to compute: auto (the GPU that is there), cpu, cuda, cuda:1 or mps.")]
TrainDevice = Annotated[
    str, typer.Option("--device", help="Where to compute: auto (the NVIDIA GPU that is there), cpu, cuda or cuda:1.")
]
Dtype = Annotated[
    str, typer.Option(help="Precision: float32, or bfloat16 (half the memory, results within what docs/measures says).")
]
Memory = Annotated[
    int | None,
    typer.Option(
        min=1, help="Memory for activations, in MB, beside the model.  [default: 64 on a CPU; of a GPU what is free]"
    ),
]
OnEngine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="Share the checkpoints among processes: local, ray or slurm.  [default: local with --jobs, else none]",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        help="Number of checkpoints at a time.  [default: 1; with --engine local one a GPU, or half the cores; on a "
        "cluster as many as fit]",
    ),
]
EngineOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        help="Engine option NAME=VALUE: address, cpus, gpus (ray; gpus=0.125 packs eight processes on a GPU), or what "
        "submitit takes, such as slurm_partition; may be repeated.",
    ),
]
Silent = Annotated[bool, typer.Option("--quiet", help="Print no progress (standard error).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


def parse_options(texts: list[str] | None) -> dict[str, Any]:
    """`["gpus=0.5"]` to `{"gpus": 0.5}`; values are TOML, bare words are strings."""
    from copyscope.training.errors import InputError

    options: dict[str, Any] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"--option {text}: write it as name=value, as in gpus=0.5")
        try:
            options[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            options[name] = value
    return options


def grid_of(assignments: list[str] | None) -> list[dict[str, Any]]:
    """`["train.batch_size=8", "optimizer.lr=1", "optimizer.lr=2"]` to a setting for each rate, both with that batch."""
    from copyscope.training.config import parse_assignments

    choices: dict[str, list[Any]] = {}
    for text in assignments or []:
        for name, value in parse_assignments([text]).items():
            choices.setdefault(name, []).append(value)
    if not choices:
        return []
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def preset_names(typed: str) -> list[str]:
    """Presets that begin with what was typed, for the shell's completion; reads names only."""
    names = (path.name.removesuffix(".toml") for path in files("copyscope.training").joinpath("presets").iterdir())
    return sorted(name for name in names if name.startswith(typed))


def echo_json(result: dict[str, Any]) -> None:
    """Prints JSON that any reader takes: numbers that are not finite become null, paths text, tables lists of rows."""
    from copyscope.analyses.words.json_values import plain

    typer.echo(json.dumps(plain(result), indent=1, allow_nan=False))


def read_config(source: str, assignments: list[str] | None, corpus: str | None) -> Any:
    """The RunConfig of a preset or TOML file, with --set and --corpus applied."""
    from copyscope.training.config import RunConfig, parse_assignments

    values = parse_assignments(assignments or [])
    if corpus is not None:
        values["data.corpus"] = corpus
    return RunConfig.load(source).with_values(values)


def series_of(source: Path, out: Path | None, order: str | None, tokenizer: Path | None) -> Any:
    """The Run of a source, with --out, --order and --tokenizer applied."""
    from copyscope.analyses.tables.opening import open_run
    from copyscope.training.errors import InputError

    if order not in (None, "step", "name"):
        raise InputError(f"--order {order}: give step or name")
    return open_run(source, out=out, order=order, tokenizer=tokenizer)  # type: ignore[arg-type]


def compute_options(device: str, dtype: str, memory: int | None) -> dict[str, Any]:
    """Arguments `device`, `dtype` and `max_bytes` of the functions that measure."""
    return {"device": device, "dtype": dtype, "max_bytes": None if memory is None else memory * 2**20}


def names(text: str | None) -> list[str] | None:
    """Comma-separated names, or None where the option was not given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str | None, option: str = "--steps") -> list[int] | None:
    """Comma-separated whole numbers, or None. Raises InputError, naming the option, for anything else."""
    from copyscope.training.errors import InputError

    parts = names(text)
    try:
        return None if parts is None else [int(part) for part in parts]
    except ValueError:
        raise InputError(f"{option} {text}: give whole numbers separated by commas, as in 0,100,200") from None


def quiet() -> None:
    """Silences the bars and warnings that libraries print while loading; copyscope shows its own."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the reader of GGUF files heeds nothing else
    from transformers.utils import logging

    logging.disable_progress_bar()
