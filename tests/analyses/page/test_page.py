"""The page: what it says is what the tables say, and whatever a name or a token holds, it stays text."""

import base64
import gzip
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from page_reader import read
from synthetic_run import ablation_table, synthetic_run
from written_run import FACTS, STEPS, config, write_run

from copyscope.analyses.figures.map_data import phase_change
from copyscope.analyses.formation.heads import copying_formation, formation_steps
from copyscope.analyses.formation.step_text import step_number, step_text
from copyscope.analyses.page.build import CSP, page, script_json
from copyscope.analyses.page.entry import run_entry
from copyscope.analyses.page.libraries import library
from copyscope.analyses.page.numbers import curves, effects, grid_of, pairs, significant
from copyscope.analyses.page.payload import payload
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import Run, chance, score_tables, token_counts, write_failed
from copyscope.analyses.words.plain_page import text
from copyscope.analyses.words.text import visible
from copyscope.interp.head_names import head_name
from copyscope.interp.prompts.generate import random_token_vocab
from copyscope.training.checkpoints.average import ABOUT
from copyscope.training.checkpoints.series import CheckpointSeries
from copyscope.training.data.store import COUNTS
from copyscope.training.errors import InputError

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\x00\u202e\ud800"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = write_run(tmp_path_factory.mktemp("page") / "planted", config(), copies_at=3000)
    return open_run(folder)


def test_every_score_is_in_its_place(run: Run) -> None:
    found = payload([run])
    entry = found.index["runs"][0]
    heads = score_tables(run).heads
    assert entry["steps"] == STEPS
    n_heads = entry["n_layers"] * entry["n_heads"]
    for measure in ("prefix_matching_sum", "previous_token"):
        block = np.frombuffer(found.blocks[f"scores/0/{measure}"], "<f4").reshape(len(STEPS), n_heads)
        left = np.isfinite(block).sum()
        for row in heads.filter(pl.col("measure") == measure).iter_rows(named=True):
            at = STEPS.index(row["step"]), row["layer"] * entry["n_heads"] + row["head"]
            assert block[at] == np.float32(row["value"])
            left -= 1
        assert left == 0  # every other cell is missing


