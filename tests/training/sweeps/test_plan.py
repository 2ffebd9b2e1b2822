"""A sweep file to runs: every combination once, named by its hash; what is wrong is one line that names it."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from copyscope.training.config import RunConfig
from copyscope.training.errors import InputError
from copyscope.training.sweeps.plan import Sweep, claim, load_sweep, parse_sweep, planned


def sweep_of(text: str, folder: Path, **values: Any) -> Sweep:
    (folder / "sweep.toml").write_text(text)
    return load_sweep(folder / "sweep.toml", values or None)


def test_a_grid_and_a_list(tmp_path: Path) -> None:
    found = sweep_of(
        """
        base = "quickstart"
        score = true
        samples = 50
        tasks = true
        [values]
        train.steps = 100
        [grid]
        seed = [0, 1]
        [[runs]]
        train.batch_size = 4
        [[runs]]
        label = "large"
        train = { batch_size = 16, steps = 50 }
        """,
        tmp_path,
    )
    assert (found.score, found.samples, found.tasks) == (True, 50, True)
    assert [(run.label, run.condition) for run in found.runs] == [
        ("batch_size=4 seed=0", "batch_size=4"),
        ("batch_size=4 seed=1", "batch_size=4"),
        ("large seed=0", "large"),
        ("large seed=1", "large"),
    ]
    base = RunConfig.load("quickstart")
    last = base.with_values({"train.batch_size": 16, "train.steps": 50, "seeds.init": 1, "seeds.data": 1})
    assert found.runs[-1].config == last
    assert found.runs[-1].run_id == last.run_id
    assert found.runs[0].config.train.steps == 100


def test_values_given_with_the_command_go_last(tmp_path: Path) -> None:
    text = 'base = "quickstart"\n[values]\ntrain.steps = 100\n[grid]\noptimizer.lr = [1e-3, 1e-2]'
    found = sweep_of(text, tmp_path, **{"train.steps": 7})
    assert [run.config.train.steps for run in found.runs] == [7, 7]
    assert [run.label for run in found.runs] == ["lr=0.001", "lr=0.01"]


def test_a_base_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[train]\nsteps = 11")
    assert sweep_of('base = "mine.toml"', tmp_path).runs[0].config.train.steps == 11


@examples(30)
@given(
    st.sets(st.integers(1, 64), min_size=1, max_size=3),
    st.sets(st.sampled_from([1e-4, 1e-3, 1e-2]), min_size=1),
    st.sets(st.integers(0, 9), min_size=1, max_size=3),
)
def test_every_combination_is_a_run_of_its_own(sizes: set[int], rates: set[float], seeds: set[int]) -> None:
    grid = {"train.batch_size": list(sizes), "optimizer.lr": list(rates), "seeds.init": list(seeds)}
    found = parse_sweep({"base": "quickstart", "grid": grid}, Path())
    base = RunConfig.load("quickstart")
    wanted = {
        base.with_values(dict(zip(grid, combination, strict=True))).run_id
        for combination in itertools.product(*grid.values())
    }
    assert {run.run_id for run in found.runs} == wanted
    assert len(found.runs) == len(wanted)
    assert len({run.condition for run in found.runs}) == len(sizes) * len(rates)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "base: name a preset or a TOML file"),
        ('base = "quickstar"', "no preset 'quickstar'"),
        ('base = "quickstart"\ngrids = 3', "no key 'grids'; keys are base"),
        (
            'base = "quickstart"\n[grid]\ntrain.batchsize = [1, 2]',
            "no field 'train.batchsize'; did you mean",
        ),
        ('base = "quickstart"\n[grid]\ntrain.steps = 3', r"\[grid\] train.steps: give a list of values"),
        ('base = "quickstart"\n[grid]\ntrain.steps = []', r"\[grid\] train.steps: give a list of values"),
        ('base = "quickstart"\n[grid]\ntrain.steps = [5, "x"]', "train.steps"),
        ('base = "quickstart"\n[grid]\nseed = [-1]', "seeds.init"),
        ('base = "quickstart"\n[values]\nmodel.d_modell = 3', r"\[values\]: no field 'model.d_modell'"),
        ('base = "quickstart"\nvalues = 3', r"\[values\]: write field = value"),
        ('base = "quickstart"\nruns = 3', r"\[\[runs\]\]: give one table"),
        ('base = "quickstart"\n[[runs]]\nlabel = 3', "label has to be a text"),
        ('base = "quickstart"\n[[runs]]\ntrain.steps = 3\n[[runs]]\ntrain.steps = 3', "the same run as steps=3"),
        ('base = "quickstart"\n[grid]\ntrain.steps = [3]\n[[runs]]\ntrain.steps = 3', "is in .grid. and in"),
        ('base = "quickstart"\nscore = 1', "score: give true or false"),
        ('base = "quickstart"\nscore = true\ntasks = 1', "tasks: give true, false, or .last."),
        ('base = "quickstart"\nscore = true\ntasks = "first"', "tasks: give true, false, or .last."),
        ('base = "quickstart"\ntasks = "last"', "tasks: are asked while scoring"),
        ('base = "quickstart"\ntasks = true', "tasks: are asked while scoring"),
        ('base = "quickstart"\nsamples = 0', "samples: give a whole number"),
        ("base = = 3", "not valid TOML"),
    ],
)
def test_bad_files(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says) as error:
        sweep_of(text, tmp_path)
    assert str(error.value).startswith(str(tmp_path / "sweep.toml"))
    assert len(str(error.value).splitlines()) == 1


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_sweep(tmp_path / "nothing.toml")
    with pytest.raises(InputError, match="is a folder"):
        load_sweep(tmp_path)


def test_a_folder_of_another_sweep(tmp_path: Path) -> None:
    def of(*steps: int, **keys: Any) -> Sweep:
        return parse_sweep({"base": "quickstart", "grid": {"train.steps": list(steps)}, **keys}, tmp_path)

    out = tmp_path / "out"
    claim(of(1, 2), out)
    claim(of(1, 2), out)
    with pytest.raises(InputError, match=r"other runs \(1 of the file's are not in it, 1 of its are not in the file\)"):
        claim(of(2, 3), out)
    with pytest.raises(InputError, match="with score = False, the file says True"):
        claim(of(1, 2, score=True), out)
    claim(of(2, 3), out, update=True)
    plan = planned(out)
    assert plan is not None
    assert [run["label"] for run in plan["runs"]] == ["steps=2", "steps=3"]
    assert len(list(out.glob("*/config.toml"))) == 3  # what is no longer planned stays
    for run in of(2, 3).runs:
        assert RunConfig.load(out / run.run_id / "config.toml").run_id == run.run_id
    (out / "sweep.json").write_text(json.dumps({"runs": 3}))
    with pytest.raises(InputError, match="unreadable"):
        claim(of(2, 3), out)
