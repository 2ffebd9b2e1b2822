"""Whatever a writer that dies leaves behind: nothing is lost, nothing is taken for whole, nothing stays for good."""

import errno
import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from copyscope.training import files
from copyscope.training.checkpoints.manifest import read_manifest
from copyscope.training.checkpoints.series import CheckpointSeries
from copyscope.training.errors import InputError
from copyscope.training.files import alone_in, together_in, write_bytes, write_folder, write_text


def filled_with(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        for name in ("config.json", "weights"):
            (folder / name).write_text(text)

    return fill


def save(target: Path, text: str) -> None:
    write_folder(target, filled_with(text), step=1, tokens=1, run_id="r")


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Killed(BaseException):
    pass


def save_and_die(target: Path, call: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Writes "new" to the target, in a process that dies before its n-th change of the disk. Whether it died."""
    count, dead = itertools.count(1), False

    def dies(function: Callable[..., object]) -> Callable[..., object]:
        def do(*arguments: object, **options: object) -> object:
            nonlocal dead
            dead = dead or next(count) == call
            if dead:  # a dead process cleans nothing up either
                raise Killed
            return function(*arguments, **options)

        return do

    with monkeypatch.context() as patch, suppress(Killed):
        for name in ("mkdir", "rename", "rmdir", "unlink", "fsync", "chmod"):
            patch.setattr(os, name, dies(getattr(os, name)))
        patch.setattr(files, "_PROCESS", "0" * 8)  # so that this process takes it for another's
        save(target, "new")
    return dead


def test_killed_at_any_change_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks next finds the old folder or the new one, and nothing else."""
    seen = []
    for call in itertools.count(1):
        target = tmp_path / str(call) / "step00000001"
        save(target, "old")
        if not save_and_die(target, call, monkeypatch):
            break
        moved_aside = not target.exists()
        series = CheckpointSeries.open(target.parent)
        assert [Path(c.path).name for c in series.checkpoints] == names(target.parent) == [target.name]
        assert (target / "config.json").read_text() == (target / "weights").read_text()
        seen.append((moved_aside, (target / "weights").read_text()))
        save(target, "newer")
        assert (target / "weights").read_text() == "newer"
    assert set(seen) == {(False, "old"), (True, "old"), (False, "new")}


def left_by(pid: int, kind: str, host: str | None = None) -> str:
    return f".step00000002.{host or files._HOST}-{pid}-{'a' * 8}-0.{kind}"


def test_what_a_dead_writer_left_goes_and_what_a_living_one_is_at_stays(tmp_path: Path) -> None:
    save(tmp_path / "step00000001", "sound")
    living, dead, another = os.getppid(), dead_process(), "f" * 8
    for name in (left_by(living, "partial"), left_by(dead, "partial"), left_by(1, "partial", another)):
        shutil.copytree(tmp_path / "step00000001", tmp_path / name)
    (tmp_path / left_by(dead, "partial").replace("step", "file")).write_text("half")
    (tmp_path / ".theirs.partial").write_text("not ours to delete")
    assert [c.step for c in CheckpointSeries.open(tmp_path).checkpoints] == [1]
    stay = [left_by(living, "partial"), left_by(1, "partial", another), ".theirs.partial", "step00000001"]
    assert names(tmp_path) == sorted(stay)
    long_ago = 1_000_000_000
    os.utime(tmp_path / left_by(1, "partial", another), (long_ago, long_ago))
    write_text(tmp_path / "a.txt", "any write tidies up")
    assert names(tmp_path) == sorted([left_by(living, "partial"), ".theirs.partial", "a.txt", "step00000001"])


@pytest.mark.parametrize("new_came", [False, True])
def test_a_folder_moved_aside_comes_back_unless_the_new_one_came(new_came: bool, tmp_path: Path) -> None:
    save(tmp_path / "step00000002", "old")
    if new_came:
        save(tmp_path / "kept-away", "new")
    (tmp_path / "step00000002").rename(tmp_path / left_by(dead_process(), "old"))
    if new_came:
        (tmp_path / "kept-away").rename(tmp_path / "step00000002")
    assert len(CheckpointSeries.open(tmp_path).checkpoints) == 1
    assert (tmp_path / "step00000002" / "weights").read_text() == ("new" if new_came else "old")
    assert names(tmp_path) == ["step00000002"]


def test_many_writers_of_one_target(tmp_path: Path) -> None:
    """The folder that stays is one writer's as a whole, and no writer fails."""
    target, errors = tmp_path / "step00000001", []

    def work(writer: int) -> None:
        try:
            for turn in range(10):
                save(target, f"{writer} {turn}")
                write_text(tmp_path / "note.txt", f"{writer} {turn}" * 100)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (target / "config.json").read_text() == (target / "weights").read_text()
    assert CheckpointSeries.open(target).checkpoints[0].step == 1
    assert read_manifest(target)["files"].keys() == {"config.json", "weights"}
    assert len(set((tmp_path / "note.txt").read_text().split())) <= 12
    assert names(tmp_path) == ["note.txt", "step00000001"]


def test_weights_can_be_read_by_whom_the_folder_can(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "config.json").chmod(0o600)

    write_folder(tmp_path / "step1", fill, step=1, tokens=1, run_id="r")
    assert (tmp_path / "step1" / "config.json").stat().st_mode & 0o777 == (tmp_path / "step1").stat().st_mode & 0o666


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    for write in (lambda: write_bytes(tmp_path / "file" / "a", b""), lambda: save(tmp_path / "file" / "step1", "")):
        with pytest.raises(InputError, match=r"cannot write .*file/.*: .*; choose another place"):
            write()

    def refuse(_: int) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError, match=r"cannot write .*a.txt: Permission denied"):
        write_bytes(tmp_path / "a.txt", b"new")
    assert names(tmp_path) == ["file"]


def test_a_folder_is_held_together_or_alone(tmp_path: Path) -> None:
    said: list[str] = []

    def together(name: str) -> AbstractContextManager[None]:
        calls = (lambda word=word: said.append(f"{name} {word}") for word in ("waits", "first", "last"))
        return together_in(tmp_path, *calls)

    def hold_alone() -> None:
        with alone_in(tmp_path, waiting=lambda: said.append("alone waits")):
            said.append("alone")

    thread = threading.Thread(target=hold_alone)
    with together("a"):
        with together("b"):
            assert said == ["a first"]
        thread.start()
        while "alone waits" not in said:
            time.sleep(0.01)
        assert said == ["a first", "alone waits"]  # b was not the last
    thread.join()
    assert said[-1] == "alone" or said[-2:] == ["alone", "a last"]
    with together("c"):
        pass
    assert said[-2:] == ["c first", "c last"]