def test_a_checkpoint_that_cannot_be_measured_is_a_gap(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "gap"
    shutil.copytree(run.folder, folder)
    bad, after = STEPS[3], 10 * STEPS[-1]
    for path in (folder / "results").glob(f"*/step{bad:08d}.parquet"):
        path.unlink()
    gap = open_run(folder)
    write_failed(gap, "score", [bad, after], {bad: "weights cut off", after: "no weights"})
    found = payload([gap])
    entry = found.index["runs"][0]
    assert entry["steps"] == STEPS
    assert entry["tokens"][3] is None
    block = np.frombuffer(found.blocks["scores/0/previous_token"], "<f4").reshape(len(STEPS), -1)
    assert np.isnan(block[3]).all()
    assert np.isfinite(block[[2, 4]]).any(axis=1).all()
    notes = [note for note in found.index["left_out"] if "weights" in note]
    assert len(notes) == 2  # the one after the last is named as well


def test_what_the_analysis_found_is_in_the_index(run: Run) -> None:
    entry = payload([run]).index["runs"][0]
    heads, model = score_tables(run)
    formed = formation_steps(heads, "prefix_matching_sum")
    wanted = {
        (r["layer"] * entry["n_heads"] + r["head"], step_number(r) if r["formed"] else None, r["status"])
        for r in formed.to_dicts()
    }
    assert {(r["head"], r["step"], r["state"]) for r in entry["formation"]["prefix_matching_sum"]} == wanted
    copying = copying_formation(model).filter(pl.col("measure") == "copying_accuracy_token").row(0, named=True)
    assert entry["copying"]["step"] == step_number(copying)
    stages = {row[0]: row for row in entry["tables"]["order"]["rows"]}
    assert step_text(copying) in stages["copying (accuracy)"]
    assert step_text(copying) in next(row for row in entry["tables"]["copying"]["rows"] if "per token" in row[0])
    first = formed.filter("formed").row(0, named=True)
    (row,) = [row for row in entry["tables"]["heads"]["rows"] if row[0] == head_name(first["layer"], first["head"])]
    assert step_text(first) in row
    for table in (entry["tables"][name] for name in ("order", "heads", "copying", "carriers")):
        rows = [dict(zip(table["tidy"]["columns"], values, strict=True)) for values in table["tidy"]["rows"]]
        assert len(rows) == len(table["rows"])
        # Numbers stay numbers, without an interval or a thousands separator in them.
        assert not any(isinstance(value, str) and value[:1].isdigit() for tidy in rows for value in tidy.values())
    tidy = {(r[1], r[2]): r for r in entry["tables"]["heads"]["tidy"]["rows"]}[first["layer"], first["head"]]
    assert {step_number(first), round(first["low"]), round(first["high"])} <= set(tidy)
    change = phase_change(copying_formation(model))
    assert change is not None
    assert (entry["copying"]["start"], entry["copying"]["end"]) == pytest.approx((change.low, change.high), rel=1e-6)
    assert entry["settled"]["step"] < entry["copying"]["step"]
    assert entry["curves"]["copying_accuracy_token"]["steps"] == STEPS
    assert "n_layers" in entry["config"]
    assert entry["tables"]["order"]["rows"][0][0] == "previous-token head"


def test_claims_are_judged_and_say_what_would_break_them(run: Run) -> None:
    found = payload([run]).index["claims"]
    assert len(found) == 10
    assert all(claim["verdict"] == "undecided" and claim["break_condition"] and claim["text"] for claim in found)


def test_two_runs_keep_apart(run: Run, tmp_path: Path) -> None:
    other = open_run(write_run(tmp_path / run.name, config(**{"seeds.init": 1}), copies_at=5000, seed=1))
    found = payload([run, other])
    names = [entry["name"] for entry in found.index["runs"]]
    assert len(set(names)) == 2
    assert found.blocks["scores/0/prefix_matching_sum"] != found.blocks["scores/1/prefix_matching_sum"]
    early, late = (entry["copying"]["step"] for entry in found.index["runs"])
    assert early < 4000 < late
    with pytest.raises(InputError, match="given twice"):
        payload([run, run])


def test_too_few_checkpoints_are_a_note_and_no_error(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "short", config(), copies_at=3000)
    for kind in ("heads", "model"):
        for path in sorted((folder / "results" / kind).iterdir())[2:]:
            path.unlink()
    (folder / "metrics.jsonl").write_text('{"step": 0, "loss": NaN}\n')
    found = payload([open_run(folder)])
    notes = " ".join(found.index["left_out"])
    assert notes.count("a formation step needs at least 4") == 2  # once for the run, once for its claims
    assert "when heads and copying formed: 2 checkpoints; a formation step needs at least 4" in notes
    assert found.index["runs"][0]["formation"] == {}
    assert found.index["claims"] == []
    assert read(page(found.index, found.blocks)).data["index"]  # NaN and all


def test_a_diverged_run_gets_its_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "diverged", config(), copies_at=3000)
    for kind in ("heads", "model"):
        for path in sorted((folder / "results" / kind).iterdir())[-10:]:
            pl.read_parquet(path).with_columns(value=pl.lit(math.nan)).write_parquet(path, metadata=FACTS)
    found = payload([open_run(folder)])
    assert "not a number at step" in " ".join(found.index["left_out"])
    block = np.frombuffer(found.blocks["scores/0/prefix_matching_sum"], "<f4").reshape(len(STEPS), -1)
    assert np.isnan(block[-10:]).all()
    assert np.isfinite(block[-11]).any()
    assert read(page(found.index, found.blocks)).data["index"]


def test_effects_have_their_own_steps_and_their_controls() -> None:
    planted = synthetic_run(count=12)
    grid = grid_of(planted.heads)
    error = planted.ablations.filter(pl.col("measure") == "copying_loss")
    error = error.with_columns(measure=pl.lit("copying_loss_se"), value=pl.lit(0.25))
    entries, blocks = effects(pl.concat([planted.ablations, error]), grid, "ablation/3/")
    entry = entries["zero:copying_loss"]
    assert entry["steps"] == [planted.ablations["step"][0]]
    assert entry["control"] == "ablation/3/zero:copying_loss_control"
    assert entry["matched"] == "ablation/3/zero:copying_loss_matched"
    assert {entry["control"], entry["matched"]} <= set(blocks)
    assert set(np.frombuffer(blocks[entry["se"]], "<f4")) == {0.25}
    assert not any(name.endswith("_heads") for name in entries)
    values = np.frombuffer(blocks[entry["block"]], "<f4")
    rows = planted.ablations.filter(pl.col("measure") == "copying_loss")
    wanted = {r["layer"] * 4 + r["head"]: r["value"] for r in rows.to_dicts()}
    assert [float(v) for v in values] == pytest.approx([wanted[i] for i in range(16)], abs=1e-6)
    layers = ablation_table(4, 4, 5, np.random.default_rng(0)).with_columns(head=pl.lit(None, pl.Int64))
    assert effects(layers, grid, "")[0] == {}  # those of whole layers are no heads


