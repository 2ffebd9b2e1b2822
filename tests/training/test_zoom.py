"""A replay gives the very weights of the run, at any step; one that does not is kept apart."""

import shutil
from pathlib import Path

import pytest
from small_run import small_config, weights, write_corpus

from copyscope.training.checkpoints.series import CheckpointSeries
from copyscope.training.checkpoints.verify import verify
from copyscope.training.config import RunConfig
from copyscope.training.errors import InputError
from copyscope.training.trainer import train
from copyscope.training.zoom import zoom

STATES = {"checkpoints.resume_every": 3, "checkpoints.state_every": 6, "model.attention_dropout": 0.1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture(scope="module")
def dense(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with every step saved."""
    config = small_config(corpus, {**STATES, "checkpoints.every": 1})
    return train(config, tmp_path_factory.mktemp("dense") / "run")


@pytest.fixture
def run(corpus: Path, tmp_path: Path) -> Path:
    return train(small_config(corpus, STATES), tmp_path / "run")


@pytest.mark.parametrize(("start", "end", "every", "added"), [(5, 11, 1, [5, 6, 7, 9, 10, 11]), (13, 20, 3, [13, 19])])
def test_the_new_steps_are_those_of_the_run(
    run: Path, dense: Path, start: int, end: int, every: int, added: list[int], logged: list[str]
) -> None:
    result = zoom(run, start, end, every)
    assert (result.added, result.differs, result.folder) == (added, [], run)
    assert any(f"replaying steps {0 if start == 5 else 12}" in text for text in logged)
    series = CheckpointSeries.open(run)
    assert [c.step for c in series.checkpoints] == sorted({0, 1, 2, 4, 8, 12, 16, 20, *added})
    assert all(weights(run, step) == weights(dense, step) for step in added)
    assert [problem for problem in verify(series) if "jump" not in problem.what] == []
    assert not (run / "zoom" / f"{start}-{end}-{every}").exists()
    assert zoom(run, start, end, every).added == []


def test_the_steps_of_a_run_by_muon(corpus: Path, tmp_path: Path) -> None:
    muon = {**STATES, "optimizer.name": "muon"}
    dense = train(small_config(corpus, {**muon, "checkpoints.every": 1}), tmp_path / "dense")
    run = train(small_config(corpus, muon), tmp_path / "run")
    assert zoom(run, 13, 15).added == [13, 14, 15]
    assert all(weights(run, step) == weights(dense, step) for step in (13, 14, 15))


def test_a_state_of_another_optimizer_is_not_used(corpus: Path, tmp_path: Path, logged: list[str]) -> None:
    run = train(small_config(corpus, STATES), tmp_path / "run")
    config = RunConfig.load(run / "config.toml")
    (run / "config.toml").write_text(config.with_values({"optimizer.name": "muon"}).to_toml())
    assert zoom(run, 13, 15).differs
    assert sum("momentum_buffer" in text for text in logged) == 2  # steps 12 and 6


def test_a_replay_that_differs_is_kept_apart(run: Path) -> None:
    config = RunConfig.load(run / "config.toml")
    (run / "config.toml").write_text(config.with_values({"optimizer.lr": 1.001e-3}).to_toml())
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    result = zoom(run, 13, 15)
    assert (result.added, result.differs) == ([], [16])
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before
    assert [c.step for c in CheckpointSeries.open(result.folder).checkpoints] == [13, 14, 15, 16]


def test_an_interrupted_zoom_goes_on(run: Path, dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from copyscope.training import trainer

    real, seen = trainer.save_state, []

    def power_cut(root: Path, *rest: object) -> None:
        real(root, *rest)  # type: ignore[arg-type]
        seen.append(root)
        if len(seen) == 2:
            raise RuntimeError("power cut")

    monkeypatch.setattr(trainer, "save_state", power_cut)
    with pytest.raises(RuntimeError):
        zoom(run, 1, 10)
    result = zoom(run, 1, 10)
    assert result.added == [3, 5, 6, 7, 9, 10]
    assert all(weights(run, step) == weights(dense, step) for step in result.added)


def test_wrong_steps_and_lost_tokens_are_one_clear_line(run: Path) -> None:
    for start, end, every in ((-1, 3, 1), (3, 2, 1), (3, 21, 1), (1, 3, 0)):
        with pytest.raises(InputError, match=r"give 0 <= from <= to <= 20"):
            zoom(run, start, end, every)
    shutil.rmtree(run.parent / "tokens")
    with pytest.raises(InputError, match=r"tokens are not in .* any more"):
        zoom(run, 1, 3)
