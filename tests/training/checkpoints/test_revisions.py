"""Revisions of a model on a hub: which a condition names, and what is fetched of them and kept."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from stand_in_hub import hub_of_this_process

from copyscope.training.checkpoints.keys import checkpoint_key
from copyscope.training.checkpoints.revisions import (
    CacheLimit,
    commits,
    fetch_small,
    fetch_weights,
    has_weights,
    revisions,
    select,
)
from copyscope.training.checkpoints.series import CheckpointSeries
from copyscope.training.checkpoints.verify import verify
from copyscope.training.errors import InputError

POWERS = (0, *(2**i for i in range(11)))
STAGED = (
    *(f"stage1-step{step}-tokens{step // 250}B" for step in (1000, 2000, 4000)),
    *(f"stage2-ingredient{i}-step{step}-tokens{step // 250}B" for i in (1, 2) for step in (1000, 3000)),
)


def write_revision(root: Path, repo: str, name: str, seed: int, values: int = 64) -> None:
    """A folder that looks like a model's to whoever does not load it."""
    folder = root / repo / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    weights = torch.randn(values, generator=torch.Generator().manual_seed(seed))
    save_file({"model.norm.weight": weights}, folder / "model.safetensors")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[str]]]:
    """The folder that a stand-in hub serves, and what it is asked for."""
    root = tmp_path / "hub"
    for number, name in enumerate((*(f"step{step}" for step in POWERS), "main")):
        write_revision(root, "lab/powers", name, number)
    for number, name in enumerate(STAGED):
        write_revision(root, "lab/staged", name, number)
    with hub_of_this_process(root, tmp_path / "cache", monkeypatch) as asked:
        yield root, asked


def steps(names: list[str]) -> list[int]:
    return [int(name.removeprefix("step")) for name in names]


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ("*", [*POWERS]),
        ("<=step64", [0, 1, 2, 4, 8, 16, 32, 64]),
        ("<step64", [0, 1, 2, 4, 8, 16, 32]),
        (">=step256", [256, 512, 1024]),
        (">step256", [512, 1024]),
        ("step8..step32", [8, 16, 32]),
        ("..step2", [0, 1, 2]),
        ("step512..", [512, 1024]),
        (">=step4,<=step16", [4, 8, 16]),
        ("log:4", [0, 1, 32, 1024]),  # step 0 and three from 1 to 1024: the middle one is 2^5
        ("log:2", [0, 1, 1024]),  # two of the positive steps at least
        (">=step1,log:3", [1, 32, 1024]),
        ("log:24", [*POWERS]),  # more than there are: all, each once
    ],
)
def test_conditions_on_steps(hub: tuple[Path, list[str]], condition: str, wanted: list[int]) -> None:
    assert steps(select("lab/powers", condition)[0]) == wanted


def test_names_are_taken_as_they_are_and_besides_conditions(hub: tuple[Path, list[str]]) -> None:
    assert select("lab/powers", "step4, main") == (["step4", "main"], True)
    assert hub[1] == []  # nothing need be asked for names
    assert select("lab/powers", "main,<=step1")[0] == ["step0", "step1", "main"]


def test_conditions_on_stages_and_tokens(hub: tuple[Path, list[str]]) -> None:
    assert select("lab/staged", "stage1")[0] == list(STAGED[:3])
    assert select("lab/staged", "ingredient2")[0] == list(STAGED[5:])
    assert select("lab/staged", "stage2-ingredient1,<=step1000")[0] == [STAGED[3]]
    assert select("lab/staged", "stage1,<=tokens8B")[0] == list(STAGED[:2])
    with pytest.raises(InputError, match="stage"):  # both ingredients have step 1000
        select("lab/staged", "stage2,log:4")


@pytest.mark.parametrize("condition", ["<=late", "log:1", "step5000..step6000", "stage7", "a..b", "<=step1,*x"])
def test_conditions_that_name_nothing_are_refused(hub: tuple[Path, list[str]], condition: str) -> None:
    with pytest.raises(InputError):
        CheckpointSeries.open(f"lab/powers@{condition}")


def test_a_series_of_a_condition_is_in_order_and_keeps_its_text(hub: tuple[Path, list[str]]) -> None:
    series = CheckpointSeries.open("lab/powers@log:4")
    assert [(c.step, c.revision) for c in series.checkpoints] == [(s, f"step{s}") for s in (0, 1, 32, 1024)]
    assert series.source == "lab/powers@log:4"


