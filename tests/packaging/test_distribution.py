"""What is built can be installed without the repository, and lacks no file."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("training", "interp", "analyses")
BUILD = "import sys; from hatchling import build; print(getattr(build, sys.argv[1])(sys.argv[2]))"


def build(what: str, source: Path, target: Path) -> Path:
    """A wheel or an sdist, made as pip makes it, but in this environment."""
    command = [sys.executable, "-c", BUILD, f"build_{what}", str(target)]
    return target / subprocess.run(command, cwd=source, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", ROOT, folder)) as archive:
        archive.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, sdist: Path) -> Path:
    """Built from the sdist, as for whoever installs that."""
    return build("wheel", sdist, tmp_path_factory.mktemp("wheel"))


def own_files(root: Path) -> set[str]:
    """Every file of the three packages: code, presets, templates, py.typed."""
    found = (path for package in PACKAGES for path in (root / package).rglob("*") if path.is_file())
    return {str(path.relative_to(root)) for path in found if path.suffix != ".pyc"}


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert own_files(ROOT) - names == set()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {"LICENSE", "THIRD_PARTY.md"} <= {Path(name).name for name in names if "licenses" in name}


def test_the_sdist_holds_what_is_needed_to_test_it(sdist: Path) -> None:
    assert own_files(sdist) == own_files(ROOT)
    needed = ("Makefile", "README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "constraints.txt", "LICENSE",
              "tests/conftest.py", "docs/series.md", "pyproject.toml")  # fmt: skip
    assert [name for name in needed if not (sdist / name).is_file()] == []


PROGRAM = """
import sys, training, interp, analyses
from importlib.resources import files
assert all(sys.argv[1] in module.__path__[0] for module in (training, interp, analyses)), training.__path__
from copyscope.training.config import RunConfig, presets
assert {RunConfig.load(name).run_id for name in presets()}
from copyscope.analyses.page.build import page
html = page({"title": "x"}, {}, live=True)
assert "<html" in html and "Content-Security-Policy" in html
print("whole")
"""


def test_it_runs_from_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Its own files from the wheel; the libraries from this environment, to spare downloads."""
    venv, libraries = tmp_path / "venv", Path(next(path for path in sys.path if path.endswith("site-packages")))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python"), "install", "--quiet", "--no-deps",
         "--no-index", "--disable-pip-version-check", str(wheel)], check=True,
    )  # fmt: skip
    # .pth files, by which this environment finds the repository, do not count on PYTHONPATH.
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(libraries)}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    result = run(str(venv / "bin" / "python"), "-c", PROGRAM, str(venv))
    assert result.stdout == "whole\n", result.stderr
    assert run(str(venv / "bin" / "copyscope"), "--version").stdout.startswith("copyscope ")
    wrong = run(str(venv / "bin" / "copyscope"), "train", "quickstrat")
    assert wrong.returncode == 2
    assert "did you mean 'quickstart'?" in wrong.stderr


def test_one_place_says_the_version(sdist: Path) -> None:
    from importlib.metadata import version

    assert f'version = "{version("copyscope")}"' in (sdist / "pyproject.toml").read_text()
    assert f"\nversion: {version('copyscope')}\n" in (sdist / "CITATION.cff").read_text()
    assert f"\n## {version('copyscope')}" in (sdist / "CHANGELOG.md").read_text()
    assert not any("__version__" in path.read_text() for path in sdist.glob("*/__init__.py"))
