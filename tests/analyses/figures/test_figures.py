"""Figures: the numbers drawn are the table's, on a fixed scale, in the right place."""

import json
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import checkpoint_steps, model_table, series_table, synthetic_run

from copyscope.analyses.figures import figures
from copyscope.analyses.figures.axis import step_axis, step_label, step_word
from copyscope.analyses.formation.heads import copying_formation, formation_map, formation_steps, loss_settled
from copyscope.analyses.formation.step_text import step_number, step_text
from copyscope.training.errors import InputError

RUN = synthetic_run()


def of_type(figure: go.Figure, kind: type) -> list[Any]:
    return [trace for trace in figure.data if isinstance(trace, kind)]


def test_cell_edges_are_geometric_means() -> None:
    axis = step_axis([0, 1, 4, 16, 100])
    edges = axis.edges(np.array([1, 4, 16, 100]))
    assert 10 ** edges[1:4] == pytest.approx([2, 8, 40])
    assert 10 ** edges[0] == pytest.approx(10**-0.15)
    assert 10 ** edges[-1] == pytest.approx(100 * 10**0.15)
    assert axis.zero is not None
    assert axis.zero[1] < edges[0]  # step 0's slot stands apart


@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=30))
def test_positions_keep_the_order_and_stay_inside(steps: set[int]) -> None:
    known = np.array(sorted(steps))
    axis = step_axis(steps)
    at = axis.positions(known)
    assert (np.diff(at) > 0).all()
    assert at[0] >= axis.low
    assert at[-1] <= axis.high
    ticks, words = axis.ticks()
    assert len(ticks) == len(words) == len(set(words))
    assert ("0" in words) == (0 in steps)
    positive = known[known > 0]
    if len(positive):
        edges = axis.edges(positive)
        assert (np.log10(positive) > edges[:-1]).all()
        assert (np.log10(positive) < edges[1:]).all()


def test_ticks_are_readable() -> None:
    assert step_axis(checkpoint_steps()).ticks()[1] == ["0", "1", "10", "100", "1k"]
    assert step_axis(range(1000, 2001, 50)).ticks()[1][0] == "1k"
    words = {0: "0", 64: "64", 1000: "1k", 1250: "1.25k", 143_000: "143k", 2_000_000: "2M"}
    assert [step_label(step) for step in words] == list(words.values())


def test_the_map_shows_the_tables_values() -> None:
    figure = figures.formation_map_figure(RUN.heads, "previous_token")
    later, zero = of_type(figure, go.Heatmap)
    expected = formation_map(RUN.heads, "previous_token").values
    assert np.asarray(later.z) == pytest.approx(expected[:, 1:], abs=1e-6)
    assert np.asarray(zero.z)[:, 0] == pytest.approx(expected[:, 0], abs=1e-6)
    assert len(later.x) == later.z.shape[1] + 1
    layout: Any = figure.layout
    assert list(layout.yaxis.ticktext)[:5] == ["L0H0", "L0H1", "L0H2", "L0H3", "L1H0"]
    assert layout.yaxis.range[0] > layout.yaxis.range[1]  # layer 0 on top
    assert len([shape for shape in layout.shapes if shape.y0 == shape.y1]) == 3  # lines between four layers


@pytest.mark.parametrize(("measure", "low", "high"), [("previous_token", 0, 1), ("induction_score", -1, 1)])
def test_the_colour_scale_is_fixed(measure: str, low: int, high: int) -> None:
    faint = RUN.heads.with_columns(pl.col("value") * 0.01)
    for heads in (RUN.heads, faint):
        for trace in of_type(figures.formation_map_figure(heads, measure), go.Heatmap):
            assert (trace.zmin, trace.zmax) == (low, high)


def test_missing_checkpoints_are_gaps() -> None:
    lacking = RUN.heads.filter(pl.col("step") != 16)
    figure = figures.story_figure(lacking, RUN.model, RUN.metrics, maps={"previous_token": None})
    column = formation_map(RUN.heads, "previous_token").steps.tolist().index(16) - 1
    values = np.asarray(of_type(figure, go.Heatmap)[0].z)
    assert np.isnan(values[:, column]).all()
    assert np.isfinite(np.delete(values, column, axis=1)).all()
    model = RUN.model.filter(pl.col("step") != 16)
    traces: Any = figures.curves(model.vstack(RUN.model.head(0)), RUN.metrics).data
    curve = next(t for t in traces if t.name == "per token")
    assert len(curve.x) == len(checkpoint_steps()) - 1
    full = figures.story_figure(RUN.heads, model, RUN.metrics, maps={"previous_token": None})
    drawn: Any = full.data
    gap = next(t for t in drawn if t.name == "per token")
    assert np.isnan(np.asarray(gap.y, dtype=float)).sum() == 1
    assert gap.connectgaps is False


def test_formation_markers_stand_at_the_formation_steps() -> None:
    found = formation_steps(RUN.heads, "prefix_matching_sum")
    figure = figures.formation_map_figure(RUN.heads, "prefix_matching_sum", found)
    marks = next(trace for trace in of_type(figure, go.Scatter) if trace.name == "formed")
    formed = found.filter("formed")
    assert list(marks.y) == [row["layer"] * 4 + row["head"] for row in formed.iter_rows(named=True)]
    steps = [step_number(row) for row in formed.iter_rows(named=True)]
    assert 10 ** np.asarray(marks.x) == pytest.approx(steps)
    assert marks.marker.color == figures.VERMILLION
    words = [note.text for note in figure.layout.annotations]  # type: ignore[union-attr]
    assert {step_word(step) for step in steps} <= set(words)
    assert all(step_text(row) in hover for row, hover in zip(formed.iter_rows(named=True), marks.text, strict=True))