def test_list_of_revisions(hub: tuple[Path, list[str]]) -> None:
    found = revisions("lab/staged")
    assert [(r.stage, r.step, r.tokens) for r in found[:3]] == [
        ("stage1", 1000, 4 * 10**9),
        ("stage1", 2000, 8 * 10**9),
        ("stage1", 4000, 16 * 10**9),
    ]
    assert {r.name: r.commit for r in found} == commits("lab/staged", STAGED)
    assert [r.name for r in revisions("lab/powers")][-1] == "main"  # what has no step comes last
    assert [r.step for r in revisions("lab/powers@<=step2")] == [0, 1, 2]
    for wrong in ("lab/none", "just-a-word", "lab/powers/deep"):
        with pytest.raises(InputError, match=wrong):
            revisions(wrong)


def test_only_the_weights_that_are_read_are_fetched(hub: tuple[Path, list[str]]) -> None:
    root, asked = hub
    for extra in ("optimizer.safetensors", "consolidated.safetensors", "fp32/model.safetensors", "pytorch_model.bin"):
        (root / "lab/powers/step1" / extra).parent.mkdir(exist_ok=True)
        (root / "lab/powers/step1" / extra).write_bytes(b"x")
    folder = fetch_small("lab/powers", "step1")
    assert (folder / "config.json").is_file()
    assert not has_weights(folder)
    fetch_weights("lab/powers", folder)
    assert has_weights(folder)
    got = {Path(path).name for path in asked if "/resolve/" in path}
    assert got == {"config.json", "model.safetensors"}
    assert not (folder / "fp32").exists()


def test_a_revision_without_safetensors_is_refused_by_name(hub: tuple[Path, list[str]]) -> None:
    weights = hub[0] / "lab/powers/step2/model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    folder = fetch_small("lab/powers", "step2")
    with pytest.raises(InputError, match=r"lab/powers@step2: .*pytorch_model\.bin"):
        fetch_weights("lab/powers", folder, "step2")


def test_a_moved_branch_has_another_key(hub: tuple[Path, list[str]]) -> None:
    checkpoint = CheckpointSeries.open("lab/powers@step4").checkpoints[0]
    before = checkpoint_key(checkpoint)
    assert checkpoint_key(checkpoint) == before
    (hub[0] / "lab/powers/step4/config.json").write_text('{"model_type": "llama", "rope_theta": 50}')
    assert checkpoint_key(checkpoint) != before


def test_the_cache_limit_drops_the_oldest_weights_of_this_call(hub: tuple[Path, list[str]]) -> None:
    root, _ = hub
    for step in (3, 5, 6):
        write_revision(root, "lab/big", f"step{step}", step, values=100_000)  # 400 kB each
    early = fetch_small("lab/big", "step3")
    fetch_weights("lab/big", early)  # was there before: stays
    limit = CacheLimit(0.0005)
    folders = [fetch_small("lab/big", f"step{step}") for step in (5, 6)]
    for folder in folders:
        fetch_weights("lab/big", folder)
        limit.fetched(folder)
        limit.trim()
    assert [has_weights(folder) for folder in (early, *folders)] == [True, False, True]
    assert all((folder / "config.json").is_file() for folder in folders)
    blobs = [path.stat().st_size for path in early.parents[1].glob("blobs/*") if path.stat().st_size > 10_000]
    assert len(blobs) == 2  # the disk is free again
    fetch_weights("lab/big", folders[0])
    assert has_weights(folders[0])
    with pytest.raises(InputError, match="cache-limit"):
        CacheLimit(-1.0)
    with pytest.raises(InputError, match="cache-limit"):
        CacheLimit(float("nan"))


def test_verify_fetches_a_series_and_finds_equal_weights(hub: tuple[Path, list[str]]) -> None:
    root, _ = hub
    (root / "lab/powers/step2/model.safetensors").write_bytes(
        (root / "lab/powers/step1/model.safetensors").read_bytes()
    )
    (root / "lab/powers/step4/model.safetensors").unlink()
    problems = verify("lab/powers@step1,step2,step4,step8")
    assert sorted(problem.where for problem in problems) == ["lab/powers@step2", "lab/powers@step4"]
    assert "step 1" in next(problem.what for problem in problems if problem.where == "lab/powers@step2")
    with pytest.raises(InputError, match="lab/powers@step4"):
        verify("lab/powers@step4")
