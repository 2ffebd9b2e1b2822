"""Every code block of the README and the docs runs: Python as it stands, commands in miniature.

Presets are replaced by a tiny model of the quickstart's shape, so that heads named in the docs exist. What cannot run
here is listed in ELSEWHERE with its reason; what has to be said smaller, in SMALLER. Both may hold only what the docs
hold.
"""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_demo import small_config, write_corpus

import copyscope.training.config
from copyscope.analyses.cli import app
from copyscope.analyses.studies.demo import demo
from copyscope.analyses.tables.scores import score
from copyscope.training.config import RunConfig
from copyscope.training.trainer import train

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```([a-z]*)[^\n]*\n(.*?)^```", re.M | re.S)
ELSEWHERE = {
    r"make \w+": "targets of the Makefile",
    r"accelerate launch .*|torchrun .*": "several processes: tests/training/test_processes.py",
    r"copyscope ablate .*sets.*": "needs a model that copies: tests/analyses/tables/test_ablations.py",
    r"copyscope tasks .*--lm-eval.*": "needs copyscope[lm-eval] and a data set: tests/analyses/tables/test_harness.py",
    r"copyscope tasks .*--heads.*": "needs induction heads: tests/analyses/tables/test_tasks.py",
    r"python tests/simulations/.*": "an hour of simulations: tests/analyses/claims/test_rates.py",
    r".*pip install .*": "installation: tests/packaging",
    r"copyscope explore .*": "a server that waits: tests/analyses/explorer/test_explorer.py",
    r"copyscope (sweep|study) .*": "many runs: tests/faults/test_sweep_kills.py, tests/analyses/studies/test_study.py",
    r"copyscope (score|ablate) .*--engine (ray|slurm) .*": "a cluster: tests/faults/test_clusters.py",
    r"copyscope \w+ openai-community/gpt2.*": "wants the hub: tests/series/test_hub_series.py",
    r"copyscope .*smollm2\.gguf.*": "wants a model of 100 MB: tests/interp/models/test_smollm2.py",
}
PYTHON_ELSEWHERE = {
    "induction.md": "reads committed tables: tests/docs/test_induction.py runs it and compares what it prints",
    "series.md": "wants a checkpoint of nanoGPT: tests/series/test_nanogpt.py runs it",
    "known-heads.md": "wants the hub: tests/interp/models/test_smollm2.py checks a real model",
    "smollm2.md": "wants a model of 100 MB: tests/interp/models/test_smollm2.py asks the same of it",
}
SMALLER = {
    "copyscope zoom runs/demo --around induction --every 10": "copyscope zoom runs/demo --from 4 --to 6 --every 1",
    "copyscope ablate runs/demo --over-training": "copyscope ablate runs/demo --over-training --map-steps 2",
    "copyscope fork runs/demo --at 300 --set optimizer.lr=4e-3 --placebo 3 --score --out runs/what-if": (
        "copyscope fork runs/demo --at 8 --set optimizer.lr=4e-3 --placebo 1 --score --out runs/what-if"
    ),
    "copyscope fork runs/demo --at 300 --for 100 --set optimizer.lr=16e-3 --out runs/burst": (
        "copyscope fork runs/demo --at 8 --for 2 --set optimizer.lr=16e-3 --out runs/burst"
    ),
    "copyscope fork runs/demo --at 100,300 --set optimizer.lr=4e-3 --set optimizer.lr=16e-3 --out runs/grid": (
        "copyscope fork runs/demo --at 10,11 --set optimizer.lr=4e-3 --out runs/grid"
    ),
    "copyscope train quickstart --out runs/with-states --set checkpoints.state_every=250": (
        "copyscope train quickstart --out runs/with-states --set checkpoints.state_every=4"
    ),
    "copyscope zoom runs/demo --from 1200 --to 1400 --every 1": "copyscope zoom runs/demo --from 6 --to 8 --every 1",
}


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, code) of each fenced block."""
    return FENCE.findall(page.read_text("utf-8"))


def commands(code: str) -> list[str]:
    """The command lines of a block: those that begin with a program we know; what a command prints is left out."""
    lines = code.replace("\\\n", " ").splitlines()
    found = [shlex.join(shlex.split(line, comments=True)) for line in lines if PROGRAM.match(line)]
    return [re.sub(r"^\.venv/bin/", "", line) for line in found]


PROGRAM = re.compile(r"^(\.venv/bin/)?(copyscope|make|accelerate|torchrun|pip|python3?|git|cd) ")
COMMANDS = [
    (page, line) for page in PAGES for kind, code in blocks(page) if kind != "python" for line in commands(code)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `runs/demo`, three seeds and a corpus, and the tiny preset under every preset's name."""
    place = tmp_path_factory.mktemp("docs")
    presets = place / "presets"
    presets.mkdir()
    corpus = write_corpus(place / "path" / "to" / "text")
    preset = small_config(corpus, **{"model.n_layers": 4, "model.n_heads": 4, "train.steps": 12}).to_toml()
    for name in ("quickstart", "laptop", "small", "paper", "study"):
        (presets / f"{name}.toml").write_text(preset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copyscope.training.config, "PRESETS", presets)
        patch.chdir(place)
        config = RunConfig.load("quickstart")
        demo(Path("runs/demo"), config)
        for seed in range(3):
            run = train(config.with_values({"seeds.init": seed + 1}), Path(f"runs/seed{seed}"))
            score(run, samples=4)
        yield place


PYTHON = [page for page in PAGES if any(kind == "python" for kind, _ in blocks(page))]


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.name)
def test_python_blocks_run_in_order(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    names: dict[str, object] = {"__name__": "__docs__"}
    for kind, code in blocks(page):
        if kind == "python":
            program = compile(code, str(page), "exec")
            if page.name not in PYTHON_ELSEWHERE:
                exec(program, names)


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: value.name if isinstance(value, Path) else value)
def test_commands_run(page: Path, line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    if any(re.fullmatch(pattern, line) for pattern in ELSEWHERE):
        if line.startswith("copyscope"):  # at least its options exist
            assert app([*shlex.split(line)[1:], "--help"], standalone_mode=False) in (0, None)
        return
    assert line.startswith("copyscope "), f"{page}: say in ELSEWHERE where `{line}` is tested"
    words = shlex.split(SMALLER.get(line, line))[1:]
    if words[0] == "train":  # pages train runs of one name with other settings
        shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
    scored = words[0] == "score" and "runs/demo" in words  # already, on prompts that its forks share
    if words[0] in ("score", "ablate") and "--samples" not in words and not scored:
        words += ["--samples", "4"]
    result = app(words, standalone_mode=False)
    assert result in (0, None)


def test_nothing_is_excused_that_is_not_there() -> None:
    lines = [line for _, line in COMMANDS]
    assert [line for line in SMALLER if line not in lines] == []
    assert PYTHON_ELSEWHERE.keys() <= {page.name for page in PYTHON}
    assert [p for p in ELSEWHERE if not any(re.fullmatch(p, line) for line in lines)] == []


def anchors(page: Path) -> set[str]:
    """What a link into a page may name: its headings as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", page.read_text("utf-8")):
            if not target.startswith("https://"):
                to = page.parent / target if target else page
                assert to.exists(), f"{page}: {target}"
                assert not anchor or to.suffix != ".md" or anchor in anchors(to), f"{page}: {target}#{anchor}"