def test_the_story_shares_one_step_axis() -> None:
    maps = {m: formation_steps(RUN.heads, m) for m in ("previous_token", "induction_score")}
    settled, copying = loss_settled(RUN.metrics), copying_formation(RUN.model)
    figure = figures.story_figure(RUN.heads, RUN.model, RUN.metrics, settled=settled, copying=copying, maps=maps)
    layout = json.loads(figure.to_json() or "")["layout"]
    axes = [layout[name] for name in layout if name.startswith("xaxis")]
    assert len(axes) == 5
    assert len({json.dumps(axis["range"]) for axis in axes}) == 1
    assert sum(axis.get("matches") is not None for axis in axes) == 4
    words = " ".join(note["text"] for note in layout["annotations"])
    assert f"at {step_word(settled.step or -1)} (" in words
    assert f"half-way at {step_word(step_number(copying.row(0, named=True)))}" in words


def test_the_story_may_begin_at_the_steps_around_what_formed() -> None:
    last = int(RUN.heads["step"].max())  # type: ignore[arg-type]
    draw = lambda span: figures.story_figure(RUN.heads, RUN.model, RUN.metrics, maps={}, span=span, title="a <b> c")  # noqa: E731
    layout = draw((100, 1000)).layout
    assert layout.xaxis.range == layout.xaxis3.range == pytest.approx((2, 3))  # type: ignore[union-attr]
    assert layout.title.text == "a &lt;b&gt; c"  # type: ignore[union-attr]
    whole, ends = draw(None).layout.xaxis.range, draw((0, last)).layout.xaxis.range  # type: ignore[union-attr]
    assert ends == pytest.approx(whole)


def test_long_metrics_are_thinned_not_distorted() -> None:
    steps = np.arange(20_000)
    metrics = pl.DataFrame({"step": steps, "tokens": steps, "loss": 10.0 - steps / 2500})
    trace = figures.curves(RUN.model, metrics).data[0]
    assert len(trace.x) <= 400  # type: ignore[attr-defined]
    shown, loss = np.asarray(trace.customdata), np.asarray(trace.y)  # type: ignore[attr-defined]
    assert loss == pytest.approx(10 - shown / 2500, abs=1e-3)


def test_ablation_bars_and_controls() -> None:
    figure = figures.ablation_figure(RUN.ablations)
    bars, controls = of_type(figure, go.Bar), of_type(figure, go.Scatter)
    assert (len(bars), len(controls)) == (2, 4)
    names = list(figure.layout.yaxis.ticktext)  # type: ignore[union-attr]
    assert names[:3] == ["L1H2", "L3H0", "L2H1"]
    for i, measure in enumerate(("copying_accuracy_token", "copying_loss")):
        matched, others = controls[2 * i : 2 * i + 2]
        for name, trace in ((measure, bars[i]), (f"{measure}_matched", matched), (f"{measure}_control", others)):
            row = RUN.ablations.filter((pl.col("measure") == name) & (pl.col("layer") == 1) & (pl.col("head") == 2))[
                "value"
            ][0]
            assert trace.x[0] == pytest.approx(row)


def test_null_figure() -> None:
    figure = figures.null_figure(RUN.heads)
    score = next(trace for trace in of_type(figure, go.Scatter) if trace.name == "score")
    assert list(score.x) == sorted(score.x, reverse=True)
    with pytest.raises(InputError, match="no measure 'induction_score_null'"):
        figures.null_figure(RUN.heads, "induction_score")


def test_one_checkpoint_one_head_and_no_step_0_still_draw() -> None:
    one = series_table({(0, 0): np.array([0.5])}, [1000], "previous_token")
    model = model_table({"copying_accuracy_token": np.array([0.1])}, [1000])
    metrics = pl.DataFrame({"step": [1000], "tokens": [1], "loss": [3.0]})
    assert figures.story_figure(one, model, metrics, maps={"previous_token": None}).data
    only_zero = series_table({(0, 0): np.array([0.5])}, [0], "previous_token")
    assert np.asarray(of_type(figures.formation_map_figure(only_zero, "previous_token"), go.Heatmap)[0].z) == 0.5


def test_bad_input() -> None:
    with pytest.raises(InputError, match="empty; ablate"):
        figures.ablation_figure(RUN.ablations.clear())
    with pytest.raises(InputError, match="no measure 'x'"):
        figures.ablation_figure(RUN.ablations, ["x"])
    with pytest.raises(InputError, match="did you mean 'previous_token'"):
        figures.formation_map_figure(RUN.heads, "previous_tokens")
    with pytest.raises(InputError, match="nothing to draw"):
        figures.curves(RUN.model.clear(), RUN.metrics.clear())


def test_text_from_tables_is_not_markup() -> None:
    hostile = "<a href='https://example.org'>x</a>"
    heads = RUN.heads.filter(pl.col("measure") == "previous_token").with_columns(measure=pl.lit(hostile))
    assert "<a" not in (figures.formation_map_figure(heads, hostile).to_json() or "").replace("\\u003c", "<")
    ablations = RUN.ablations.with_columns(method=pl.lit(hostile))
    assert "<a" not in (figures.ablation_figure(ablations).to_json() or "").replace("\\u003c", "<")


def test_nothing_uploads() -> None:
    assert figures.CONFIG["showSendToCloud"] is False
    assert figures.CONFIG["displaylogo"] is False
