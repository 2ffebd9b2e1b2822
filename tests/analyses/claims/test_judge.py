"""Verdicts: right where planted runs decide, undecided by default, one clear line for runs that cannot be compared."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from written_run import AT, FACTS, STEPS, config, write_run

from copyscope.analyses.claims.across_runs import updates_not_tokens
from copyscope.analyses.claims.evidence import gather
from copyscope.analyses.claims.factors import comparable, flat, varied
from copyscope.analyses.claims.judge import claims
from copyscope.analyses.claims.page import SIGNS, in_words, verdict_line, write_claims
from copyscope.analyses.claims.verdict import Verdict, step_ends
from copyscope.analyses.words.plain_page import text
from copyscope.training.environment import note_environment
from copyscope.training.errors import InputError

DELAY, UPDATES, DEPTH, STAGES, REGULARIZATION, RATE, INTENSITY = range(7)


def runs(folder: Path, count: int, copies_at: float = 4000, **values: object) -> list[Path]:
    return [
        write_run(folder / f"seed{i}", config(**{"seeds.init": i} | values), copies_at * (1 + 0.03 * i), seed=i)
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return runs(tmp_path_factory.mktemp("late"), 3)


def test_one_run_decides_nothing(late: list[Path]) -> None:
    found = claims(late[:1]).verdicts
    assert [verdict.verdict for verdict in found] == ["undecided"] * 10
    assert "a verdict needs 3" in found[DELAY].reason
    delay = found[DELAY]
    assert (delay.low or 9) < (delay.value or 0) < (delay.high or 0)  # its own interval, over noise


def test_three_seeds_that_copy_late_from_shallow_to_deep(late: list[Path]) -> None:
    found = claims(late).verdicts
    assert [found[i].verdict for i in (DELAY, DEPTH, STAGES)] == ["supported"] * 3
    assert [found[i].runs for i in (DELAY, DEPTH, STAGES)] == [3, 3, 3]
    delay = found[DELAY]
    assert delay.low is not None
    assert delay.value is not None
    assert 1 < delay.low < delay.value
    assert [found[i].verdict for i in (UPDATES, REGULARIZATION, RATE, INTENSITY)] == ["undecided"] * 4
    assert "do not differ in train.batch_size" in found[UPDATES].reason


def test_runs_that_were_not_computed_alike_are_said(tmp_path: Path) -> None:
    folders = runs(tmp_path, 3)
    for folder, precision in zip(folders, ("float32", "float32", "bfloat16"), strict=True):
        note_environment(folder, 0, {"threads": 1, "precision": precision})
    assert not any("computed alike" in verdict.reason for verdict in claims(folders[:2]).verdicts)
    words = "; not all computed alike (precision float32 and bfloat16)"
    assert all(verdict.reason.endswith(words) for verdict in claims(folders).verdicts)


def test_copying_before_the_loss_settles_contradicts(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / f"{i}", config(**{"seeds.init": i}), 300 + 10 * i, settles_at=900, seed=i)
        for i in range(3)
    ]
    assert claims(folders).verdicts[DELAY].verdict == "contradicted"


def test_a_ratio_to_a_loss_that_has_not_settled_is_a_bound(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / f"{i}", config(**{"seeds.init": i}), 500 + 10 * i, settles_at=3000, seed=i)
        for i in range(3)
    ]
    delay = claims(folders).verdicts[DELAY]
    assert (delay.verdict, delay.value, delay.low) == ("contradicted", None, None)
    assert delay.high is not None
    assert 510 / (STEPS[-1] / 2) < delay.high < 1
    assert f"below {delay.high:.3g};" in verdict_line(delay)
    assert delay.details is not None
    for row in delay.details.iter_rows(named=True):
        assert (row["loss settled"], row["loss settled, low"], row["ratio"]) == (None, STEPS[-1] / 2, None)
        assert row["copying surges"] / (STEPS[-1] / 2) < row["ratio, high"] < 1
    shown = in_words(delay.details)
    assert shown["ratio"][0] == f"< {delay.details['ratio, high'][0]:.3g}"
    assert shown["loss settled"].to_list() == [f"> {STEPS[-1] / 2:,.0f}"] * 3
    assert not any(", low" in name or ", high" in name for name in shown.columns)


def test_an_event_has_one_number_and_interval_in_all_tables(late: list[Path]) -> None:
    found = claims(late)
    stages, surges = found.verdicts[STAGES].details, found.verdicts[DELAY].details
    assert stages is not None
    assert surges is not None
    runs = found.runs.filter(runs=1)
    for end in ("", ", low", ", high"):
        for stage in ("previous-token head", "induction head"):
            assert stages[stage + end].to_list() == pytest.approx(runs[stage + end].to_list())
        assert surges["copying surges" + end].to_list() == pytest.approx(runs["copying" + end].to_list())


def test_a_step_in_a_bracket_from_0_is_a_bound() -> None:
    table = pl.DataFrame([step_ends("step", 11.0, 0.0, 250.0), step_ends("step", 300.0, 250.0, 400.0)])
    assert in_words(table)["step"].to_list() == ["< 250", "300 [250, 400]"]


def test_runs_too_short_to_see_the_loss_settle(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / f"{i}", config(**{"seeds.init": i}), 6000, settles_at=3000, seed=i) for i in range(3)
    ]
    delay = claims(folders).verdicts[DELAY]
    assert (delay.verdict, delay.runs, delay.value) == ("undecided", 0, None)
    assert "3 not counted (copying surged in the second half" in delay.reason
    assert "nan" not in verdict_line(delay)


@pytest.mark.parametrize(("exponent", "verdict"), [(0.0, "supported"), (-1.0, "contradicted"), (-0.5, "contradicted")])
def test_updates_or_tokens(tmp_path: Path, exponent: float, verdict: str) -> None:
    folders = [
        write_run(
            tmp_path / f"b{size}s{i}",
            config(**{"train.batch_size": size, "seeds.init": i}),
            (1 + 0.02 * i) * 2500 * (size / 8) ** exponent,
            seed=i,
        )
        for size in (4, 8, 16, 32)
        for i in range(2)
    ]
    known = [gather(folder) for folder in folders]
    found = updates_not_tokens(known)
    assert found.verdict == verdict
    assert found.runs == 8
    assert found.low is not None
    assert found.high is not None
    assert found.low <= exponent <= found.high
    odd = write_run(tmp_path / "odd", config(**{"train.batch_size": 8, "optimizer.lr": 5e-4, "seeds.init": 9}), 100)
    with_odd = updates_not_tokens([*known, gather(odd)])
    assert (with_odd.verdict, with_odd.value) == (verdict, pytest.approx(found.value))
    assert "1 left out, such as odd, which differs in optimizer.lr too" in with_odd.reason


def test_a_batch_size_that_has_not_formed_yet_counts_as_later(tmp_path: Path) -> None:
    """At every size copying forms at 3,000, but at the smallest two of three runs have not by their last step."""
    folders = [
        write_run(
            tmp_path / f"b{size}s{i}",
            config(**{"train.batch_size": size, "seeds.init": i}),
            (1 + 0.02 * i) * 3000,
            top=0.0 if size == 4 and i else 0.6,
            seed=i,
        )
        for size in (4, 8, 16)
        for i in range(3)
    ]
    known = [gather(folder) for folder in folders]
    assert known[1].step is None
    assert known[1].last_step == STEPS[-1]
    found, formed = updates_not_tokens(known), updates_not_tokens([run for run in known if run.step])
    assert formed.value == pytest.approx(0, abs=0.03)
    assert (found.runs, found.value or 0) == (9, pytest.approx(-0.6, abs=0.5))
    assert "a run that has not formed counts as later than its last step" in found.rule
    assert found.details is not None
    assert found.details["batch size"].to_list() == [4] * 3 + [8] * 3 + [16] * 3
    assert found.details["copying forms"].null_count() == 2
    late = found.details.filter(pl.col("copying forms").is_null())
    assert (late["copying forms, low"].to_list(), late["copying forms, high"].to_list()) == (
        [STEPS[-1]] * 2,
        [None] * 2,
    )
    assert in_words(late)["copying forms"].to_list() == [f"> {STEPS[-1]:,}"] * 2
    assert "2 without copying yet, taken as later than their last step" in found.reason


@pytest.mark.parametrize(("at", "provisional"), [(400, 0), (3000, 3)])
def test_steps_that_longer_runs_may_move_are_said(tmp_path: Path, at: int, provisional: int) -> None:
    runs = [write_run(tmp_path / f"b{b}", config(**{"train.batch_size": b}), at, settles_at=50) for b in (4, 8, 16)]
    reason = updates_not_tokens([gather(run) for run in runs]).reason
    assert ("; 3 provisional: longer runs may date copying later" in reason) == bool(provisional)


def test_one_factor_asked_about_and_another_in_the_way(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"b{size}", config(**{"train.batch_size": size}), 3000) for size in (4, 8, 16)]
    assert claims(folders, factor="train.batch_size").verdicts[UPDATES].runs == 3
    odd = write_run(tmp_path / "odd", config(**{"train.batch_size": 8, "optimizer.lr": 5e-4}), 100)
    with pytest.raises(InputError, match=r"odd: differs in more than train.batch_size: optimizer.lr = 0.0005"):
        claims([*folders, odd], factor="train.batch_size")


@pytest.mark.parametrize(
    ("at", "top", "verdict"),
    [
        (1500, 0.6, "supported"),
        (3000, 0.9, "supported"),
        (5000, 0.6, "contradicted"),
        (1500, 0.3, "undecided"),
        (3000, 0.6, "undecided"),
    ],
)
def test_regularization(tmp_path: Path, at: float, top: float, verdict: str) -> None:
    """Three seeds without dropout copy at 3,000 and reach 0.6; three with it do as given."""
    folders = [
        write_run(
            tmp_path / f"{drop}-{i}",
            config(**{"model.attention_dropout": drop, "seeds.init": i}),
            (at if drop else 3000) * (1 + 0.04 * i),
            top=(top if drop else 0.6) + 0.004 * i,
            seed=i + int(drop * 100),
        )
        for drop in (0.0, 0.1)
        for i in range(3)
    ]
    found = claims(folders).verdicts[REGULARIZATION]
    assert found.verdict == verdict
    assert found.details is not None
    assert set(found.details["quantity"]) == {"log_step", "copying_accuracy_token", "natural_loss", "icl_score"}


def test_learning_rate_and_intensity(tmp_path: Path) -> None:
    """Copying forms when the learning rates add up to 3: three times as early with three times the rate."""
    folders = [
        write_run(
            tmp_path / f"{lr}-{i}",
            config(**{"optimizer.lr": lr, "optimizer.warmup_steps": 1, "seeds.init": i}),
            3.0 / lr * (1 + 0.01 * i),
            seed=i,
        )
        for lr in (1e-3, 2e-3, 4e-3)
        for i in range(2)
    ]
    found = claims(folders).verdicts
    assert found[RATE].verdict == "supported"
    assert found[RATE].value == pytest.approx(-1, abs=0.1)
    assert found[INTENSITY].verdict == "supported"
    assert (found[INTENSITY].value or 9) < 1.1


def test_runs_of_which_nobody_knows_the_recipe(late: list[Path], tmp_path: Path) -> None:
    """Somebody else's series beside runs of ours: compared with none, pooled with none."""
    for name in ("one", "other"):
        shutil.copytree(late[0], tmp_path / name)
        (tmp_path / name / "config.toml").unlink()
        for step in STEPS:
            folder = tmp_path / name / "checkpoints" / f"step{step}"
            folder.mkdir(parents=True)
            (folder / "config.json").write_text("{}")
    found = claims([*late, tmp_path / "one", tmp_path / "other"])
    assert found.verdicts[REGULARIZATION].verdict == "undecided"
    assert "differ in none of" in found.verdicts[REGULARIZATION].reason
    assert found.runs["run"].to_list() == [*(run.name for run in late), "3 seeds together", "one", "other"]


