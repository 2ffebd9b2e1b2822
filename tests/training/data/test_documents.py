"""Documents are distinct, in a fair order, within the budget, held out by their own text, and survive kills."""

import hashlib
import json
from pathlib import Path

import pytest
from examples import examples
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from interrupted import Killed, killed_at

from copyscope.training.data import documents
from copyscope.training.data.cutting import MAX_CHARS
from copyscope.training.data.documents import Documents, gather, key
from copyscope.training.data.text_files import Reading
from copyscope.training.errors import InputError


def text(number: int) -> str:
    return f"document {number} says {number * 7919}é. " * (10 + number % 5)


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def found(source: str, megabytes: float, folder: Path) -> list[str]:
    return [document.text for document in gather(source, megabytes, folder).read()]


def slowly(texts: list[str], megabytes: float) -> list[str]:
    """What should be found of many short texts."""
    kept, size = [], 0
    for one in sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).digest()):
        if size >= megabytes * 1e6:
            break
        kept.append(one)
        size += len(one.encode())
    return kept


@examples(8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numbers=st.lists(st.integers(0, 400), min_size=250, max_size=600).filter(lambda some: len(set(some)) >= 100),
    kilobytes=st.integers(1, 200),
    save_bytes=st.integers(4_000, 40_000),
)
def test_the_documents_are_those_of_a_slow_version(
    numbers: list[int], kilobytes: int, save_bytes: int, tmp_path_factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "SAVE_BYTES", save_bytes)
    folder = tmp_path_factory.mktemp("gathered")
    texts = [text(number) for number in numbers]
    assert found(write(folder / "a.jsonl", texts), kilobytes / 1000, folder / "out") == slowly(texts, kilobytes / 1000)


def test_equal_text_is_equal_whatever_its_order_and_source(tmp_path: Path) -> None:
    texts = [text(number) for number in range(150)]
    one = gather(write(tmp_path / "a.jsonl", texts), 100.0, tmp_path / "1")
    two = gather(write(tmp_path / "b.jsonl", texts[::-1] + texts), 100.0, tmp_path / "2")
    assert one.fingerprint == two.fingerprint
    assert list(one.read()) == list(two.read())
    assert one.n_bytes == sum(len(text.encode()) for text in texts)


def test_most_of_a_large_corpus_is_not_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "SAVE_BYTES", 10_000)
    texts = [text(number) for number in range(3000)]
    assert found(write(tmp_path / "a.jsonl", texts), 0.02, tmp_path / "out") == slowly(texts, 0.02)
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < (tmp_path / "a.jsonl").stat().st_size / 4


@examples(50)
@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=30, unique=True), st.floats(1e-6, 0.49))
def test_training_and_validation_share_no_document_and_neither_is_empty(digests: list[bytes], share: float) -> None:
    digests.sort()
    places = documents.np.zeros(len(digests), documents._PLACE)
    places["digest"] = documents.np.frombuffer(b"".join(digests), ">u8").reshape(-1, 4)
    below = Documents(Path(), places).held_out_below(share)
    held_out = [digest for digest in digests if key(digest) < below]
    if len({key(digest) for digest in digests}) > 1:
        assert 0 < len(held_out) < len(digests)
    usual = [digest for digest in digests if key(digest) < share * 2**64]
    if 0 < len(usual) < len(digests):
        assert held_out == usual  # decided by each text alone


def test_one_file_is_a_corpus_of_many_documents(tmp_path: Path) -> None:
    text = "".join(f"{number} squared is {number * number}.\n" for number in range(2000))
    (tmp_path / "one.txt").write_text(text)
    pieces = found(str(tmp_path / "one.txt"), 100.0, tmp_path / "out")
    assert 20 <= len(pieces) <= 110
    assert sum(map(len, pieces)) == len(text)


def test_long_documents_are_cut_and_short_ones_are_not(tmp_path: Path) -> None:
    texts = [f"{number} " * 300 for number in range(200)]
    table = "".join(f"line {number} of a long table\n" for number in range(20_000))
    pieces = set(found(write(tmp_path / "many.jsonl", [*texts, table]), 100.0, tmp_path / "out"))
    assert set(texts) <= pieces
    assert max(map(len, pieces)) <= MAX_CHARS
    assert sum(map(len, pieces)) == sum(map(len, texts)) + len(table)


def test_the_budget_counts_bytes(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [f"{n}" + "é" * 500 for n in range(10)])  # 1,001 bytes each
    assert len(found(source, 0.003, tmp_path / "out")) == 3


def test_documents_with_other_characters_may_be_left_out(tmp_path: Path) -> None:
    texts = [text(number) for number in range(150)]
    plain = [some.replace("é", "e") for some in texts[:120]]
    source = write(tmp_path / "mixed.jsonl", plain + texts[100:])
    documents = gather(source, 1.0, tmp_path / "gathered", Reading(ascii_only=True))
    assert sorted(document.text for document in documents.read()) == sorted(plain)
    with pytest.raises(InputError, match="ASCII"):
        gather(write(tmp_path / "other.jsonl", texts), 1.0, tmp_path / "none", Reading(ascii_only=True))


def test_a_corpus_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(InputError, match="no document of at least 200 characters"):
        gather(str(tmp_path), 1.0, tmp_path / "out")


@pytest.mark.parametrize("streamed", [False, True])
def test_stopped_at_any_write_it_goes_on(streamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "SAVE_BYTES", 8_000)
    (tmp_path / "set").mkdir()
    texts = [text(number) for number in range(400)]
    write(tmp_path / "set" / "a.jsonl", texts[:190])
    write(tmp_path / "set" / "b.jsonl", texts[190:])
    source = f"hf:{tmp_path / 'set'}" if streamed else str(tmp_path / "set")
    expected = found(source, 0.1, tmp_path / "undisturbed")
    assert len(expected) < 400
    positions = []
    opened = documents.open_source
    monkeypatch.setattr(documents, "open_source", lambda *how: [positions.append(how[1]), opened(*how)][1])
    for write_number in (1, 2, 3, 4, 8, 12):
        out = tmp_path / f"out{write_number}"
        with pytest.raises(Killed), killed_at(write_number, monkeypatch):
            gather(source, 0.1, out)
        assert found(source, 0.1, out) == expected
    assert any(positions)


def test_damaged_text_is_named(tmp_path: Path) -> None:
    gathered = gather(write(tmp_path / "a.jsonl", [text(number) for number in range(120)]), 1.0, tmp_path / "out")
    path = tmp_path / "out" / "0000.text"
    path.write_bytes(path.read_bytes().replace(b"document 7 ", b"document 8 "))
    with pytest.raises(InputError, match=r"0000\.text: damaged .* delete the folder"):
        list(gathered.read())
