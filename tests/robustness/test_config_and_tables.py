"""Configurations and tables with anything in them: one line, or the same thing back."""

import random
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from copyscope.analyses.formation.heads import formation_steps
from copyscope.training.config import PRESETS, RunConfig
from copyscope.training.errors import InputError

FIELDS = [
    f"{section}.{field}" for section, fields in RunConfig().model_dump(exclude={"fork"}).items() for field in fields
]
VALUES = st.one_of(
    st.integers(),
    st.floats(allow_nan=True),
    st.booleans(),
    st.none(),
    st.text(max_size=20),
    st.lists(st.integers(-2, 9)),
    st.sampled_from(["auto", "all", "zero", "cosine", [[0, 0]], {"a": 1}, 1, 2, 64, 0.5]),
)


def one_line(message: str, *names: str) -> None:
    """It is one line and has at least one of the names in it."""
    assert "\n" not in message
    assert any(name in message for name in names), message


@examples(300)
@given(changes=st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=3))
def test_a_configuration_is_refused_or_comes_back(changes: dict[str, Any]) -> None:
    try:
        config = RunConfig().with_values(changes)
    except InputError as error:
        one_line(str(error), *(field.split(".")[0] for field in changes))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(config.to_toml(), "utf-8")
        again = RunConfig.load(path)
    assert again == config
    assert again.run_id == config.run_id


def test_damaged_presets_are_refused_or_sound(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    refused = 0
    for number in range(300):
        draw = random.Random(number)
        data = bytearray(draw.choice(sorted(PRESETS.glob("*.toml"))).read_bytes())
        for _ in range(draw.choice([1, 1, 4])):
            place = draw.randrange(len(data))
            away = draw.choice([0, 1, 1, 40])
            data[place : place + away] = draw.choice([b"", b"\n", b"=", b"[", b'"', b"9", b"\xff", b"-", b"x"])
            data = data or bytearray(b" ")
        path.write_bytes(data)
        try:
            RunConfig.load(path)
        except InputError as error:
            refused += 1
            one_line(str(error), str(path))
    assert 30 < refused < 300


ODD_CELLS: dict[str, list[Any]] = {
    "value": [float("nan"), float("inf"), None, -5.0, 1e300],
    "step": [-1, 0, 10**12],
    "tokens": [None, 0, -7],
    "layer": [-1, 99],
    "head": [-1, 99],
    "measure": ["", "other", "<script>"],
}


def table() -> pl.DataFrame:
    rows = [
        {
            "step": step,
            "tokens": step * 10,
            "layer": layer,
            "head": head,
            "measure": "previous_token",
            "value": min(1.0, 0.02 + 0.9 * (step >= 40) * (layer == head)),
        }
        for step in (0, 10, 20, 40, 80, 160, 320)
        for layer in range(2)
        for head in range(2)
    ]
    return pl.DataFrame(rows)


@examples(150)
@given(seed=st.integers(0, 10**6))
def test_a_table_is_refused_or_gives_sound_steps(seed: int) -> None:
    draw, frame = random.Random(seed), table()
    for _ in range(draw.choice([1, 1, 2, 3])):
        how = draw.choice(["cell", "cell", "cell", "row twice", "row away", "column away", "shuffle", "steps away"])
        if how == "cell":
            name = draw.choice([name for name in ODD_CELLS if name in frame.columns] or ["value"])
            values = frame[name].to_list() if name in frame.columns else []
            if values:
                values[draw.randrange(len(values))] = draw.choice(ODD_CELLS[name])
                frame = frame.with_columns(pl.Series(name, values, dtype=frame.schema[name]))
        elif how == "row twice" and frame.height:
            frame = pl.concat([frame, frame.slice(draw.randrange(frame.height), 1)])
        elif how == "row away" and frame.height:
            frame = frame.with_row_index().filter(pl.col("index") != draw.randrange(frame.height)).drop("index")
        elif how == "column away" and frame.width:
            frame = frame.drop(draw.choice(frame.columns))
        elif how == "shuffle":
            frame = frame.sample(fraction=1, shuffle=True, seed=seed)
        elif how == "steps away" and "step" in frame.columns:
            frame = frame.filter(pl.col("step") >= draw.choice([40, 320]))
    try:
        found = formation_steps(frame, "previous_token")
    except InputError as error:
        one_line(str(error), "table")
        return
    assert found.height == frame.filter(measure="previous_token").select("layer", "head").n_unique()
    formed = found.filter("formed")
    assert (formed["bracket_low"] <= formed["bracket_high"]).all()
    assert formed["step"].is_in(frame["step"].implode()).all()


def test_the_sound_table_says_what_was_put_into_it() -> None:
    formed = formation_steps(table(), "previous_token").filter("formed").sort("layer")
    assert formed.select("layer", "head", "step").rows() == [(0, 0, 40), (1, 1, 40)]
