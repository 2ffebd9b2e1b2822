"""Every configuration is loaded whole or refused with one line that names the field."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from copyscope.training.config import RunConfig, parse_assignments, presets
from copyscope.training.errors import InputError

FIELDS = [
    f"{section}.{name}" for section, fields in RunConfig().model_dump(exclude={"fork"}).items() for name in fields
]


@pytest.mark.parametrize("name", presets())
def test_presets_load(name: str) -> None:
    assert RunConfig.load(name) == RunConfig.load(name)


def test_toml_gives_the_configuration_back(tmp_path: Path) -> None:
    config = RunConfig().with_values(
        {"model.n_key_value_heads": 2, "checkpoints.steps": [3, 5], "data.corpus": 'a "quoted" pfad/é\n'}
    )
    (tmp_path / "run.toml").write_text(config.to_toml())
    assert RunConfig.load(tmp_path / "run.toml") == config
    assert RunConfig.load(tmp_path / "run.toml").run_id == config.run_id


CHANGES: dict[str, Any] = {
    "model.n_heads": 2,
    "model.n_key_value_heads": 2,
    "model.d_model": 64,
    "model.tied_embeddings": True,
    "model.attention_dropout": 0.1,
    "data.corpus": "x",
    "data.field": "content",
    "data.encoding": "cp1252",
    "data.validation_share": 0.1,
    "optimizer.beta1": 0.8,
    "optimizer.beta2": 0.9,
    "optimizer.schedule": "linear",
    "optimizer.decay_share": 0.5,
    "train.precision": "fp32",
    "optimizer.final_lr_share": 0.2,
    "train.threads": 1,
    "checkpoints.steps": [7],
    "model.d_head": 64,
    "model.residual_dropout": 0.1,
    "train.gradient_accumulation": 2,
    "train.track": ["wandb"],
    "checkpoints.keep": "none",
    "checkpoints.state_every": 500,
    "checkpoints.mean_every": 10,
    "intervention.heads": [[0, 1]],
    "intervention.mode": "uniform",
    "intervention.skip_predictable": True,
    "intervention.until_step": 9,
    "optimizer.name": "muon",
    "optimizer.momentum": 0.8,
}


@pytest.mark.parametrize("field", FIELDS)
def test_run_id_changes_with_every_field_and_with_nothing_else(field: str) -> None:
    section, name = field.split(".")
    plain = RunConfig() if field != "optimizer.momentum" else RunConfig().with_values({"optimizer.name": "muon"})
    before = plain.model_dump()[section][name]
    changed = plain.with_values({field: CHANGES[field] if field in CHANGES else before * 2 + 1})
    assert changed.run_id != plain.run_id
    assert changed.with_values({field: before}).run_id == plain.run_id


def test_run_id_is_the_same_however_a_number_is_written() -> None:
    assert RunConfig.parse({"optimizer": {"lr": 1}}).run_id == RunConfig.parse({"optimizer": {"lr": 1.0}}).run_id


WRONG: list[tuple[str, Any]] = [
    ("model.n_layers", 0),
    ("model.n_layers", "3"),
    ("model.n_layers", True),
    ("model.n_layers", 2.5),
    ("model.n_layers", [4]),
    ("model.n_heads", -1),
    ("model.n_key_value_heads", 0),
    ("model.d_model", 1),
    ("model.d_mlp", 0),
    ("model.n_ctx", 1),
    ("model.tied_embeddings", 7),
    ("model.tied_embeddings", "perhaps"),
    ("model.rope_theta", 1.0),
    ("model.rope_theta", float("nan")),
    ("model.norm_eps", 0),
    ("model.init_std", -0.1),
    ("model.attention_dropout", 1.0),
    ("model.attention_dropout", -0.1),
    ("data.corpus", 3),
    ("data.corpus", ["a"]),
    ("data.encoding", "utf-9"),
    ("data.encoding", "hex"),
    ("data.encoding", ""),
    ("data.vocab_size", 299),
    ("data.vocab_size", 65_537),
    ("data.max_megabytes", 0),
    ("data.repeat_choice", 0),
    ("data.max_megabytes", float("inf")),
    ("data.repeat_choice", 65),
    ("data.validation_share", 0),
    ("data.validation_share", 0.5),
    ("optimizer.lr", 0),
    ("optimizer.lr", -1e-3),
    ("optimizer.lr", float("nan")),
    ("optimizer.lr", float("inf")),
    ("optimizer.lr", "fast"),
    ("optimizer.weight_decay", -1),
    ("optimizer.beta1", 1),
    ("optimizer.beta2", -0.1),
    ("optimizer.eps", 0),
    ("optimizer.warmup_steps", -1),
    ("optimizer.schedule", "sine"),
    ("optimizer.decay_share", 0),
    ("optimizer.final_lr_share", 1.1),
    ("optimizer.clip", 0),
    ("train.steps", 0),
    ("train.batch_size", 0),
    ("train.precision", "fp8\nor more"),
    ("train.log_every", 0),
    ("train.threads", 0),
    ("checkpoints.every", 0),
    ("checkpoints.steps", 3),
    ("checkpoints.steps", [-1]),
    ("checkpoints.steps", ["a"]),
    ("checkpoints.resume_every", 0),
    ("checkpoints.state_every", 0),
    ("checkpoints.keep", "some"),
    ("optimizer.name", "muom"),
    ("optimizer.momentum", 1),
    ("model.d_head", 1),
    ("model.d_head", "wide"),
    ("model.residual_dropout", 1),
    ("train.gradient_accumulation", 0),
    ("train.track", ["paper"]),
    ("train.track", "tensorboard"),
    ("seeds.init", -1),
    ("seeds.data", 2**63),
    ("seeds.eval", 0.5),
]


def refused(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        RunConfig.load(path)
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("field", "value"), WRONG, ids=str)
def test_a_wrong_value_is_refused_by_name(field: str, value: Any, tmp_path: Path) -> None:
    section, name = field.split(".")
    if isinstance(value, int) and value >= 2**63:  # more than TOML holds
        with pytest.raises(InputError, match=field):
            RunConfig().with_values({field: value})
        return
    assert field in refused(tmp_path / "run.toml", tomli_w.dumps({section: {name: value}}))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[model]\nd_modle = 4", "did you mean 'model.d_model'"),
        ("[optimizer]\nlearning_rate = 4", "no field 'optimizer.learning_rate'"),
        ("[optimiser]\nlr = 4", "no field 'optimiser'"),
        ("lr = 4", "no field 'lr'"),
        ("model = 4", "model"),
        ("[model]\nn_heads = 3", "d_model 128 must be a multiple of n_heads 3"),
        ("[model]\nn_heads = 3\nd_head = 64", "d_model 128 must be a multiple of n_heads 3"),
        ("[model]\nd_model = 12", "even d_head, not 3"),
        ("[model]\nd_head = 5", "even d_head, not 5"),
        ("[train]\ngradient_accumulation = 3", "gradient_accumulation 3 must divide batch_size 8"),
        ("[checkpoints]\nstate_every = 300", "state_every 300 must be a multiple of resume_every 250"),
        ("[model]\nn_key_value_heads = 3", "n_key_value_heads 3 must divide n_heads 4"),
        ("[optimizer]\nmomentum = 0.9", "momentum is a setting of Muon"),
        ("[model", "not valid TOML"),
        ("[model]\nn_layers = 1\nn_layers = 2", "not valid TOML"),
        ("n = " + "9" * 5000, "not valid TOML"),
        ("n = " + "[" * 5000, "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused(text: str, says: str, tmp_path: Path) -> None:
    assert says in refused(tmp_path / "run.toml", text)


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    for name, says in (("missing.toml", "no such file"), ("folder.toml", "is a folder"), ("bytes.toml", "TOML")):
        with pytest.raises(InputError, match=says):
            RunConfig.load(tmp_path / name)
    with pytest.raises(InputError, match=r"presets are .*quickstart"):
        RunConfig.load("quikstart")


def test_values_by_dotted_name() -> None:
    config = RunConfig().with_values({"optimizer.lr": 2e-3, "model.n_layers": 2})
    assert (config.optimizer.lr, config.model.n_layers, config.model.d_model) == (2e-3, 2, 128)
    for name in ("optimizer.rl", "lr", "optimizer", "modell.n_layers", "optimizer.lr.x"):
        with pytest.raises(InputError, match="no field"):
            RunConfig().with_values({name: 1})


def test_assignments_of_the_command_line() -> None:
    given = ["optimizer.lr=1e-3", "train.precision=bf16", "data.corpus=my text/a=b", "checkpoints.steps=[1, 2]"]
    assert list(parse_assignments(given).values()) == [1e-3, "bf16", "my text/a=b", [1, 2]]
    for wrong in ("optimizer.lr", "lr=3"):
        with pytest.raises(InputError, match=r"section\.field=value"):
            parse_assignments([wrong])


def test_refusing_a_configuration_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom copyscope.training.config import RunConfig\n"
        "from copyscope.training.errors import InputError\n"
        "try: RunConfig.parse({'model': {'n_layers': 0}})\n"
        "except InputError: print(sorted({'torch', 'transformers', 'polars', 'numpy'} & sys.modules.keys()))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
