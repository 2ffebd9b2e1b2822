"""Any plain or packed file of text gives the same texts; what cannot be read is named."""

import gzip
import json
import lzma
from collections.abc import Callable
from importlib import metadata
from itertools import islice
from pathlib import Path

import polars as pl
import pytest
import zstandard

from copyscope.training.data.corpora import _python_paths, file_signature, open_source
from copyscope.training.data.text_files import Reading
from copyscope.training.errors import InputError

TEXTS = [f"document number {n} tells its own story, {n * n} words long. " * 8 for n in range(12)]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def texts(path: Path) -> list[str]:
    return list(open_source(str(path)).texts)


def jsonl(rows: list[str]) -> bytes:
    return "".join(json.dumps({"source": "x", "text": text}) + "\n" for text in rows).encode()


def parquet(rows: list[str], path: Path) -> bytes:
    pl.DataFrame({"text": rows}).write_parquet(path)
    return path.read_bytes()


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_documents(kind: str, packed: str, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    if kind == ".txt":
        parts = {f"{n}.txt": text.encode() for n, text in enumerate(TEXTS)}
    else:
        parts = {f"all{kind}": jsonl(TEXTS) if kind == ".jsonl" else parquet(TEXTS, tmp_path / "x")}
    for name, data in parts.items():
        (folder / (name + packed)).write_bytes(PACKERS[packed](data))
    assert sorted(texts(folder)) == sorted(TEXTS)


def test_what_nobody_wrote_as_text_is_passed_by(tmp_path: Path, logged: list[str]) -> None:
    for name in ("._a.txt", ".git/b.txt", "__MACOSX/c.txt", ".ipynb_checkpoints/d.txt", ".#a.txt", "#a.txt#", "a.txt~"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\x05\x16\x07")
    files = {"a.txt": TEXTS[0].encode(), "in/b.TXT": TEXTS[1].encode(), "c.Jsonl.GZ": gzip.compress(jsonl(TEXTS[2:3]))}
    for name, data in (files | dict.fromkeys(["x.md", "y.CSV", "z.csv", "Thumbs.db"], b"not read")).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert sorted(texts(tmp_path)) == sorted(TEXTS[:3])
    assert [line for line in logged if "5 files" in line and "2 .csv" in line and "1 .md" in line] == logged


def test_a_folder_of_nothing_that_is_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".hidden.txt").write_text(TEXTS[0])
    (tmp_path / "a.bin").write_bytes(b"x" * 500)
    for corpus in (tmp_path, tmp_path / "a.bin", tmp_path / "none"):
        with pytest.raises(InputError):
            texts(corpus)
    assert texts(tmp_path / ".hidden.txt") == TEXTS[:1]  # asked for by name


def test_the_embedded_corpus_is_there() -> None:
    assert sum(len(text) for text in islice(open_source("python").texts, 50)) > 100_000


def test_the_embedded_corpus_does_not_depend_on_what_else_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = file_signature("python")
    paths = {path.as_posix() for path in _python_paths()}
    assert any(path.endswith("torch/nn/functional.py") for path in paths)
    assert not [path for path in paths if "/pytest/" in path or "/copyscope/" in path]
    asked = metadata.requires("copyscope") or []
    monkeypatch.setattr(metadata, "requires", lambda _: [*asked, 'pytest>=8; extra == "dev"'])
    assert file_signature("python") == needed
    monkeypatch.setattr(metadata, "requires", lambda _: [*asked, "pytest>=8"])
    assert file_signature("python") != needed
    monkeypatch.setattr(metadata, "requires", lambda _: [*asked, "nowhere-to-be-found"])
    with pytest.raises(InputError, match="nowhere-to-be-found"):
        file_signature("python")


def test_reading_goes_on_where_it_stopped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS[:5]))
    (tmp_path / "b.jsonl").write_bytes(jsonl(TEXTS[5:]))
    for stop in range(len(TEXTS) + 1):
        source = open_source(str(tmp_path))
        first = list(islice(source.texts, stop))
        position = json.loads(json.dumps(source.position()))
        assert first + list(open_source(str(tmp_path), position).texts) == TEXTS


@pytest.fixture
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face data set in a local folder: the library streams it as it does one of the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(3):
        table = pl.DataFrame({"text": TEXTS[4 * number : 4 * number + 4], "title": f"title {number}"})
        table.write_parquet(folder / f"{number}.parquet", row_group_size=3)
    return folder


def test_a_hugging_face_data_set_is_streamed_and_goes_on_where_it_stopped(data_set: Path) -> None:
    for stop in (0, 2, 3, 4, 9, 12):
        source = open_source(f"hf:{data_set}")
        first = list(islice(source.texts, stop))
        position = json.loads(json.dumps(source.position()))
        source.texts.close()
        assert first + list(open_source(f"hf:{data_set}", position).texts) == TEXTS
    assert source.endless


def test_subset_and_column_of_a_data_set_can_be_named(data_set: Path) -> None:
    for name in (f"hf:{data_set}:default", f"hf:{data_set}"):
        titles = open_source(name, reading=Reading(field="title")).texts
        assert set(titles) == {"title 0", "title 1", "title 2"}
    with pytest.raises(InputError, match=r"no column 'body'; its columns are text, title"):
        next(open_source(f"hf:{data_set}", reading=Reading(field="body")).texts)
    with pytest.raises(InputError, match=r"data\.field"):
        next(open_source(f"hf:{data_set}:default:title").texts)
    for wrong in (f"hf:{data_set}:other", f"hf:{data_set}x"):
        with pytest.raises(InputError, match="cannot be streamed") as caught:
            next(open_source(wrong).texts)
        assert "\n" not in str(caught.value)
