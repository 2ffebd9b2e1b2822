"""The command line: exit codes, one clear line for bad input, results on standard output only."""

import re
import sys
from pathlib import Path

import polars as pl
import pytest
from small_demo import small_config, write_corpus

from copyscope.analyses import cli
from copyscope.analyses.commands.measuring import score_lines
from copyscope.analyses.formation.nulls import above_null


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["copyscope", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def bad_inputs(folder: Path) -> list[tuple[list[str], str]]:
    (folder / "broken.toml").write_text("steps = = 3")
    (folder / "empty").mkdir()
    (folder / "tiny").mkdir()
    (folder / "tiny" / "a.txt").write_text("copy " * 100)
    out = str(folder / "out")
    return [
        (["train", "quickstar"], "quickstar"),
        (["train", str(folder / "nothing.toml")], "nothing.toml"),
        (["train", str(folder / "broken.toml")], "broken.toml"),
        (["train", "quickstart", "--out", out, "--set", "model.n_layer=2"], "model.n_layer"),
        (["train", "quickstart", "--out", out, "--set", "lr=2"], "--set lr=2"),
        (["train", "quickstart", "--out", out, "--set", "optimizer.lr=fast"], "optimizer.lr"),
        (["train", "quickstart", "--out", out, "--explore"], "--explore"),
        (["demo", "--out", out, "--set", "model.n_ctx=40"], "model.n_ctx"),
        (["demo", "--out", out, "--corpus", str(folder / "nowhere")], "nowhere"),
        (["demo", "--out", out, "--corpus", str(folder / "empty")], "empty"),
        (["demo", "--out", out, "--corpus", str(folder / "tiny")], "too small"),
        (["score", str(folder / "nowhere")], "nowhere"),
        (["score", str(folder / "empty")], "empty"),
        (["score", str(folder / "empty"), "--steps", "1,x"], "--steps 1,x"),
        (["map", str(folder / "empty")], "empty"),
        (["map", str(folder / "empty"), "--figures", "gif"], "gif"),
        (["info", str(folder / "nowhere")], "nowhere"),
        (["claims", str(folder / "nowhere")], "nowhere"),
        (["claims"], "Missing argument"),
        (["report", str(folder / "nowhere")], "nowhere"),
        (["zoom", str(folder / "nowhere"), "--around", "copying"], "formation.json"),
        (["zoom", str(folder / "nowhere"), "--from", "3"], "--to"),
        (["zoom", str(folder / "nowhere"), "--from", "3", "--around", "copying"], "--around"),
        (["zoom", str(folder / "nowhere"), "--from", "3", "--to", "5"], "config.toml"),
        (["frobnicate"], "frobnicate"),
        (["score"], "Missing argument"),
    ]


def test_bad_input_is_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for arguments, names in bad_inputs(tmp_path):
        code = run(monkeypatch, *arguments)
        error = capsys.readouterr().err
        assert code == 2, (arguments, error)
        assert names in error, (arguments, error)
        assert "Traceback" not in error
        assert len([line for line in error.splitlines() if line.startswith("copyscope:")]) <= 1


def test_the_commands_in_turn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(small_config(write_corpus(tmp_path / "text")).to_toml())
    folder = str(tmp_path / "runs" / "one")
    assert run(monkeypatch, "train", str(config), "--out", folder) == 0
    assert run(monkeypatch, "map", folder) == 2
    assert f"copyscope score {folder}" in capsys.readouterr().err
    for command in (["verify"], ["score"], ["ablate", "--method", "zero,mean"], ["map"], ["report"]):
        assert run(monkeypatch, command[0], folder, *command[1:]) == 0, capsys.readouterr().err
        assert capsys.readouterr().out.strip()
    assert run(monkeypatch, "average", folder) == 0
    assert f"means written to {folder}/average, which now has 7;" in capsys.readouterr().out
    weights = tmp_path / "runs" / "one" / "checkpoints" / "step00000004" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-9] ^= 1
    weights.write_bytes(data)
    assert run(monkeypatch, "verify", folder) == 1
    assert "step00000004" in capsys.readouterr().out


def test_checkpoints_scored_while_training_need_not_stay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(small_config(write_corpus(tmp_path / "text")).to_toml())
    kept, gone = str(tmp_path / "kept"), str(tmp_path / "gone")
    assert run(monkeypatch, "train", str(config), "--out", kept) == 0
    assert run(monkeypatch, "score", kept) == 0
    keep_none = ["--set", "checkpoints.keep=none"]
    assert run(monkeypatch, "train", str(config), "--out", gone, "--score", *keep_none) == 0
    for kind in ("heads", "model"):
        first, second = (pl.read_parquet(f"{folder}/results/{kind}/*.parquet").drop("run") for folder in (kept, gone))
        assert first.equals(second)
    assert run(monkeypatch, "map", gone) == 0
    capsys.readouterr()
    assert run(monkeypatch, "ablate", gone) == 2
    assert "checkpoints.keep" in capsys.readouterr().err


def test_score_counts_strong_heads_apart_from_those_above_their_null() -> None:
    """Of an untrained model many heads exceed their null by a hair; none of them is a previous-token head."""
    rows = []
    for head in range(8):
        value = 0.9 if head == 7 else 0.07
        rows += [(4, 0, head, "previous_token", value), (4, 0, head, "previous_token_null", 0.05)]
        rows.append((4, 0, head, "previous_token_p", 0.001 if head else 0.5))
    table = pl.DataFrame(rows, schema=["step", "layer", "head", "measure", "value"], orient="row")
    (line,) = score_lines(above_null(table), table)
    assert re.findall(r"L\dH\d", line) == ["L0H7"]
    assert re.findall(r"\b\d+\b", line.replace("L0H7 0.90", "")) == ["1", "8", "7"]  # strong, of all, above the null
    untrained = table.with_columns(pl.when(pl.col("value") > 0.8).then(0.07).otherwise(pl.col("value")).alias("value"))
    assert "no strong" in score_lines(above_null(untrained), untrained)[0]