def test_the_same_experiment_twice(late: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the same experiment as"):
        claims([late[0], late[0]])
    copy = shutil.copytree(late[0], tmp_path / "copy")
    with pytest.raises(InputError, match="copy: the same experiment as"):
        claims([late[0], copy])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda t: t.filter(pl.col("step") == 0), "1 checkpoint; a formation step needs at least 4"),
        (lambda t: pl.concat([t, t.filter(pl.col("step") == 8)]), "step 8, layer 1, head 0 twice"),
        (lambda t: t.with_columns(tokens=10**9 - pl.col("tokens")), "tokens fall at step 1; the steps are out"),
        (lambda t: t.with_columns(pl.when(step=4).then(float("nan")).otherwise("value").alias("value")), "at step 4"),
    ],
)
def test_damaged_tables_get_one_line_with_the_runs_name(late: list[Path], tmp_path: Path, damage, words: str) -> None:
    broken = shutil.copytree(late[0], tmp_path / "broken")
    paths = sorted((broken / "results" / "heads").glob("*.parquet"))
    table = damage(pl.concat([pl.read_parquet(path) for path in paths]))
    for path in paths:
        path.unlink()
    table.write_parquet(paths[0], metadata=FACTS)
    with pytest.raises(InputError) as raised:
        claims([*late, broken])
    assert str(raised.value).startswith("broken: ")
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_runs_that_are_not_there_or_not_scored(late: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run given"):
        claims([])
    with pytest.raises(InputError, match="no such"):
        claims([tmp_path / "nowhere"])
    bare = shutil.copytree(late[0], tmp_path / "bare")
    shutil.rmtree(bare / "results")
    with pytest.raises(InputError, match="copyscope score"):
        claims([bare])
    with pytest.raises(InputError, match=r"--factor optimizer\.rate: no run has such a setting"):
        claims(late, factor="optimizer.rate")


def test_when_things_formed_over_seeds(late: list[Path]) -> None:
    table = claims(late).runs
    assert table["run"].to_list() == ["seed0", "seed1", "seed2", "3 seeds together"]
    for row in table.iter_rows(named=True):
        assert row["previous-token head"] < row["induction head"] < row["copying"]
        assert row["copying, low"] < row["copying"] < row["copying, high"]
    seeds, together = table["copying"].to_numpy()[:3], table.row(3, named=True)
    assert together["copying"] == pytest.approx(np.exp(np.log(seeds).mean()))
    assert together["copying, low"] < 4000 < together["copying, high"]
    assert table["runs"].to_list() == [1, 1, 1, 3]
    assert table["copying, formed"].to_list() == [1, 1, 1, 3]


def test_a_seed_that_did_not_form_is_said_beside_the_mean_of_the_others(late: list[Path], tmp_path: Path) -> None:
    never = write_run(tmp_path / "never", config(**{"seeds.init": 9}), 10 * STEPS[-1])
    found = claims([*late, never])
    together = found.runs.row(-1, named=True)
    assert (together["run"], together["runs"], together["copying, formed"]) == ("4 seeds together", 4, 3)
    html = write_claims(found, ["a"], tmp_path / "claims.html").read_text()
    assert re.search(r"4 seeds together</td>.*<td>[\d,]+ \[[\d,]+, [\d,]+\], 3 of 4</td></tr>", html)


def test_folders_of_one_name_are_told_apart_by_their_paths(late: list[Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "seed0", config(**{"seeds.init": 9}), 3000)
    table = claims([late[0], other]).runs
    assert table["run"].to_list() == [str(late[0]), str(other), "2 seeds together"]


def test_what_a_run_says(late: list[Path]) -> None:
    found = gather(late[0])
    assert found.step == pytest.approx(4000, rel=0.05)
    assert found.n_layers == 5
    assert found.induction["formed"].sum() == 4
    assert found.final["copying_accuracy_token"] == pytest.approx(0.6, abs=0.03)
    assert found.tokens_per_step == 2048
    assert found.rates is not None
    assert len(found.rates) == STEPS[-1] == AT[-1]


def test_settings_that_do_not_change_an_update_are_no_factors() -> None:
    base = config()
    same = config(**{"seeds.init": 3, "train.log_every": 7, "train.steps": 900, "checkpoints.every": 50})
    assert varied([flat(base), flat(same)]) == []
    other = config(**{"optimizer.lr": 2e-3, "model.n_layers": 6})
    assert varied([flat(base), flat(other)]) == ["model.n_layers", "optimizer.lr"]
    decays, longer = (
        config(**{"optimizer.schedule": "cosine"}),
        config(**{"optimizer.schedule": "cosine", "train.steps": 9}),
    )
    assert varied([flat(decays), flat(longer)]) == ["train.steps"]


def test_comparable_takes_the_usual_recipe() -> None:
    configs = [{"lr": 1, "b": b} for b in (4, 8, 16)] + [{"lr": 2, "b": 8}, {"lr": 1, "b": 4}]
    found = comparable(configs, "b")
    assert (found.used, found.values, found.left_out) == ([0, 1, 2, 4], [4, 8, 16, 4], {3: ["lr"]})
    assert comparable(configs, "b", also=["lr"]).used == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match=r"d: differs in more than b: lr = 2 \(others 1\)"):
        comparable(configs, "b", names=list("abcde"))


def test_the_page_and_the_lines(late: list[Path], tmp_path: Path) -> None:
    found = claims(late)
    hostile = Verdict(
        claim="<script>x</script>",
        verdict="undecided",
        effect="e",
        value=1.0,
        runs=1,
        reason="r <b>",
        rule="rule",
        breaks="breaks",
    )
    page = write_claims(found._replace(verdicts=[*found.verdicts, hostile]), ["a<b"], tmp_path / "claims.html")
    html = page.read_text()
    assert "<script>x" not in html
    assert "a&lt;b" in html
    assert re.search(r"3 seeds together</td><td>[\d,]+ \[[\d,]+, [\d,]+\]</td>", html)
    for verdict in found.verdicts:
        assert text(verdict.rule) in html
        assert text(verdict.breaks) in html
        assert SIGNS[verdict.verdict] in html
        line = verdict_line(verdict)
        assert line.startswith(verdict.verdict)
        assert "\n" not in line
    stored = json.loads((tmp_path / "claims.json").read_text())
    assert [one["verdict"] for one in stored["claims"]] == [verdict.verdict for verdict in [*found.verdicts, hostile]]
    assert len(html) < 200_000
