"""What the name of a checkpoint's folder or revision says: its step, tokens, stage; and whether it is a copy of one."""

import re
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Literal

Unit = Literal["steps", "tokens", "words", "epochs"]

_NUMBER = r"(?P<number>\d{1,3}(?:[_,]\d{3})+(?!\d)|\d+(?:\.\d+)?)(?P<scale>[kmbt](?![a-z]))?"
_JOIN = r"[-_ =.]{0,2}"
_UNITS: dict[Unit, str] = {
    "steps": r"(?:global[-_ ]?)?(?:train(?:ing)?[-_ ]?)?(?:steps?|iter(?:ation)?s?|updates?|batch(?:es)?)",
    "tokens": r"(?:tokens?|toks?)",
    "words": r"words?",
    "epochs": r"epochs?",
}
_HOLDER = r"(?:checkpoints?|ckpts?|chkpts?|chck|model|rev(?:ision)?|save)"
_LABELS = {"stage": r"stage", "ingredient": r"ingredient", "seed": r"seed"}
_PLAIN = {
    "",
    "hf",
    "ckpt",
    "ckpts",
    "checkpoint",
    "checkpoints",
    "model",
    "unsharded",
    "main",
    "iter",
    "step",
    "pytorch",
}
"""What may stand beside numbers in the name of an ordinary checkpoint."""
_LAST = {"main", "master", "final", "best", "last", "latest", "end"}
_COPY = re.compile(
    r"(^|[^a-z])(tmp|temp|backup|bak|old|orig|copy|incomplete|partial|unfinished|broken|trash|deleted)([^a-z]|$)|~$"
)
COPY = "a copy, or not written to its end"
"""Why a backup or a staging folder is left out."""
_SCALE = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Named:
    """A name, read."""

    name: str
    number: int | None
    """Of steps if the name has them, else of tokens, words or epochs; None where no number is understood."""
    unit: Unit
    """What `number` counts."""
    tokens: int | None
    stage: str
    """Stage, ingredient and seed, as in `stage2-ingredient1`; empty without."""
    around: str
    """The name without its numbers where it says more than that this is a checkpoint; else empty."""

    @property
    def is_copy(self) -> bool:
        """Whether it is a backup, or a folder still being written."""
        return bool(_COPY.search(self.name.lower()))

    @property
    def is_last(self) -> bool:
        """Whether it names a model by its place, as `main` and `best` do, not by a number."""
        word = re.sub(r"^(model|checkpoint|ckpt)[-_ ]|[-_ ](model|checkpoint|ckpt)$", "", self.name.lower())
        return self.number is None and word in _LAST


def read_name(name: str) -> Named:
    """Reads steps (`step100`, `ckpt_100`, `iter_0001000`, `100-checkpoint`, `step-480k`, `500`), tokens (`tokens42B`,
    `token-1007B`), words (`chck_10M`, as BabyLM counts), epochs, stages, ingredients and seeds.

    Steps count before a checkpoint's mere number, that before tokens, words and epochs. A number with a fraction is
    none, unless its scale makes it whole (`1.5k`).
    """
    text = name.lower().strip()
    held: dict[str, int] = {}
    labels = []
    for label, word in _LABELS.items():
        match = re.search(rf"(?<![a-z]){word}{_JOIN}(\d+)(?!\d)", text)
        if match:
            labels.append(f"{label}{int(match[1])}")
            text = _without(text, match)
    after = 0
    for unit, word in (*_UNITS.items(), ("holder", _HOLDER)):
        match = re.search(rf"(?<![a-z]){word}{_JOIN}{_NUMBER}(?![a-z])", text)
        match = match or re.search(rf"(?<![a-z\d.]){_NUMBER}{_JOIN}{word}(?![a-z])", text)
        value = _value(match)
        if match and value is not None:
            scaled = match["scale"] is not None
            babylm = unit == "holder" and scaled and "chck" in match[0]
            if unit == "holder" and scaled and not babylm:
                continue  # as model-7b
            held["words" if babylm else unit] = value
            after = match.start()
            text = _without(text, match)
    if held.keys() & {"steps", "holder"} and "tokens" not in held:  # as step-50k-105b
        match = re.compile(r"(?<![a-z\d.])(?P<number>\d+(?:\.\d+)?)(?P<scale>[bt])(?![a-z])").search(text, after)
        if match:
            held["tokens"] = _value(match) or 0
            text = _without(text, match)
    if not held:
        match = re.fullmatch(r"(?P<number>\d+(?:[_,]\d{3})*)(?P<scale>k)?", text)
        tokens = re.fullmatch(r"(?P<number>\d+(?:\.\d+)?)(?P<scale>[bt])t?", text)
        value = _value(match or tokens)
        if value is not None:
            held["steps" if match else "tokens"] = value
            text = ""
    words = set(re.split(r"[-_ =.\0]+", text))
    around = "" if words <= _PLAIN else re.sub(r"\d+", "#", text)
    if "holder" in held:
        held.setdefault("steps", held["holder"])
    for counted in _UNITS:
        if counted in held:
            return Named(name, held[counted], counted, held.get("tokens"), "-".join(labels), around)
    return Named(name, None, "steps", None, "-".join(labels), around)


