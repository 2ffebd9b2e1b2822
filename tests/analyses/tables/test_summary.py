"""The summary of planted runs: verdict first, one number an event, what is unfinished or unconfirmed, removed heads."""

import json
import re
from pathlib import Path

import polars as pl
import pytest
from written_run import STEPS, config, write_run

from copyscope.analyses.formation.heads import formation_steps
from copyscope.analyses.formation.step_text import step_text
from copyscope.analyses.tables.ablation_text import breaking, in_words, removal_lines
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import score_tables
from copyscope.analyses.tables.summary import summary_lines


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", config(), copies_at=2000)


def cut(run: Path, last: int) -> None:
    """As if the run had been stopped, or looked at, when it was at step `last`."""
    for path in (run / "results").rglob("step*.parquet"):
        if int(path.stem.removeprefix("step")) > last:
            path.unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= last))


def test_the_verdict_is_first_and_there_are_ten_lines_at_most(run: Path) -> None:
    lines = summary_lines(open_run(run))
    value = score_tables(open_run(run)).model.filter(step=STEPS[-1], measure="copying_accuracy_token")["value"][0]
    assert lines[0].startswith("Copying formed:")
    assert f"{value:.3f}" in lines[0]
    assert len(lines) <= 10


def test_an_event_has_the_same_number_and_interval_wherever_it_is_told(run: Path) -> None:
    lines = summary_lines(open_run(run))
    heads = score_tables(open_run(run)).heads
    first = formation_steps(heads, "previous_token").row(by_predicate=pl.col("formed"), named=True)
    assert sum(f"L{first['layer']}H{first['head']}" in line for line in lines) >= 2
    assert sum(step_text(first) in line for line in lines) == 2  # in the order, and with its kind


def test_a_run_cut_short_says_so_and_what_is_not_certain_yet(run: Path) -> None:
    tables = score_tables(open_run(run)).heads
    high = tables.filter((pl.col("measure") == "prefix_matching_sum") & (pl.col("value") > 0.5))
    first = int(high["step"].min())  # type: ignore[arg-type]
    cut(run, first)
    lines = summary_lines(open_run(run))
    assert f"unfinished: step {first:,} of {STEPS[-1]:,}" in lines[0]
    assert lines[0].startswith("No copying yet")
    (losses,) = [line for line in lines if "random tokens repeated" in line]
    assert f"step {first:,}" in losses
    assert "the end" not in losses
    assert any("may still move" in line for line in lines)
    names = {f"L{layer}H{head}" for layer, head in high.filter(step=first).select("layer", "head").rows()}
    (induction,) = [line for line in lines if line.startswith("Induction heads")]
    assert "unconfirmed" in induction
    assert any(name in induction for name in names)
    assert not any(f"{STEPS[-1]:,} updates" in line for line in lines)


def test_a_finished_run_scored_in_part_is_not_called_unfinished(run: Path) -> None:
    for path in (run / "results").rglob("step*.parquet"):
        if int(path.stem.removeprefix("step")) > STEPS[-5]:
            path.unlink()
    assert "unfinished" not in summary_lines(open_run(run))[0]
    assert f"scored up to step {STEPS[-5]:,}" in summary_lines(open_run(run))[0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"estimate": 1372.6, "low": 1250.0, "high": 1527.2, "bracket_low": 1250}, "1,373 (1,250–1,527)"),
        (
            {"estimate": 3000.0, "low": 2e3, "high": 4e3, "bracket_low": 2000, "provisional": True},
            "3,000 (2,000–4,000, may still move)",
        ),
        ({"estimate": 80.0, "low": 0.0, "high": 250.0, "bracket_low": 0}, "by 250"),
        ({"estimate": None, "low": None, "high": None, "bracket_low": 0, "bracket_high": 250}, "by 250"),
        (
            {"estimate": 900.0, "low": 0.0, "high": 2000.0, "bracket_low": 0, "began_earlier": True},
            "by 2,000 (under way at the first checkpoint)",
        ),
        (
            {
                "estimate": 1372.6,
                "low": 1250.0,
                "high": 1527.2,
                "bracket_low": 1250,
                "stages": 2,
                "first_stage": 899.7,
                "second_stage": 2100.2,
            },
            "1,373 (1,250–1,527, in two stages, 900 and 2,100)",
        ),
    ],
)
def test_a_step_in_words(row: dict[str, float | None], said: str) -> None:
    assert step_text(row) == said


