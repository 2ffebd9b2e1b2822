"""A fork is its parent up to a step, and differs from then on in what was set and in nothing else."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_run import metrics, small_config, weights, write_corpus

from copyscope.training.checkpoints.manifest import read_manifest
from copyscope.training.checkpoints.series import CheckpointSeries
from copyscope.training.checkpoints.trunk import read_trunk
from copyscope.training.checkpoints.verify import verify
from copyscope.training.config import RunConfig
from copyscope.training.data.batches import sequence_starts
from copyscope.training.engines.protocol import Ended, Job
from copyscope.training.errors import InputError
from copyscope.training.fork import continue_fork, fork
from copyscope.training.schedule import order_of_data, window_at
from copyscope.training.sweeps.worker import execute
from copyscope.training.trainer import train

STATES = {"checkpoints.resume_every": 3, "checkpoints.state_every": 6, "model.attention_dropout": 0.1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(small_config(corpus, STATES), tmp_path_factory.mktemp("parent") / "run")


def content(folder: Path) -> str:
    """A hash of every file in a folder, with its name and time of change."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(repr((str(path.relative_to(folder)), path.stat().st_mtime_ns)).encode() + path.read_bytes())
    return digest.hexdigest()


def steps(series: Path) -> list[int]:
    return [checkpoint.step for checkpoint in CheckpointSeries.open(series).checkpoints]


def problems(series: Path) -> list[str]:
    return [problem.what for problem in verify(series) if "jump" not in problem.what]


@pytest.mark.parametrize("values", [{}, {"optimizer.name": "muon"}], ids=["adamw", "muon"])
def test_the_null_fork_is_its_parent(corpus: Path, tmp_path: Path, values: dict[str, Any], logged: list[str]) -> None:
    run = train(small_config(corpus, STATES | values), tmp_path / "run")
    before = content(run)
    (null,) = fork(run, 10, out=tmp_path / "elsewhere" / "null")
    assert (null.kind, null.state, null.compared, null.differs, null.drift) == ("null", "finished", [12, 16, 20], [], 0)
    assert content(run) == before
    assert any("4 updates" in line for line in logged)  # from the state at step 6, which is kept for good
    assert steps(null.folder) == [0, 1, 2, 4, 8, 10, 12, 16, 20]
    assert sorted(path.name for path in (null.folder / "checkpoints").iterdir())[0] == "step00000010"
    assert all(weights(null.folder, step) == weights(run, step) for step in (12, 16, 20))
    assert problems(null.folder) == []
    held = json.loads((null.folder / "fork.json").read_text())
    assert held["replay"] == {"from": 6, "compared": [8], "differs": []}
    assert held["checkpoints"].keys() == {"0", "1", "2", "4", "8"}
    assert RunConfig.load(null.folder / "config.toml").run_id != RunConfig.load(run / "config.toml").run_id


def test_a_change_acts_from_the_step_on_and_a_kill_changes_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from copyscope.training import trainer

    values = {"optimizer.lr": 5e-3, "checkpoints.every": 1}
    (whole,) = fork(run, 8, values, tmp_path / "whole")
    assert whole.kind == "changed"
    assert json.loads((whole.folder / "fork.json").read_text())["changes"]["optimizer.lr"] == [1e-3, 5e-3]
    assert steps(whole.folder) == [0, 1, 2, 4, *range(8, 21)]
    rates = {line["step"]: line["lr"] for line in metrics(whole.folder) if "lr" in line}
    before = {line["step"]: line["lr"] for line in metrics(run) if "lr" in line}
    assert rates == pytest.approx({step: 5 * rate for step, rate in before.items() if step > 8})
    assert weights(whole.folder, 12) != weights(run, 12)

    real, seen = trainer.save_state, []

    def power_cut(root: Path, *rest: object) -> None:
        real(root, *rest)  # type: ignore[arg-type]
        seen.append(root)
        if len(seen) in (1, 3):  # in the replay, then in the fork
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_state", power_cut)
        for _ in range(2):
            with pytest.raises(RuntimeError):
                fork(run, 8, values, tmp_path / "cut")
    (resumed,) = fork(run, 8, values, tmp_path / "cut")
    assert all(weights(resumed.folder, step) == weights(whole.folder, step) for step in range(9, 21))
    assert [line["step"] for line in metrics(resumed.folder)] == [line["step"] for line in metrics(whole.folder)]


