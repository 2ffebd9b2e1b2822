"""A run whose heads were held while it was trained is measured with them held."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from small_demo import small_config, write_corpus

from copyscope.analyses.page.attention import Models
from copyscope.analyses.tables.ablations import ablate
from copyscope.analyses.tables.as_trained import as_trained, held
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import read_metrics
from copyscope.analyses.tables.scores import score
from copyscope.interp.models.hooked import load_hooked
from copyscope.interp.models.lens import HookedTransformer
from copyscope.training.checkpoints.average import average
from copyscope.training.config import RunConfig
from copyscope.training.data.batches import windows
from copyscope.training.data.store import open_store
from copyscope.training.errors import InputError
from copyscope.training.fork import fork
from copyscope.training.trainer import train

HEAD = {"intervention.heads": [[0, 1]]}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("held") / "corpus")


def trained(corpus: Path, folder: Path, **values: object) -> tuple[Path, RunConfig]:
    config = small_config(
        corpus,
        **{
            "train.steps": 12,
            "optimizer.lr": 0.01,
            "optimizer.warmup_steps": 1,
            "model.init_std": 0.2,
            **HEAD,
            **values,
        },
    )
    return train(config, folder), config


def loss(model: HookedTransformer, windows: torch.Tensor) -> float:
    logits = model(windows[:, :-1].long())
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten().long()))


@pytest.mark.parametrize("mode", ["zero", "previous_token", "uniform"])
def test_its_loss_is_the_one_that_training_saw(corpus: Path, tmp_path: Path, mode: str) -> None:
    folder, config = trained(corpus, tmp_path / "run", **{"intervention.mode": mode, "train.precision": "fp32"})
    run = open_run(folder)
    held_out = windows(open_store(run.store).validation, config.model.n_ctx, config.train.validation_sequences, 0)
    last = run.series.checkpoints[-1]
    model: Any = load_hooked(last.path)
    logged = read_metrics(run)["validation_loss"].drop_nulls()[-1]
    plain = loss(model, held_out)
    with as_trained(model, run, last):
        assert loss(model, held_out) == pytest.approx(logged, abs=2e-5)
    assert abs(plain - logged) > 1e-3  # without it the model is another
    assert loss(model, held_out) == plain  # and nothing is left behind


def test_held_only_while_it_was(corpus: Path, tmp_path: Path) -> None:
    values = {"intervention.mode": "previous_token", "intervention.from_step": 4, "intervention.until_step": 8}
    folder, _ = trained(corpus, tmp_path / "run", **values)
    heads = score(folder, ["previous_token"], samples=20).heads
    found = heads.filter(layer=0, head=1, measure="previous_token").sort("step")
    assert dict(found.select("step", "value").iter_rows())[8] == pytest.approx(1)
    rest = found.filter(~pl.col("step").is_in([8]))
    assert sorted(rest["step"]) == [0, 1, 2, 4, 12]
    assert rest["value"].max() < 0.9  # type: ignore[operator]


def test_a_fork_holds_them_until_its_change_ends(corpus: Path, tmp_path: Path) -> None:
    folder, _ = trained(corpus, tmp_path / "run", **{"intervention.heads": []})
    values = {"intervention.heads": [[0, 1]], "intervention.mode": "previous_token"}
    (window,) = fork(folder, 4, values, tmp_path / "window", lasting=4)
    run = open_run(window.folder)
    assert [one.step for one in run.series.checkpoints if held(run, one)] == [8]
    means = open_run(average(window.folder).folder)
    assert [bool(means.intervention(update).heads) for update in (7, 8)] == [True, False]


def test_everything_that_looks_at_it_holds_them(corpus: Path, tmp_path: Path) -> None:
    folder, _ = trained(corpus, tmp_path / "run", **{"intervention.mode": "uniform"})
    run = open_run(folder)
    block = torch.frombuffer(bytearray(Models(run).attention(12, [1, 2, 3, 4])), dtype=torch.uint8)
    assert block.view(4, 10)[1].tolist() == [255, 128, 128, 85, 85, 85, 64, 64, 64, 64]
    means = open_run(average(folder).folder)
    assert means.intervention(12) == run.intervention(12)
    ablated = ablate(folder, methods=["zero"], samples=20)
    assert ablated.height
    with pytest.raises(InputError, match=r"heads are held .* leave paths out"):
        ablate(folder, what="paths", samples=20)


def test_results_from_before_count_as_others(corpus: Path, tmp_path: Path) -> None:
    """Scores of a run of the same weights without the intervention are not taken for its own."""
    folder, _ = trained(corpus, tmp_path / "run", **{"intervention.mode": "uniform"})
    config = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(config[: config.index("[intervention]")])
    score(folder, ["previous_token"], samples=20)
    before = pl.read_parquet(folder / "results" / "heads" / "*12.parquet")
    (folder / "config.toml").write_text(config)
    score(folder, ["previous_token"], samples=20)
    assert not pl.read_parquet(folder / "results" / "heads" / "*12.parquet").equals(before)