def effects(values: dict[tuple[int, int], tuple[float, float, float]], method: str = "zero") -> pl.DataFrame:
    """Effects on accuracy, copying loss and natural loss of each head."""
    names = ("copying_accuracy_token", "copying_loss", "natural_loss")
    rows = []
    for (layer, head), changes in values.items():
        for name, change in zip(names, changes, strict=True):
            rows += [(8, layer, head, method, name, change), (8, layer, head, method, f"{name}_se", 0.02)]
    return pl.DataFrame(rows, schema=["step", "layer", "head", "method", "measure", "value"], orient="row")


EFFECTS = {
    (0, 0): (-0.02, 0.3, 0.1),
    (0, 1): (-0.49, 3.0, 1.5),
    (1, 0): (-0.48, 4.0, 0.2),
    (1, 1): (-0.46, 2.0, 0.1),
    (2, 0): (0.0, 0.01, 0.0),
    (2, 1): (-0.3, 1.0, 0.0),
}
HELD = {
    (0, 0): (0.0, 0.0, 0.0),
    (0, 1): (-0.4, 2.5, 1.4),
    (1, 0): (0.0, 0.1, 0.0),
    (1, 1): (-0.3, 1.5, 0.1),
    (2, 0): (0.0, 0.0, 0.0),
    (2, 1): (-0.2, 0.8, 0.0),
}


def test_all_heads_that_break_copying_are_named_worst_first() -> None:
    table = effects(EFFECTS)
    wide = table.pivot("measure", index=["layer", "head"], values="value")
    assert breaking(wide, 0.5).select("layer", "head").rows() == [(1, 0), (0, 1), (1, 1)]
    assert breaking(wide, None).is_empty()
    first = removal_lines(table, 0.5)[0]
    assert re.findall(r"L\dH\d", first) == ["L1H0", "L0H1", "L1H1"]
    assert re.findall(r"L\dH\d", in_words("heads", table, 0.5)[0])[-3:] == ["L1H0", "L0H1", "L1H1"]


def test_copying_loss_stands_beside_its_controls_and_natural_loss() -> None:
    control = effects(dict.fromkeys(EFFECTS, (0.0, 0.4, 0.0))).filter(measure="copying_loss")
    layer = pl.concat([effects(EFFECTS), control.with_columns(measure=pl.lit("copying_loss_control"))])
    both = pl.concat([layer, control.with_columns(pl.lit("copying_loss_matched").alias("measure"), value=pl.lit(1.9))])
    lines = {"both": removal_lines(both, 0.5)[1], "layer": removal_lines(layer, 0.5)[1]}
    assert "L1H0 +4.00 (matched heads +1.90), natural loss +0.20" in lines["both"]
    assert "L1H0 +4.00 (other heads of its layer +0.40), natural loss +0.20" in lines["layer"]
    assert "L1H0 +4.00 ± 0.02 (matched heads +1.90), natural loss +0.20" in in_words("heads", both, 0.5)[0]


def test_heads_that_act_through_attention_alone_are_named() -> None:
    both = pl.concat([effects(EFFECTS), effects(HELD, "frozen_patterns")])
    cost = removal_lines(both, 0.5)[1]
    assert re.search(r"(L\dH\d.*) only steer", cost.rpartition(". ")[2])
    assert re.findall(r"L\dH\d", cost.rpartition(". ")[2]) == ["L1H0", "L0H0"]
    assert "steer" not in removal_lines(effects(EFFECTS), 0.5)[1]


def test_of_a_model_that_does_not_copy_no_head_is_said_to_break_copying() -> None:
    (line,) = removal_lines(effects(EFFECTS), 0.001)
    assert "break" not in line


def test_a_layer_that_cannot_be_left_out_is_not_a_nan() -> None:
    row = {
        "step": 8,
        "method": "mean",
        "search": "keep",
        "unit": "layers",
        "layer": 0,
        "head": None,
        "reached": True,
        "accuracy": 0.5,
        "clean": 0.5,
        "control": float("nan"),
    }
    (line,) = in_words("sets", pl.DataFrame([row, row | {"layer": 1}], schema_overrides={"head": pl.Int64}))
    assert "nan" not in line
    assert "no layer can be left out" in line
