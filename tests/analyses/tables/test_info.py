"""A run at a glance: what is there, what is missing, what to do next."""

from pathlib import Path

from written_run import STEPS, config, write_run

from copyscope.analyses.tables.info import info, info_lines


def test_what_is_there_is_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config(), copies_at=2000)
    (run / "results" / "ablations" / "sets").mkdir(parents=True)
    (run / "results" / "ablations" / "sets" / "step00000008.parquet").touch()
    (run / "report.html").touch()
    about = info(run)
    assert (about.name, about.checkpoints, about.scored) == ("run", 0, len(STEPS))
    assert (about.trained_to, about.steps) == (STEPS[-1], STEPS[-1])
    assert about.ablated == {"sets": [8]}
    assert about.pages == ["report.html"]
    assert len(info_lines(run)) <= 10


def test_the_next_command_is_what_is_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config(), copies_at=2000)
    assert info_lines(run)[-1] == f"Next: copyscope map {run}"
    (run / "results" / "formation.json").write_text("{}")
    assert info_lines(run)[-1] == f"Next: copyscope explore {run}"
    for path in (run / "results" / "heads").iterdir():
        path.unlink()
    assert info_lines(run)[-1] == f"Next: copyscope score {run}"


def test_a_run_cut_short_is_unfinished(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config(**{"train.steps": STEPS[-1] + 1000}), copies_at=2000)
    (training,) = [line for line in info_lines(run) if line.startswith("Training:")]
    assert f"step {STEPS[-1]:,} of {STEPS[-1] + 1000:,}" in training
    assert "unfinished" in training