def test_forks_of_one_step_replay_once_and_the_grid_can_be_repeated(
    run: Path, tmp_path: Path, logged: list[str]
) -> None:
    before = content(run)
    forks = fork(run, [8, 11], [{"optimizer.lr": 2e-3}, {}], tmp_path / "grid", placebo=1)
    names = ["at8-lr=0.002", "at8-null", "at8-placebo1", "at11-lr=0.002", "at11-null", "at11-placebo1"]
    assert [one.folder.name for one in forks] == names
    assert [one.differs for one in forks] == [[]] * 6
    assert [one.compared for one in forks if one.kind == "null"] == [[12, 16, 20], [12, 16, 20]]
    replayed = [line for line in logged if "replaying" in line]
    assert [line.split(" of ")[0] for line in replayed] == ["replaying steps 6 to 8", "replaying steps 8 to 11"]
    assert content(run) == before
    again = content(tmp_path / "grid" / "at8-placebo1" / "checkpoints")
    fork(run, 11, {"optimizer.clip": 0.5}, tmp_path / "grid", placebo=1)
    assert content(tmp_path / "grid" / "at8-placebo1" / "checkpoints") == again
    listed = json.loads((tmp_path / "grid" / "forks.json").read_text())["forks"]
    assert [one["folder"] for one in listed] == [*names, "clip=0.5", "placebo1"]
    assert len([line for line in logged if "replaying" in line]) == 2


def test_a_placebo_reads_what_is_left_of_the_text_in_another_order(run: Path, tmp_path: Path) -> None:
    (placebo,) = fork(run, 8, out=tmp_path / "placebo", placebo=1)
    config, parent = (RunConfig.load(folder / "config.toml") for folder in (placebo.folder, run))
    assert (config.seeds.data, placebo.kind) == (parent.seeds.data + 1, "placebo")
    count, length = 60, 32
    first = window_at(config, 8)
    both = [sequence_starts(order_of_data(one), 0, count, count * length + 1, length) for one in (parent, config)]
    assert both[0][:first] == both[1][:first]
    assert both[0][first:] != both[1][first:]
    assert sorted(both[0]) == sorted(both[1])


def test_another_batch_size_continues_the_same_text(run: Path, tmp_path: Path) -> None:
    (wide,) = fork(run, 8, {"train.batch_size": 4}, tmp_path / "wide")
    config = RunConfig.load(wide.folder / "config.toml")
    assert [window_at(config, step) for step in (8, 9, 20)] == [16, 20, 64]
    tokens = {c.step: c.tokens for c in CheckpointSeries.open(wide.folder).checkpoints}
    assert (tokens[8], tokens[12]) == (8 * 2 * 32, 8 * 2 * 32 + 4 * 4 * 32)
    assert problems(wide.folder) == []


