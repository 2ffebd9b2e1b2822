"""`import copyscope as cs` in use: a run, its path and its source text are the same to every function."""

from pathlib import Path

import pytest
import torch
from small_demo import small_config, write_corpus
from tiny_series import N_CTX, STEPS, tiny_series
from written_run import config, write_run

import copyscope as cs
from copyscope.interp.models.hooked import model_vocabulary
from copyscope.interp.prompts.generate import drawable
from copyscope.training.errors import InputError

SAVED = (0, 1, 2, 4, 8)


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series that copyscope did not train, with planted tables."""
    return tiny_series(tmp_path_factory.mktemp("front") / "tiny")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of our own, scored."""
    place = tmp_path_factory.mktemp("front")
    settings = small_config(write_corpus(place / "text"), **{"train.steps": 8, "checkpoints.every": 4})
    run = cs.train(settings, place / "run")
    cs.score(run, samples=6)
    return run


def test_a_runs_frames_are_what_was_computed(trained: Path, public: Path) -> None:
    run = cs.open_run(trained)
    assert run.steps.select("step", "scored", "ablated").rows() == [(s, True, False) for s in SAVED]
    assert run.steps["tokens"].to_list() == [step * 2 * N_CTX for step in SAVED]
    assert run.heads.columns == ["run", "step", "tokens", "layer", "head", "measure", "value"]
    assert run.model.columns == ["run", "step", "tokens", "measure", "value"]
    assert set(run.heads["step"]) == set(run.model["step"]) == set(SAVED)
    assert run.metrics["step"].max() == 8
    other = cs.open_run(str(public))
    assert other.steps["step"].to_list() == list(STEPS)
    assert other.metrics.is_empty()


def test_frames_of_nothing_say_what_to_run(tmp_path: Path) -> None:
    from tiny_series import add_checkpoint

    add_checkpoint(tmp_path / "bare", 3)
    run = cs.open_run(tmp_path / "bare")
    assert run.steps["scored"].to_list() == [False]
    with pytest.raises(InputError, match="copyscope score"):
        run.heads  # noqa: B018


def test_a_run_is_as_good_as_its_path(trained: Path, public: Path, tmp_path: Path) -> None:
    run = cs.open_run(trained)
    assert cs.open_run(run) is run
    assert cs.score(run, samples=6).heads.equals(cs.score(str(trained), samples=6).heads)
    assert cs.ablate(run, samples=6, heads="L0H1,L1").select("layer", "head").unique().height == 3
    assert cs.open_run(trained).steps["ablated"].to_list() == [False, False, False, False, True]
    assert [p.what for p in cs.verify(run)] == [p.what for p in cs.verify(trained)] == []
    assert cs.average(run).folder == trained / "average"
    assert cs.zoom(run, 4, 8, 4).added == []
    assert cs.report(run, tmp_path / "one.html", max_megabytes=0.0).stat().st_size > 10_000
    both = cs.explore([run, public], max_megabytes=0.0).html
    assert "tiny" in both
    figure = cs.formation_map(public)
    assert figure.to_dict() == cs.formation_map(cs.open_run(public)).to_dict()


def test_claims_and_map_take_a_single_run(tmp_path: Path) -> None:
    planted = write_run(tmp_path / "planted", config(), copies_at=3000)
    run = cs.open_run(planted)
    assert cs.formation_steps(run.heads)["formed"].sum() == 4
    alone, listed = cs.claims(run), cs.claims([planted])
    assert [v.verdict for v in alone.verdicts] == [v.verdict for v in listed.verdicts]
    assert cs.map(run).formation["copying"]
    assert all(path.is_file() for path in cs.map(run).figures)


def test_the_copying_test_is_the_models_own(trained: Path) -> None:
    model = cs.load_hooked(trained, step=-1)
    test = cs.copying_test(model, n_samples=20)
    assert test.has_bos
    assert set(test.tokens[:, 0].tolist()) == {0}
    drawn = torch.cat([test.tokens[:, 1:].flatten(), test.suffix.flatten()])
    assert 0 < int(drawn.min()) <= int(drawn.max()) < model.cfg.d_vocab
    assert test.tokens.shape[1] + test.suffix.shape[1] <= N_CTX
    assert torch.equal(test.tokens, cs.copying_test(model, n_samples=20).tokens)


def test_heads_are_named_by_text_or_by_number(trained: Path) -> None:
    model = cs.load_hooked(trained, step=-1)
    test = cs.copying_test(model, n_samples=4)
    clean = model(test.tokens)
    with cs.ablate_heads(model, "L0H1,L1H0", method="mean"):
        named = model(test.tokens)
        assert isinstance(cs.copying_accuracy(model, test).token, float)
    with cs.ablate_heads(model, [(0, 1), (1, 0)], method="mean"):
        numbered = model(test.tokens)
    assert torch.equal(named, numbered)
    assert not torch.equal(named, clean)
    swept = cs.sweep_heads(model, test, methods=("zero",), heads="L1")
    assert swept.select("layer", "head").unique().sort("head").rows() == [(1, 0), (1, 1)]


def test_scores_of_a_model_use_its_own_vocabulary_and_bos(trained: Path) -> None:
    model = cs.load_hooked(trained, step=-1)
    own = cs.score_heads(model, ["previous_token", "bos_sink"])
    vocab = drawable(model_vocabulary(model))
    assert own.equals(cs.score_heads(model, ["previous_token", "bos_sink"], vocab=vocab, bos_id=0))
    assert not own.equals(cs.score_heads(model, ["previous_token", "bos_sink"], vocab=vocab))


def test_a_model_is_found_by_its_step(trained: Path, public: Path) -> None:
    run = cs.open_run(trained)
    last, first = cs.load_hooked(run, step=-1), cs.load_hooked(str(trained), step=0)
    assert torch.equal(last.W_E, cs.load_hooked(run.steps["path"][-1]).W_E)
    assert torch.equal(first.W_E, cs.load_hooked(run, step=-len(SAVED)).W_E)
    assert not torch.equal(first.W_E, last.W_E)
    for step in (3, -6):
        with pytest.raises(InputError, match=f"step={step}"):
            cs.load_hooked(trained, step=step)