def test_above_null_takes_the_last_step_and_the_corrected_p() -> None:
    rows = [
        (step, layer, 0, name, value)
        for step in (0, 10)
        for layer, p in enumerate((0.9, 0.01))
        for name, value in (
            ("previous_token", 0.5),
            ("previous_token_null", 0.1),
            ("previous_token_p", p if step else 1 - p),
        )
    ]
    table = pl.DataFrame(rows, schema=["step", "layer", "head", "measure", "value"], orient="row")
    assert significant(table, grid_of(table)) == {"previous_token": [1]}


def test_long_training_curves_are_thinned_and_keep_their_end() -> None:
    metrics = pl.DataFrame({"step": range(5000), "loss": [1.0] * 4999 + [math.nan]})
    found = curves(pl.DataFrame(schema={"step": pl.Int64, "measure": pl.String, "value": pl.Float64}), metrics)
    steps = found["train_loss"]["steps"]
    assert steps is not None
    assert len(steps) <= 700
    assert steps[-1] == 4999
    json.dumps(found, allow_nan=False)


def test_the_strongest_pairs_come_first_with_the_effect_of_their_path() -> None:
    names = ["step", "source_layer", "source_head", "layer", "head", "measure", "value"]
    rows = [
        (5, 0, a, 1, b, m, f * (a + 2 * b))
        for a in (0, 1)
        for b in (0, 1)
        for m, f in (("k_composition", 0.1), ("path_score", 0.2))
    ]
    table = pl.DataFrame(rows, schema=names, orient="row")
    cut = pl.DataFrame(
        {"step": [5], "source_layer": [0], "source_head": [1], "layer": [1], "head": [1], "copying_loss": [2.5]}
    )
    grid = grid_of(table)
    found = pairs(table, cut, grid, [5])
    assert [(p["earlier"], p["later"]) for p in found] == [(1, 3), (0, 3), (1, 2), (0, 2)]
    assert [p["effect"] for p in found] == [2.5, None, None, None]
    assert found[0]["path_score"] == pytest.approx(0.6)


def test_chance_is_one_over_the_tokens_drawn_from(tmp_path: Path) -> None:
    counts = np.arange(300, dtype=np.int64) // 7 % 40
    (tmp_path / "tokens" / "s").mkdir(parents=True)
    (tmp_path / "tokens" / "s" / "counts.bin").write_bytes(counts.tobytes())
    run = Run(name="r", folder=tmp_path / "r", series=CheckpointSeries("r", ()), config=None, data={"store": "s"})
    assert chance(run) == 1 / len(random_token_vocab(torch.from_numpy(counts), 300, [0]))


def test_a_run_copied_without_its_tokens_knows_their_counts(tmp_path: Path) -> None:
    """Also its means, which lie in a folder of it; a run of before this was kept knows nothing, and says so by 0."""
    counts = np.arange(300, dtype=np.int64)
    data = {"store": "gone"}
    run = Run(name="r", folder=tmp_path / "r", series=CheckpointSeries("r", ()), config=None, data=data)
    means = replace(run, folder=run.folder / "average")
    means.folder.mkdir(parents=True)
    (means.folder / ABOUT).write_text("{}")
    assert (token_counts(run), token_counts(means), chance(run)) == (None, None, 0.0)
    (run.folder / COUNTS).write_bytes(counts.tobytes())
    for one in (run, means):
        assert (token_counts(one) == counts).all()
        assert chance(one) == 1 / len(random_token_vocab(torch.from_numpy(counts), 300, [0]))


def small_index(name: str) -> dict[str, Any]:
    return {"title": name, "summary": [name], "runs": [{name: [name]}]}