def test_other_text_in_the_words_of_the_parent(run: Path, tmp_path: Path) -> None:
    other = write_corpus(tmp_path / "other.jsonl", seed=1)
    (one,) = fork(run, 18, {"data.corpus": str(other)}, tmp_path / "forks" / "other")
    last = [folder / "checkpoints" / "step00000020" for folder in (one.folder, run)]
    files = [read_manifest(folder)["files"] for folder in last]
    assert files[0]["tokenizer.json"] == files[1]["tokenizer.json"]
    assert files[0]["model.safetensors"] != files[1]["model.safetensors"]
    assert (one.folder / "data.json").read_bytes() == (run / "data.json").read_bytes()  # it is measured alike


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer.lr": 5e-3, "optimizer.weight_decay": 1.0, "optimizer.beta1": 0.5, "model.attention_dropout": 0.3},
        {"intervention.heads": [[0, 0], [0, 1]], "intervention.mode": "uniform", "intervention.skip_predictable": True},
    ],
    ids=["settings", "intervention"],
)
def test_a_change_that_ends_is_two_forks_one_after_the_other(
    run: Path, tmp_path: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = fork(run, 8, values, tmp_path / "first")
    was = RunConfig.load(run / "config.toml").only(values)
    (back,) = fork(first.folder, 13, was, tmp_path / "back")
    (window,) = fork(run, 8, values, tmp_path / "window", lasting=5)
    assert weights(window.folder, 12) == weights(first.folder, 12) != weights(run, 12)
    assert [weights(window.folder, step) for step in (16, 20)] == [weights(back.folder, step) for step in (16, 20)]
    assert weights(window.folder, 16) != weights(first.folder, 16)
    config, trunk = RunConfig.load(window.folder / "config.toml"), read_trunk(window.folder)
    assert (config.fork.until, config.fork.after) == (13, was)
    assert trunk is not None
    assert trunk.until == 13
    rates = {line["step"]: line["lr"] for line in metrics(window.folder) if "lr" in line}
    before = {line["step"]: line["lr"] for line in metrics(run) if "lr" in line}
    assert {step: rates[step] == before[step] for step in rates} == {
        step: step > 13 or "optimizer.lr" not in values for step in rates
    }

    from copyscope.training import trainer

    real = trainer.save_state

    def power_cut(root: Path, *rest: Any) -> None:
        real(root, *rest)
        if root.parent.name == "cut" and rest[2] == 18:  # after the change has ended
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_state", power_cut)
        with pytest.raises(RuntimeError):
            fork(run, 8, values, tmp_path / "cut", lasting=5)
    (resumed,) = fork(run, 8, values, tmp_path / "cut", lasting=5)
    assert weights(resumed.folder, 20) == weights(window.folder, 20)


def test_a_fork_within_a_change_that_ends_and_after_it(run: Path, tmp_path: Path) -> None:
    (window,) = fork(run, 8, {"optimizer.lr": 5e-3}, tmp_path / "window", lasting=5)
    (within,) = fork(window.folder, 10, out=tmp_path / "within")
    (after,) = fork(window.folder, 14, out=tmp_path / "after")
    assert (within.compared, within.differs, after.compared, after.differs) == ([12, 16, 20], [], [16, 20], [])
    configs = [RunConfig.load(one.folder / "config.toml") for one in (within, after)]
    assert [(config.fork.until, config.optimizer.lr) for config in configs] == [(13, 5e-3), (None, 1e-3)]


def test_writing_down_more_is_still_the_null_fork(run: Path, tmp_path: Path) -> None:
    (null,) = fork(run, 8, {"checkpoints.every": 2, "train.log_every": 1}, tmp_path / "null")
    assert (null.kind, null.compared, null.differs) == ("null", [12, 16, 20], [])


def test_a_fork_of_a_fork_with_other_text_reads_that_text(run: Path, tmp_path: Path) -> None:
    other = write_corpus(tmp_path / "other.jsonl", seed=1)
    (first,) = fork(run, 8, {"data.corpus": str(other)}, tmp_path / "other")
    (null,) = fork(first.folder, 12, out=tmp_path / "null")
    assert (null.kind, null.compared, null.differs) == ("null", [16, 20], [])


def test_a_fork_of_a_fork(run: Path, tmp_path: Path) -> None:
    (first,) = fork(run, 8, {"optimizer.lr": 2e-3}, tmp_path / "first")
    (second,) = fork(first.folder, 13, out=tmp_path / "second")
    assert (second.compared, second.differs) == ([16, 20], [])
    assert steps(second.folder) == [0, 1, 2, 4, 8, 12, 13, 16, 20]
    assert problems(second.folder) == []
    with pytest.raises(InputError, match="fork its parent"):
        fork(first.folder, 4, out=tmp_path / "third")


@pytest.mark.parametrize("after", ["moved", "changed", "thinned"])
def test_a_parent_that_is_not_what_it_was_is_named(corpus: Path, tmp_path: Path, after: str) -> None:
    run = train(small_config(corpus, STATES), tmp_path / "run")
    (one,) = fork(run, 18, out=tmp_path / "fork")
    if after == "moved":
        run.rename(tmp_path / "other")
        kept = []
    elif after == "changed":
        (run / "checkpoints" / "step00000002").rename(tmp_path / "old")
        shutil.copytree(run / "checkpoints" / "step00000004", run / "checkpoints" / "step00000002")
        path = run / "checkpoints" / "step00000002" / "MANIFEST.json"
        path.write_text(path.read_text().replace('"step": 4', '"step": 2'))
        kept = [0, 1, 4, 8, 12, 16]
    else:
        shutil.rmtree(run / "checkpoints" / "step00000002")
        kept = [0, 1, 4, 8, 12, 16]
    found = problems(one.folder)
    assert len(found) == 1
    assert {"moved": "not there any more", "changed": "not those", "thinned": "step 2 any more"}[after] in found[0]
    assert steps(one.folder) == [*kept, 18, 20]


def test_a_null_fork_that_is_not_its_parent_says_how_far_it_drifts(corpus: Path, tmp_path: Path) -> None:
    run = train(small_config(corpus, STATES), tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step00000020")
    (faster,) = fork(run, 18, {"optimizer.lr": 1e-2}, tmp_path / "faster")
    shutil.copytree(faster.folder / "checkpoints" / "step00000020", run / "checkpoints" / "step00000020")
    (null,) = fork(run, 12, out=tmp_path / "null")
    assert (null.compared, null.differs) == ([16, 20], [20])
    mine, theirs = (load_file(one / "checkpoints/step00000020/model.safetensors") for one in (null.folder, run))
    flat = [torch.cat([state[name].flatten().double() for name in sorted(state)]) for state in (mine, theirs)]
    assert null.drift == pytest.approx(float((flat[0] - flat[1]).norm() / flat[1].norm()), rel=1e-9)
    assert null.drift not in (None, 0)


class HereEngine:
    """Does each job at once, in this process."""

    def __init__(self) -> None:
        self.done: list[Ended] = []

    def room(self) -> int:
        return 1 - len(self.done)

    def start(self, job: Job) -> None:
        assert job.module == "copyscope.training.fork"
        execute(job.folder, lambda config, folder: continue_fork(folder))
        self.done.append(Ended(job, 0))

    def ended(self) -> list[Ended]:
        done, self.done = self.done, []
        return done

    def stop(self) -> None:
        pass


def test_an_engine_trains_the_same_forks(run: Path, tmp_path: Path) -> None:
    settings = [{"optimizer.lr": 2e-3}, {"optimizer.lr": 1e9}]
    good, bad = fork(run, 18, settings, tmp_path / "there", engine=HereEngine())
    same, also = fork(run, 18, settings, tmp_path / "here")
    assert (good.state, same.state) == ("finished", "finished")
    assert bad.state == also.state
    assert weights(good.folder, 20) == weights(same.folder, 20)


WRONG: list[tuple[int, dict[str, Any], str]] = [
    (21, {}, "trained to step 20"),
    (-1, {}, "trained to step 20"),
    (20, {}, "nothing is left"),
    (8, {"model.d_model": 64}, "cannot change"),
    (8, {"data.vocab_size": 400}, "cannot change"),
    (8, {"seeds.init": 1}, "cannot change"),
    (8, {"optimizer.name": "muon"}, "cannot change"),
    (8, {"optimizer.learning": 1}, "no field"),
    (8, {"train.steps": 8}, "nothing is left"),
    (8, {"train.batch_size": 10_000}, "too small"),
]
ENDLESS: list[tuple[dict[str, Any], int, str]] = [
    ({"train.batch_size": 4}, 3, "train.batch_size cannot change for some updates only"),
    ({"intervention.until_step": 9}, 3, "cannot change for some updates only"),
    ({"seeds.data": 9}, 3, "nothing differs that could end"),
    ({"optimizer.lr": 0.1, "train.steps": 18}, 3, "train.steps cannot change for some updates only"),
    ({}, 3, "nothing differs that could end"),
    ({"optimizer.lr": 0.1}, 12, "lasts to the end"),
    ({"optimizer.lr": 0.1}, 0, "1 or more"),
]


@pytest.mark.parametrize(("at", "values", "words"), WRONG)
def test_wrong_input_is_one_line_and_writes_nothing(
    run: Path, tmp_path: Path, at: int, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as error:
        fork(run, at, values, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("values", "lasting", "words"), ENDLESS)
def test_what_cannot_end_is_refused(
    run: Path, tmp_path: Path, values: dict[str, Any], lasting: int, words: str
) -> None:
    with pytest.raises(InputError, match=words) as error:
        fork(run, 8, values, tmp_path / "out", lasting=lasting)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_at_a_constant_rate_a_change_may_end_and_the_fork_too(corpus: Path, tmp_path: Path) -> None:
    """There the length of the run says nothing about its updates."""
    constant = {"optimizer.schedule": "constant", "train.steps": 10}
    parent = train(small_config(corpus, STATES | constant), tmp_path / "parent")
    for values, words in (({}, "nothing differs"), ({"optimizer.lr": 0.1}, "lasts to the end, step 11")):
        with pytest.raises(InputError, match=words):
            fork(parent, 8, {**values, "train.steps": 11}, tmp_path / "out", lasting=3)
    fork(parent, 8, {"optimizer.lr": 0.1, "train.steps": 12}, tmp_path / "out", lasting=3)
    assert RunConfig.load(tmp_path / "out" / "config.toml").fork.until == 11
    assert steps(tmp_path / "out")[-1] == 12


def test_folders_that_are_something_else_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    for out in (tmp_path / "full", run, run / "fork", tmp_path / "full" / "notes.txt"):
        with pytest.raises(InputError, match="choose another"):
            fork(run, 18, out=out)
    fork(run, 18, out=tmp_path / "fork")
    with pytest.raises(InputError, match="another fork"):
        fork(run, 18, {"optimizer.lr": 1.0}, tmp_path / "fork")
    with pytest.raises(InputError, match="copyscope fork"):
        train(RunConfig.load(tmp_path / "fork" / "config.toml"), tmp_path / "new")
    with pytest.raises(InputError, match="holds a fork"):
        train(RunConfig.load(run / "config.toml"), tmp_path / "fork")
    os.mkdir(tmp_path / "nothing")
    with pytest.raises(InputError, match="copyscope train"):
        fork(tmp_path / "nothing", 1, out=tmp_path / "out")
    with pytest.raises(InputError, match="no such folder"):
        fork(tmp_path / "nowhere", 1, out=tmp_path / "out")
    with pytest.raises(InputError, match="single fork"):
        fork(run, [18, 19], out=tmp_path / "fork")
    for steps, values in (([18, 18], {}), (18, [{"optimizer.lr": 1.0}, {"optimizer.lr": 1}])):
        with pytest.raises(InputError, match="twice"):
            fork(run, steps, values, out=tmp_path / "out")


def test_a_single_fork_joins_those_that_are_there(run: Path, tmp_path: Path) -> None:
    family = tmp_path / "family"
    fork(run, 18, placebo=1, out=family)
    (one,) = fork(run, 18, {"optimizer.lr": 2e-3}, family)
    assert one.folder == family / "lr=0.002"
    clamp = {"intervention.heads": [[0, 0], [0, 1]], "intervention.mode": "uniform"}
    (two,) = fork(run, 18, clamp, family, lasting=1)
    assert two.folder == family / "heads=0,0+0,1-mode=uniform-for1"  # no pattern of a shell
    assert two.label == "heads=[[0,0],[0,1]] mode=uniform for 1"
    (three,) = fork(run, 18, {**clamp, "intervention.heads": [[0, 0], [0, 1]] * 20}, family)
    assert (
        three.folder.name
        == f"heads={'0,0+0,1+' * 20}"[:100] + f"-{RunConfig.load(three.folder / 'config.toml').run_id}"
    )
    listed = json.loads((family / "forks.json").read_text())["forks"]
    assert [row["folder"] for row in listed] == ["placebo1", "lr=0.002", two.folder.name, three.folder.name]
    for read in (CheckpointSeries.open, lambda folder: fork(folder, 18)):
        with pytest.raises(InputError, match="several forks"):
            read(family)
