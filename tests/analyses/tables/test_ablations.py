"""`ablate` over a small run: kinds, what is stored with them, when they are computed again; the causal map's steps."""

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from small_demo import small_config, write_corpus

from copyscope.analyses.tables.ablation_kinds import KINDS
from copyscope.analyses.tables.ablation_text import in_words
from copyscope.analyses.tables.ablations import ablate, kinds, metadata, read, table_path
from copyscope.analyses.tables.causal_map import causal_map, causal_steps
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.scores import score
from copyscope.interp.ablation.hooks import sweep_heads
from copyscope.training.checkpoints.series import Checkpoint, CheckpointSeries
from copyscope.training.errors import InputError
from copyscope.training.trainer import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    return train(small_config(write_corpus(root / "text")), root / "one")


@pytest.mark.parametrize("what", [kind for kind in KINDS if kind != "sets"])
def test_kinds(run: Path, what: str) -> None:
    table = ablate(run, what=what, samples=6)
    last = open_run(run).series.checkpoints[-1]
    assert table.columns[:3] == ["run", "step", "tokens"]
    assert table["step"].unique().to_list() == [last.step]
    assert table["tokens"][0] == last.tokens
    facts = metadata(open_run(run), what, last.step)
    assert facts["copying_samples"] == 6
    assert facts["methods"] == ["mean" if what in ("pairs", "paths") else "zero"]
    assert set(facts["clean"]) == {"copying_accuracy_exact", "copying_accuracy_token", "copying_loss", "natural_loss"}
    assert all(line.startswith(what) for line in in_words(what, table))


def test_some_heads_only(run: Path) -> None:
    every = ablate(run, samples=6)
    few = ablate(run, samples=6, heads=[(1, 0), (0, "attention")])
    assert set(few.select("layer", "head").iter_rows()) == {(0, 0), (0, 1), (1, 0)}
    same = pl.col("measure").is_in(["copying_loss", "copying_accuracy_token"])
    columns = ["layer", "head", "measure", "value"]
    both = every.filter(same)[columns].join(few.filter(same)[columns], on=columns[:3])
    assert both.height == 6
    assert (both["value"] - both["value_right"]).abs().max() < 1e-6  # type: ignore[operator]
    assert ablate(run, what="pairs", samples=6, heads=[(0, 0), (1, 1)]).select("layer", "head").unique().height == 1
    with pytest.raises(InputError, match="L0H9"):
        ablate(run, samples=6, heads=[(0, 9)])
    with pytest.raises(InputError, match="only heads and pairs"):
        ablate(run, what="layers", heads=[(0, 0)])


def test_a_model_that_does_not_copy_has_no_smallest_set(run: Path) -> None:
    with pytest.raises(InputError, match="smallest set"):
        ablate(run, what="sets", samples=6)


def test_stored_results_are_not_computed_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ablate(run, methods=["zero", "mean"], samples=5)
    monkeypatch.setattr("copyscope.analyses.tables.loading.load_hooked", None)
    assert ablate(run, methods=["zero", "mean"], samples=5).equals(first)
    assert read(open_run(run)).equals(first)
    with pytest.raises(TypeError):
        ablate(run, methods=["zero", "mean"], samples=6)  # other conditions


def test_numbers_can_be_computed_again_from_the_metadata(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watch(*args, **kwargs):
        seen.append((args, kwargs))
        return sweep_heads(*args, **kwargs)

    monkeypatch.setattr("copyscope.analyses.tables.ablation_kinds.sweep_heads", watch)
    table = ablate(run, methods=["resample"], samples=9)
    args, kwargs = seen[0]
    opened = open_run(run)
    facts = metadata(opened, "heads", int(table["step"][0]))
    assert kwargs["seed"] == facts["seed"] == opened.eval_seed
    again = sweep_heads(*args, **(kwargs | {"progress": None, "seed": facts["seed"], "max_bytes": 1}))
    assert again["value"].to_list() == pytest.approx(table["value"].to_list(), abs=1e-5, nan_ok=True)


def test_bad_input(run: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'pairs'"):
        ablate(run, what="pair")
    with pytest.raises(InputError, match="unknown ablation method"):
        ablate(run, methods=["frozen_patterns"], what="paths")
    with pytest.raises(InputError, match="samples=0"):
        ablate(run, samples=0)
    with pytest.raises(InputError, match="--what layers"):
        read(replace(open_run(run), folder=run / "nowhere"), "layers")
    assert kinds(["pairs", "heads"]) == ["heads", "pairs"]
    assert kinds(["all"]) == list(KINDS)


def test_a_damaged_table_is_named(run: Path) -> None:
    table = ablate(run, samples=4)
    path = table_path(open_run(run), "heads", int(table["step"][0]))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged"):
        read(open_run(run))
    assert ablate(run, samples=4).equals(table)


def test_causal_map_beside_the_scores(run: Path) -> None:
    score(run, samples=4)
    steps = [c.step for c in open_run(run).series.checkpoints][-2:]
    found = causal_map(run, steps, samples=4)
    heads = open_run(run).config
    assert heads is not None
    n = heads.model.n_layers * heads.model.n_heads
    assert found.heads.height == 2 * n
    assert {"effect", "effect_se", "induction_score", "previous_token"} <= set(found.heads.columns)
    effects = read(open_run(run)).filter(pl.col("measure") == "copying_loss")
    joined = found.heads.join(effects, on=["step", "layer", "head"])
    assert (joined["effect"] == joined["value"]).all()
    for row in found.layers.iter_rows(named=True):
        own = found.heads.filter(step=row["step"], layer=row["layer"])
        assert abs(row["effect"]) == own["effect"].abs().max()
    assert set(found.agreement["step"]) == set(steps)
    with pytest.raises(InputError, match="no measure 'copying_los'"):
        causal_map(run, steps, measure="copying_los", samples=4)


def test_steps_are_chosen_around_the_formation(run: Path, tmp_path: Path) -> None:
    opened = open_run(run)
    many = tuple(Checkpoint(step, None, "nowhere") for step in range(0, 1001, 10))
    series = CheckpointSeries(opened.series.source, many)
    faked = replace(opened, folder=tmp_path, series=series)
    even = causal_steps(faked, 6)
    assert even == [0, 200, 400, 600, 800, 1000]
    (tmp_path / "results").mkdir()
    order = [{"stage": "induction head", "step": 300, "bracket_low": 200}]
    (tmp_path / "results" / "formation.json").write_text(json.dumps({"order": order, "heads": {}}))
    chosen = causal_steps(faked, 12)
    assert len(chosen) == 12
    assert sum(200 <= s <= 300 for s in chosen) == 6
    assert {0, 200, 300, 1000} <= set(chosen)
    with pytest.raises(InputError, match="at least 2"):
        causal_steps(faked, 1)
