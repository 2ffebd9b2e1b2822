"""The story of planted runs: the first head of each kind, copying by the accuracy, the steps around them, removals."""

from pathlib import Path

import polars as pl
import pytest
from tiny_series import tiny_series
from written_run import STEPS, config, write_run

from copyscope.analyses.formation.heads import copying_formation, formation_steps
from copyscope.analyses.formation.step_text import step_number
from copyscope.analyses.page.entry import run_entry
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import score_tables
from copyscope.analyses.tables.story import story_of
from copyscope.training.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", config(), copies_at=2000)


def ablate(folder: Path, accuracy: float, loss: dict[tuple[int, int], float]) -> None:
    """Plants the ablation of heads at the last step: their cost in loss, and all the accuracy for the costliest."""
    worst = max(loss, key=lambda head: loss[head])
    rows = [
        (STEPS[-1], layer, head, "zero", measure, value)
        for (layer, head), cost in loss.items()
        for measure, value in (
            ("copying_loss", cost),
            ("copying_accuracy_token", -accuracy if (layer, head) == worst else 0.0),
        )
    ]
    names = ("step", "layer", "head", "method", "measure", "value")
    (folder / "results" / "ablations").mkdir()
    table = pl.DataFrame(rows, schema=names, orient="row")
    table.write_parquet(folder / "results" / "ablations" / f"step{STEPS[-1]:08}.parquet")


def test_events_are_those_of_the_tables_with_their_numbers(folder: Path) -> None:
    run = open_run(folder)
    heads, model = score_tables(run)
    story = story_of(run)
    previous, induction, copying = story.events
    row = formation_steps(heads, "previous_token").row(by_predicate=pl.col("formed"), named=True)
    assert (previous.layer, previous.head, previous.step) == (row["layer"], row["head"], step_number(row))
    assert (induction.layer, induction.head) == (1, 0)  # the shallowest forms first
    row = copying_formation(model).row(by_predicate=pl.col("measure") == "copying_accuracy_token", named=True)
    assert (copying.step, copying.measure) == (step_number(row), "copying_accuracy_token")
    assert story.line.count("→") == 2
    assert all(f"{event.step:,}" in story.line for event in story.events)


def test_the_steps_shown_reach_around_what_formed(folder: Path) -> None:
    story = story_of(open_run(folder))
    assert story.span is not None
    first, last = min(e.step or 0 for e in story.events), max(e.step or 0 for e in story.events)
    low, high = story.span
    assert first / 8 < low < first / 3  # a quarter of the interval's lower end
    assert last < high <= STEPS[-1]


def test_removing_the_costliest_head_is_the_last_event(folder: Path) -> None:
    run = open_run(folder)
    accuracy = run.model.filter(step=STEPS[-1], measure="copying_accuracy_token")["value"][0]
    ablate(folder, accuracy, {(1, 0): 0.1, (2, 1): 0.7, (0, 0): 0.3})
    removal = story_of(open_run(folder)).events[-1]
    assert (removal.kind, removal.layer, removal.head, removal.step) == ("removal", 2, 1, STEPS[-1])
    assert removal.measure == "zero:copying_loss"
    assert f"{accuracy:.2f}" in removal.text
    assert "0.00" in removal.text


def test_what_did_not_form_has_no_step_and_all_steps_are_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", config(), copies_at=1e9)
    story = story_of(open_run(folder))
    assert [event.step for event in story.events] == [None] * 3
    assert story.span is None
    fields = run_entry(open_run(folder), 0).fields["story"]
    assert (fields["from"], fields["to"]) == (None, None)
    assert [event["head"] for event in fields["events"]] == [None] * 3


def test_a_run_without_a_measure_or_with_few_checkpoints_has_no_events(tmp_path: Path) -> None:
    run = open_run(tiny_series(tmp_path / "tiny"))  # no previous-token scores
    with pytest.raises(InputError, match="previous_token"):
        story_of(run)
    entry = run_entry(run, 0)
    assert entry.fields["story"]["events"] == []
    assert any("previous_token" in note for note in entry.notes)
