"""Reads weights of any size from safetensors files, a chunk at a time: nothing is unpickled, and no model is built."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from copyscope.training.checkpoints.tensor_names import DoubleError, is_unread, plain_names
from copyscope.training.checkpoints.unfit import refuse_unfit, why_no_weights
from copyscope.training.errors import InputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CHUNK = 1 << 20
"""Values read at once: 4 MB of float32, which stay in the processor's caches."""
_HEADER_BYTES = 100_000_000
_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "U64": 8,
    "I32": 4,
    "U32": 4,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1,
    "C64": 8,
}
_PACKED = ("F4", "F6_E2M3", "F6_E3M2")  # several values to a byte: their sizes are left unchecked
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class UnreadableError(ValueError):
    """A weight file that cannot be read; the message says why, not where."""


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """Where a tensor lies: bytes `start` to `end` of the file `path`."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    stored: str = ""
    """Its name in the file, which wrappers may have added to."""

    @property
    def value_bytes(self) -> int:
        """Bytes of a value; 1 for a dtype that has several to a byte."""
        return _BYTES.get(self.dtype, 1)

    @property
    def is_float(self) -> bool:
        """Whether `Weights.values` reads it."""
        return self.dtype in _FLOATS


def read_index(folder: Path) -> dict[str, list[str]]:
    """The files that hold a checkpoint's weights, each with the tensors it should hold (empty: any).

    Empty where there are no safetensors. Raises UnreadableError if the index of a sharded one is not to be read.
    """
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return {SINGLE: []} if (folder / SINGLE).is_file() else {}
    files: dict[str, list[str]] = {}
    try:
        for tensor, name in json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].items():
            if name != Path(name).name or name.startswith("."):
                raise ValueError(f"{name!r} is not the name of a file beside it")
            files.setdefault(name, []).append(tensor)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise UnreadableError(f"unreadable ({type(error).__name__}: {error})") from None
    return files


def read_header(path: Path) -> dict[str, TensorPlace]:
    """The tensors of a safetensors file. Raises UnreadableError unless its size is what its header says."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_BYTES):
            raise UnreadableError(f"cut off or damaged: {size} bytes cannot hold its header")
        data = stream.read(length)
    try:
        header = json.loads(data, object_pairs_hook=_once)
        header.pop("__metadata__", None)
        places = {name: _place(path, name, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableError(f"damaged: its header is not to be read ({type(error).__name__}: {error})") from None
    end = 8 + length
    for place in sorted(places.values(), key=lambda place: (place.start, place.end)):
        if place.start != end:
            raise UnreadableError("damaged: its tensors overlap or leave gaps")
        end = place.end
    if size != end:
        cut = f"cut off: {end - size} of {end} bytes are missing" if size < end else f"{size - end} bytes too long"
        raise UnreadableError(cut)
    return places


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return entries


def _place(path: Path, name: str, entry: Mapping[str, Any], base: int) -> TensorPlace:
    shape = tuple(entry["shape"])
    start, end = entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise ValueError("sizes must be whole numbers from 0")
    if entry["dtype"] not in (*_BYTES, *_PACKED):
        raise ValueError(f"{entry['dtype']!r} is no dtype of safetensors")
    if entry["dtype"] in _BYTES and math.prod(shape) * _BYTES[entry["dtype"]] != end - start:
        raise ValueError(f"{end - start} bytes for shape {list(shape)} of {entry['dtype']}")
    return TensorPlace(path=path, dtype=entry["dtype"], shape=shape, start=base + start, end=base + end, stored=name)


def by_plain_name(headers: Sequence[Mapping[str, TensorPlace]]) -> dict[str, TensorPlace]:
    """The tensors of a model's files by transformers' names, without buffers that nothing reads.

    Raises UnreadableError for a tensor that is there twice.
    """
    places: dict[str, TensorPlace] = {}
    for header in headers:
        for name in header:
            if name in places:
                raise UnreadableError(
                    f"{name} is there twice, in {places[name].path.name} and {header[name].path.name}"
                )
        places |= header
    try:
        names = plain_names(places)
    except DoubleError as error:
        raise UnreadableError(str(error)) from None
    return {names[old]: place for old, place in places.items() if not is_unread(names[old], place.shape)}


def model_tensors(folder: Path) -> dict[str, TensorPlace]:
    """Where the weights of a model's folder lie, by transformers' names, without buffers that nothing reads.

    Takes off what wrappers put into names. Reads headers, not values. Raises InputError naming what is missing, damaged
    or there twice, and for weights that are quantised, an adapter's or part of a training state.
    """
    try:
        files = read_index(folder)
        refuse_unfit(folder, {})
        if not files:
            raise UnreadableError(why_no_weights(folder))
    except UnreadableError as error:
        raise InputError(f"{folder}: {error}") from None
    headers = []
    for file, listed in files.items():
        try:
            header = read_header(folder / file)
            for tensor in sorted(set(listed) - header.keys())[:1]:
                raise UnreadableError(f"{tensor} is not in it, though the index says so; fetch it again")
        except FileNotFoundError:
            raise InputError(f"{folder / file}: missing, though the index lists it; fetch it again") from None
        except (UnreadableError, OSError) as error:
            raise InputError(f"{folder / file}: {getattr(error, 'strerror', None) or error}") from None
        headers.append(header)
    try:
        places = by_plain_name(headers)
    except UnreadableError as error:
        raise InputError(f"{folder}: {error}") from None
    refuse_unfit(folder, {name: place.dtype for name, place in places.items()})
    return places


class Weights:
    """All tensors of a checkpoint, whatever the files they lie in; a context manager that holds the files open."""

    def __init__(self, places: Mapping[str, TensorPlace]):
        self.places = dict(places)
        self._stack = ExitStack()
        self._files: dict[Path, IO[bytes]] = {}

    def __enter__(self) -> "Weights":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Until it is read again."""
        self._stack.close()
        self._files.clear()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: place.shape for name, place in sorted(self.places.items())}

    def bytes_of(self, name: str, first: int, count: int) -> np.ndarray:
        """At most `count` bytes of a tensor from byte `first` on, [byte] uint8."""
        place = self.places[name]
        if place.path not in self._files:
            self._files[place.path] = self._stack.enter_context(place.path.open("rb", buffering=0))
        stream = self._files[place.path]
        stream.seek(place.start + first)
        return np.fromfile(stream, np.uint8, max(0, min(count, place.end - place.start - first)))

    def values(self, name: str, first: int, count: int) -> np.ndarray:
        """At most `count` values of a float tensor from value `first` on, [value] float32 (float64 where it is)."""
        dtype = self.places[name].dtype
        size = _BYTES[dtype]
        values = self.bytes_of(name, first * size, count * size).view(_FLOATS[dtype])
        if dtype == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values if dtype == "F64" else values.astype(np.float32, copy=False)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What one look at all values of a checkpoint shows."""

    fingerprint: str
    """Equal for equal weights (names, shapes, values), in whatever files, order and precision they lie. Sums, not a
    hash: weights of one fingerprint are as good as surely equal, and `distance` says whether they are."""
    not_finite: str | None
    """The first tensor with NaN, inf, or values too large to be squared."""
    zeros: dict[str, int]
    """Float tensors that end in zeros, and in how many."""
    distances: tuple[float, ...]
    """Euclidean distance over all float tensors to each of the checkpoints given."""


def scan(weights: Weights, others: Sequence[Weights] = ()) -> Scan:
    """Reads a checkpoint once, and with it `others` (with tensors of the same names and shapes)."""
    squares = [0.0] * len(others)
    not_finite, zeros, parts = None, {}, []
    for name, place in sorted(weights.places.items()):
        if not place.is_float:
            parts.append((name, place.shape, _digest(weights, name)))
            continue
        sums, trailing = [], 0
        for first in range(0, math.prod(place.shape), CHUNK):
            values = weights.values(name, first, CHUNK)
            if not_finite is None and not math.isfinite(_square(values)):
                not_finite = name
            sums.append(_sum_of_bits(values))
            trailing = _trailing_zeros(values, trailing)
            for i, other in enumerate(others):
                squares[i] += _square(values - other.values(name, first, CHUNK))
        if trailing:
            zeros[name] = trailing
        parts.append((name, place.shape, sums))
    fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()
    return Scan(fingerprint=fingerprint, not_finite=not_finite, zeros=zeros, distances=tuple(map(math.sqrt, squares)))


def distance(first: Weights, second: Weights) -> float:
    """Euclidean distance over all float tensors of two checkpoints with tensors of the same names and shapes."""
    total = 0.0
    for name, place in first.places.items():
        if place.is_float:
            for start in range(0, math.prod(place.shape), CHUNK):
                total += _square(first.values(name, start, CHUNK) - second.values(name, start, CHUNK))
    return math.sqrt(total)


def _digest(weights: Weights, name: str) -> str:
    place, digest = weights.places[name], hashlib.sha256()
    for first in range(0, place.end - place.start, CHUNK):
        digest.update(weights.bytes_of(name, first, CHUNK).tobytes())
    return digest.hexdigest()


def _square(values: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        return float(np.dot(values, values))


def _sum_of_bits(values: np.ndarray) -> int:
    """Of the values as float32, where 0 and -0 are one; modulo 2^64, so that it does not depend on the order."""
    bits = (values.astype(np.float32, copy=False) + np.float32(0)).view(np.uint32)
    even = len(bits) // 2 * 2
    total = int(np.add.reduce(bits[:even].view(np.uint64))) + int(bits[even:].sum())
    return total % 2**64


def _trailing_zeros(values: np.ndarray, before: int) -> int:
    """Zeros at the end of a part that follows `before` zeros."""
    if values[-1] != 0:
        return 0
    nonzero = np.flatnonzero(values)
    return len(values) - 1 - int(nonzero[-1]) if len(nonzero) else before + len(values)