def _without(text: str, match: re.Match[str]) -> str:
    return f"{text[: match.start()]}\0{text[match.end() :]}"


def _value(match: re.Match[str] | None) -> int | None:
    """The number as a whole one; None where it is none."""
    if match is None:
        return None
    digits = match["number"].replace("_", "").replace(",", "")
    scale = _SCALE.get(match["scale"] or "", 1)
    whole, _, fraction = digits.partition(".")
    value, rest = divmod(int(whole + fraction) * scale, 10 ** len(fraction))
    return None if rest or (fraction and scale == 1) else value


@dataclass(frozen=True)
class Arranged:
    """Names of a series in its order."""

    kept: tuple[Named, ...]
    left_out: dict[str, str]
    """Name → why it is no part of the series."""
    unit: Unit
    """What the numbers count."""


def arrange(names: Iterable[str], known: Container[str] = (), chosen: bool = False) -> Arranged:
    """Which names make a series, by rising number.

    Backups, names without a number, those that count something coarser than the others do, and those built differently
    from most are left out. `known`: names whose step is known otherwise, which count as plain. `chosen`: a user listed
    them, so that neither copies nor how they are built matter.
    """
    read = [read_name(name) for name in names]
    left: dict[str, str] = {}
    numbered = []
    for named in read:
        if named.is_copy and not chosen:
            left[named.name] = COPY
        elif named.number is None and named.name not in known:
            left[named.name] = "no step in its name"
        else:
            numbered.append(named)
    units: list[Unit] = [unit for unit in _UNITS if any(named.unit == unit for named in numbered)]
    unit: Unit = units[0] if units else "steps"
    for named in numbered:
        if named.unit != unit and named.name not in known:
            left[named.name] = f"counts {named.unit}, others {unit}"
    numbered = [named for named in numbered if named.name not in left]
    shapes = Counter("" if named.name in known else named.around for named in numbered)
    if len(shapes) > 1 and not chosen:
        most = max(shapes.values())
        usual = sorted(shape for shape, count in shapes.items() if count == most)
        if len(usual) > 1 and usual[0]:
            some = [next(n.name for n in numbered if n.around == shape) for shape in usual[:2]]
            raise AmbiguousError(f"{some[0]} and {some[1]} seem to be of different series")
        for named in numbered:
            if named.name not in known and named.around != usual[0]:
                left[named.name] = "named otherwise than the others"
        numbered = [named for named in numbered if named.name not in left]
    return Arranged(tuple(sorted(numbered, key=lambda n: (n.number or 0, natural(n.name)))), left, unit)


class AmbiguousError(ValueError):
    """Names of which it cannot be said which are the series; the message names two."""


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key by which names sort with their numbers as numbers."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", name.lower())]
