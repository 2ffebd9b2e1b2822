"""What is built can be installed without the repository, lacks no file, and shares no name with anybody's own files."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import lazy_loader
import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "copyscope"
ROOMS = ("training", "interp", "analyses")
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
        assert all(member.isfile() for member in archive)  # no links: what unpacks it may not know them
        archive.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, sdist: Path) -> Path:
    """Built from the sdist, as for whoever installs that."""
    return build("wheel", sdist, tmp_path_factory.mktemp("wheel"))


def package_files(package: Path) -> dict[str, bytes]:
    """Every file of the package: code, stubs, presets, templates, py.typed; by its path below the package."""
    found = (Path(folder) / name for folder, _, names in os.walk(package, followlinks=True) for name in names)
    return {str(path.relative_to(package)): path.read_bytes() for path in found if path.suffix != ".pyc"}


def wheel_files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = wheel_files(wheel)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"copyscope"}
    packed = {name.removeprefix("copyscope/"): data for name, data in names.items() if name.startswith("copyscope/")}
    assert packed == package_files(PACKAGE)
    assert {"py.typed", "__init__.pyi", "training/presets/quickstart.toml", "analyses/page/page.html"} <= packed.keys()
    assert {"LICENSE", "THIRD_PARTY.md"} <= {Path(name).name for name in names if "licenses" in name}


def test_the_sdist_builds_the_same_wheel_as_the_repository(wheel: Path, tmp_path: Path) -> None:
    here = build("wheel", ROOT, tmp_path)
    assert here.name == wheel.name
    assert wheel_files(here) == wheel_files(wheel)


def test_the_sdist_holds_what_is_needed_to_test_it(sdist: Path) -> None:
    assert package_files(sdist / "src" / "copyscope") == package_files(PACKAGE)
    assert not any((sdist / room).exists() for room in ROOMS)  # once is enough: a second copy would go its own way
    needed = (
        "Makefile",
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "constraints.txt",
        "LICENSE",
        "tests/conftest.py",
        "docs/series.md",
        "pyproject.toml",
    )
    assert [name for name in needed if not (sdist / name).is_file()] == []


def test_an_editable_install_sees_files_made_after_it(tmp_path: Path) -> None:
    """It puts one folder on the path, where the rooms are links: nothing is listed file by file."""
    found = wheel_files(build("editable", ROOT, tmp_path))
    (line,) = [data.decode() for name, data in found.items() if name.endswith(".pth")]
    assert Path(line.strip()) == ROOT / "src"
    assert not any(name.endswith(".py") for name in found)
    for room in ROOMS:
        assert (PACKAGE / room).resolve() == (ROOT / room if (PACKAGE / room).is_symlink() else PACKAGE / room)


THEIRS = """
import interp, training
assert training.WHOSE == interp.WHOSE == "theirs", (training, interp)

import copyscope as cs
from copyscope.analyses.page.build import page
from copyscope.interp.head_names import head_name
from copyscope.training.config import RunConfig, presets
import sys
assert sys.argv[1] in cs.__path__[0], cs.__path__
assert {RunConfig.load(name).run_id for name in presets()}
html = page({"title": "x"}, {}, "server")
assert "<html" in html and "Content-Security-Policy" in html
assert training.WHOSE == "theirs" and head_name(3, 1) == "L3H1"
print("whole")
"""


def test_it_runs_from_an_empty_environment_beside_files_of_the_same_names(wheel: Path, tmp_path: Path) -> None:
    """Its own files from the wheel; the libraries from this environment, to spare downloads. The folder it is used
    from holds a training.py and an interp/ of the user's own."""
    venv, libraries = tmp_path / "venv", Path(lazy_loader.__file__).parents[1]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(venv / "bin" / "python"),
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--disable-pip-version-check",
            str(wheel),
        ],
        check=True,
    )
    work = tmp_path / "work"
    (work / "interp").mkdir(parents=True)
    for name in ("training.py", "interp/__init__.py", "analyses.py"):
        (work / name).write_text('WHOSE = "theirs"\n')
    (work / "program.py").write_text(THEIRS)
    # .pth files, by which this environment finds the repository, do not count on PYTHONPATH.
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(libraries)}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)

    python = str(venv / "bin" / "python")
    result = run(python, "program.py", str(venv))
    assert result.stdout == "whole\n", result.stderr
    for program in ([str(venv / "bin" / "copyscope")], [python, "-m", "copyscope"]):
        assert run(*program, "--version").stdout.startswith("copyscope ")
        assert run(*program, "train", "quickstrat").returncode == 2


def test_one_place_says_the_version(sdist: Path) -> None:
    from importlib.metadata import version

    assert f'version = "{version("copyscope")}"' in (sdist / "pyproject.toml").read_text()
    assert f"\nversion: {version('copyscope')}\n" in (sdist / "CITATION.cff").read_text()
    assert f"\n## {version('copyscope')}" in (sdist / "CHANGELOG.md").read_text()
    assert not any("__version__" in path.read_text() for path in (sdist / "src").rglob("__init__.py"))
