"""Five hundred odd command lines: each ends with code 0, 1 or 2, and says in a line or a usage text what is wrong."""

import random
import string
import sys
from collections import Counter
from pathlib import Path

import pytest
from damage import write_series

from copyscope.analyses import cli
from copyscope.analyses.tables.scores import score
from copyscope.training.config import RunConfig

COUNT = 500
ODD = [
    "",
    " ",
    "-",
    "--",
    "-1",
    "0",
    "7",
    "1e9",
    "9" * 40,
    "NaN",
    "inf",
    "None",
    "null",
    "true",
    "a,b",
    ",",
    ",,,",
    "0,",
    "1.5",
    "0x10",
    "../../etc",
    "/dev/null",
    "/proc/self/environ",
    "/root/../..",
    "~",
    "~nobody/x",
    "x" * 5000,
    "a/" * 300,
    "ünïcøde",
    "\udcff\udc80",
    "\x1b[31mred\x1b[0m",
    "a\nb",
    "\u202eabc",
    "org/model@",
    "@",
    "a@b",
    "org/x@step1",
    "C:\\x",
    "*.toml",
    "$(false)",
    "'; --",
    "=",
    "a=b",
    "model.n_layers=",
    "model.n_layers=[",
    "model.n_layers=0",
    "optimizer.lr=nan",
    "optimizer.lr=1e400",
    'data.corpus="\\u0000"',
    "data.corpus=hf:",
    "data.corpus=hf::::",
    "train.steps=99999999999999999999",
    "seeds.init=-1",
    "intervention.heads=[[9,9]]",
    "model=3",
    ".=1",
    "a.b.c=1",
    "--help",
    "--json",
    "--version",
    "html,gif",
    "zero,zero",
    "all",
    "heads,all",
    "L1H0",
    "L0H99",
    "formation",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series, a scored one, an empty folder, a configuration whose corpus is not there, a sweep that is no sweep."""
    folder = tmp_path_factory.mktemp("place")
    write_series(folder / "series")
    score(write_series(folder / "scored"), samples=2)
    (folder / "empty").mkdir()
    config = RunConfig().with_values({"data.corpus": str(folder / "no-such-text"), "train.steps": 1})
    (folder / "config.toml").write_text(config.to_toml())
    (folder / "sweep.toml").write_text("base = 3\n")
    return folder


def command_line(number: int, place: Path) -> list[str]:
    """A sensible command with one or two of its words made odd, or an odd one put in."""
    draw = random.Random(number)
    series, scored, out = (str(place / name) for name in ("series", "scored", "out"))
    words = list(
        draw.choice(
            [
                ["score", series, "--samples", "2", "--measures", "previous_token", "--steps", "0", "--seeds", "0"],
                [
                    "ablate",
                    series,
                    "--samples",
                    "2",
                    "--prompts",
                    "1",
                    "--method",
                    "zero",
                    "--what",
                    "heads",
                    "--steps",
                    "300",
                ],
                ["map", scored, "--measures", "previous_token", "--figures", "html"],
                ["claims", scored, "--factor", "train.batch_size", "--out", out],
                ["verify", series],
                ["report", scored, "--out", out],
                ["zoom", series, "--from", "1", "--to", "2", "--every", "1"],
                ["zoom", series, "--around", "copying"],
                ["train", str(place / "config.toml"), "--out", out, "--set", "train.steps=1"],
                ["demo", "--preset", str(place / "config.toml"), "--out", out, "--set", "train.steps=1"],
                ["push", series, "org/name"],
                ["sweep", str(place / "sweep.toml"), "--out", out, "--engine", "local", "--jobs", "1"],
                ["study", "no-such-study", "--out", out],
            ]
        )
    )
    for _ in range(draw.choice([1, 1, 2])):
        odd = draw.choice([*ODD, "".join(draw.choices(string.printable.strip(), k=draw.randrange(1, 30)))])
        if draw.random() < 0.2:
            words.insert(draw.randrange(len(words) + 1), odd)
        else:
            words[draw.randrange(len(words))] = odd
    return words


def test_odd_command_lines(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    codes: Counter[int] = Counter()
    for number in range(COUNT):
        words = command_line(number, place)
        if words[0] in ("train", "demo") and any("corpus" in word for word in words) and "hf:" not in str(words):
            continue  # the corpus that is not there is what keeps these short
        monkeypatch.setattr(sys, "argv", ["copyscope", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        code, error = int(stopped.value.code or 0), capsys.readouterr().err
        assert code in (0, 1, 2), (words, error)
        assert "Traceback" not in error
        assert not set(error) & set(map(chr, (*range(9), *range(11, 32)))), (
            words,
            error,
        )  # nor colours, bells, returns
        if code == 2:
            last = error.strip().splitlines()[-1]
            assert last.startswith(("copyscope: ", "Error: ")), (words, error)
            assert len(last) > 20, (words, error)
        codes[code] += 1
    assert codes[2] > 0.6 * COUNT
    assert codes[0] > 10
