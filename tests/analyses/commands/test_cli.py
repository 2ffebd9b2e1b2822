"""The command line: exit codes, one clear line for bad input, results on standard output only."""

import sys
from pathlib import Path

import polars as pl
import pytest
from small_demo import small_config, write_corpus

from copyscope.analyses import cli


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
        (["train", "quickstar"], "no preset 'quickstar'"),
        (["train", str(folder / "nothing.toml")], "nothing.toml"),
        (["train", str(folder / "broken.toml")], "not valid TOML"),
        (["train", "quickstart", "--out", out, "--set", "model.n_layer=2"], "did you mean 'model.n_layers'"),
        (["train", "quickstart", "--out", out, "--set", "lr=2"], "section.field=value"),
        (["train", "quickstart", "--out", out, "--set", "optimizer.lr=fast"], "optimizer.lr"),
        (["demo", "--out", out, "--set", "model.n_ctx=40"], "55"),
        (["demo", "--out", out, "--corpus", str(folder / "nowhere")], "no such file or folder"),
        (["demo", "--out", out, "--corpus", str(folder / "empty")], "no .txt, .jsonl or .parquet"),
        (["demo", "--out", out, "--corpus", str(folder / "tiny")], "too small"),
        (["score", str(folder / "nowhere")], "no such folder"),
        (["score", str(folder / "empty")], "no checkpoint"),
        (["score", str(folder / "empty"), "--steps", "1,x"], "--steps 1,x"),
        (["map", str(folder / "empty")], "no checkpoint"),
        (["map", str(folder / "empty"), "--figures", "gif"], "--figures gif: no such format; use html"),
        (["claims", str(folder / "nowhere")], "no such folder"),
        (["claims"], "Missing argument"),
        (["report", str(folder / "nowhere")], "no such folder"),
        (["zoom", str(folder / "nowhere"), "--around", "copying"], "copyscope map"),
        (["zoom", str(folder / "nowhere"), "--from", "3"], "give --from and --to, or --around"),
        (["zoom", str(folder / "nowhere"), "--from", "3", "--around", "copying"], "not both"),
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
    assert "copyscope score" in capsys.readouterr().err
    for command in (["verify"], ["score"], ["ablate", "--method", "zero,mean"], ["map"], ["report"]):
        assert run(monkeypatch, command[0], folder, *command[1:]) == 0, capsys.readouterr().err
        assert capsys.readouterr().out.strip()
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
    assert "keeps no checkpoints" in capsys.readouterr().err
