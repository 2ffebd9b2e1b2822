"""The core does without every extra, and what needs one says which."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from written_run import config, write_run

from copyscope.training.errors import InputError

EXTRAS = (
    "matplotlib",
    "gguf",
    "anywidget",
    "ipywidgets",
    "ray",
    "submitit",
    "starlette",
    "uvicorn",
    "dash",
    "tensorboard",
    "wandb",
    "trackio",
    "mkdocs",
    "mkdocstrings",
    "selenium",
    "nbformat",
    "nbclient",
    "ipykernel",
    "IPython",
    "pytest",
    "hypothesis",
    "beartype",
)
# Those that import an extra as a whole: nothing imports them but a function that asks for the extra.
NEED_ONE = {
    "copyscope.analyses.figures.paper": "matplotlib",
    "copyscope.analyses.figures.paper_matrix": "matplotlib",
    "copyscope.analyses.figures.paper_panels": "matplotlib",
    "copyscope.analyses.studies.context_figure": "matplotlib",
    "copyscope.analyses.studies.drawing": "matplotlib",
    "copyscope.analyses.studies.figures": "matplotlib",
    "copyscope.analyses.studies.fork_figures": "matplotlib",
    "copyscope.analyses.studies.passes_figure": "matplotlib",
    "copyscope.analyses.explorer.server": "starlette",
    "copyscope.analyses.explorer.widget": "anywidget",
    "copyscope.training.engines.ray_cluster": "ray",
    "copyscope.training.engines.slurm": "submitit",
}
PROGRAM = f"""
import importlib, pkgutil, sys

class Without:
    # Finds what another finder finds, but nothing of an extra.
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {EXTRAS!r} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
seen = 0
for module in pkgutil.walk_packages(importlib.import_module("copyscope").__path__, "copyscope."):
    if module.name == "copyscope.__main__":
        continue
    seen += 1
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(module.name, str(error.name).partition(".")[0])
assert seen > 100, seen
"""


def test_every_module_but_those_of_an_extra_imports_without_any() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    failed = dict(line.split() for line in result.stdout.splitlines())
    assert {name: package for name, package in failed.items() if NEED_ONE.get(name) != package} == {}


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch):
    """Makes packages as good as not installed."""
    import importlib.util

    real = importlib.util.find_spec

    def take_away(*packages: str) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
            monkeypatch.delitem(sys.modules, name)
        for name in packages:
            monkeypatch.setitem(sys.modules, name, None)

        def find_spec(name: str, package: str | None = None):
            return None if name in packages else real(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)
        for module in ("copyscope.training.engines", "copyscope.training.tracking"):
            monkeypatch.setattr(f"{module}.find_spec", find_spec)
        for module in NEED_ONE:
            monkeypatch.delitem(sys.modules, module, raising=False)

    return take_away


def copyscope(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that must end with code 2."""
    from copyscope.analyses import cli

    monkeypatch.setattr(sys, "argv", ["copyscope", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2, error
    assert len(error.splitlines()) == 1
    return error


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", config(), copies_at=2000)


def test_figures(without, scored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    without("matplotlib")
    assert "copyscope[figures]" in copyscope(monkeypatch, capsys, "map", str(scored), "--figures", "png")
    from copyscope.analyses.notebook import attention, film

    for draw in (lambda: attention(scored, "L0H0"), lambda: film(scored, "L0H0", scored / "film.gif")):
        with pytest.raises(InputError, match=r"copyscope\[figures\]"):
            draw()


def test_explore(without, scored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    without("starlette", "uvicorn")
    assert "copyscope[explore]" in copyscope(monkeypatch, capsys, "explore", str(scored), "--no-browser")


def test_gguf(without, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF and more")
    without("gguf")
    assert "copyscope[gguf]" in copyscope(monkeypatch, capsys, "score", str(tmp_path / "x.gguf"))


def test_notebook(without, scored: Path) -> None:
    without("anywidget")
    from copyscope.analyses.notebook import prompt_widget

    with pytest.raises(InputError, match=r"copyscope\[notebook\]"):
        prompt_widget(scored)


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_engines(
    engine: str,
    package: str,
    without,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "sweep.toml").write_text('base = "quickstart"\n[grid]\n"seeds.init" = [0, 1]\n')
    without(package)
    arguments = ("sweep", str(tmp_path / "sweep.toml"), "--out", str(tmp_path / "out"), "--engine", engine)
    assert f"copyscope[{engine}]" in copyscope(monkeypatch, capsys, *arguments)


def test_trackers(without, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("copy " * 1000)
    without("tensorboard")
    said = copyscope(
        monkeypatch,
        capsys,
        "train",
        "quickstart",
        "--out",
        str(tmp_path / "run"),
        "--set",
        f"data.corpus={tmp_path / 'text'}",
        "--set",
        'train.track=["tensorboard"]',
    )
    assert "copyscope[track]" in said


def test_what_extras_there_are() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    others = {"docs", "explore", "figures", "gguf", "notebook", "ray", "slurm", "track"}
    assert {*others, "lm-eval", "dev"} == extras.keys()  # without lm-eval in dev: what it installs is large
    assert "copyscope[docs,explore,figures,gguf,notebook,ray,slurm,track]" in extras["dev"]  # so that tests cover them
    names = {re.split(r"[<>=\[]", line)[0] for line in project["dependencies"]}
    assert not names & set(EXTRAS)


def test_everything_is_pinned() -> None:
    """constraints.txt names a version of every package that the project asks for."""
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    names = {re.split(r"[<>=\[]", line)[0].replace("_", "-") for line in asked} - {"copyscope"}
    pins = [line.split("==") for line in (root / "constraints.txt").read_text().split()]
    assert names - {name.replace("_", "-") for name, _ in pins} == set()
    assert len(pins) == len({name.lower() for name, _ in pins})