def test_blocks_come_back_byte_by_byte() -> None:
    blocks = {"scores/0/x": b"\x00\xff" * 50, "attention/0/p/1": b""}
    found = read(page(small_index("a"), blocks)).data
    for name, data in blocks.items():
        assert gzip.decompress(base64.b64decode(found[f"block-{name}"])) == data
    assert gzip.decompress(base64.b64decode(found["lib-circuitsvis"])).decode() == library("circuitsvis")


def test_hostile_text_stays_text() -> None:
    plain, hostile = (read(page(small_index(name), {f"b/{name}": b"1"})) for name in ("a", HOSTILE))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert hostile.title == json.loads(hostile.data["index"])["title"] == visible(HOSTILE)


def test_nothing_is_fetched_and_the_live_page_holds_no_data() -> None:
    offline, live = page(small_index("a"), {"b": b"1"}), page(small_index("a"), {}, "server")
    for tag, attributes in read(offline).tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert not (attributes.get(name) or "").startswith(("http", "//")), (tag, attributes)
    css = "".join(re.findall(r"<style>(.*?)</style>", offline, re.DOTALL))
    assert css
    assert "url(" not in css
    assert "@import" not in css
    assert CSP["embedded"] in offline
    assert "connect-src" not in CSP["embedded"] == CSP["kernel"]
    assert "unsafe-eval" not in CSP["server"]
    assert not {"index", "lib-circuitsvis"} & set(read(live).data)
    assert "connect-src 'self'" in live
    assert "MIT licence" in offline


@given(st.text(max_size=40))
def test_any_text_is_harmless_in_html_and_in_scripts(value: str) -> None:
    assert not set(text(value)) & set("<>\"'")
    text(value).encode("utf-8")
    encoded = script_json({value: [value]})
    encoded.encode("utf-8")
    assert not set(encoded) & set("<>&\u2028\u2029")
    assert json.loads(encoded) == {visible(value): [visible(value)]}


def test_what_cannot_be_seen_is_shown() -> None:
    assert visible("a\x00b\x7f\u202ec\ud800\td\n") == "a\u2400b\u2421\\u202ec\\ud800\td\n"


def test_the_live_page_needs_no_torch(run: Run) -> None:
    program = (
        "import sys; from copyscope.analyses.page.build import page; "
        "from copyscope.analyses.page.payload import payload; "
        f"from copyscope.analyses.tables.opening import open_run; "
        f"found = payload([open_run({str(run.folder)!r})], live=True); "
        "page(found.index, {}, 'server'); print([m for m in ('torch', 'transformers', 'scipy.stats') "
        "if m in sys.modules][:2])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "torch" not in out.stdout
    assert "transformers" not in out.stdout


def test_loss_by_position_is_the_mean_over_kinds_and_positions(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", config(), copies_at=2000)
    assert run_entry(open_run(folder), 0).fields["positions"] is None
    steps, positions = STEPS[:2], range(1, 101)
    rows = [
        ("run", step, step, position, kind, count, loss * (1 + step))
        for step in steps
        for position in positions
        for kind, count, loss in (("other", 30, 2.0 + position), ("predictable", 10, 1.0 + position))
    ]
    names = ("run", "step", "tokens", "position", "kind", "count", "loss")
    (folder / "results" / "positions").mkdir()
    for (step,), part in pl.DataFrame(rows, schema=names, orient="row").group_by("step"):
        part.write_parquet(folder / "results" / "positions" / f"step{step:08}.parquet")
    found = run_entry(open_run(folder), 0).fields["positions"]
    edges = found["edges"]
    assert (edges[0], edges[-1], found["steps"]) == (1, 101, list(steps))
    assert len(found["values"]) == len(edges) - 1 <= 32
    for (low, high), row in zip(pairwise(edges), found["values"], strict=True):
        middle = np.mean(range(low, high)) + 1.75
        assert row == pytest.approx([middle * (1 + step) for step in steps], rel=1e-3)


def test_a_reader_is_not_told_the_tables_own_words(tmp_path: Path) -> None:
    found = run_entry(open_run(write_run(tmp_path / "run", config(), copies_at=2000)), 0).fields["tables"]["heads"]
    states = {row[found["columns"].index("status")] for row in found["rows"]}
    assert {"formed", "not formed"} <= states
    assert not {"never", "weak"} & states
