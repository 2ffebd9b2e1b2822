"""What the explorer knows: the runs' index, read again when their folders change, prompts, attention as it is asked.

Needs torch only once attention is asked for. May be asked from several threads.
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from copyscope.analyses.page.contents import Payload
from copyscope.analyses.page.prompts import Shown, default_prompts, typed_prompt
from copyscope.analyses.page.texts import Texts, texts_of
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import Run
from copyscope.training.errors import InputError

PATTERN_BYTES = 256 << 20
"""Attention kept in memory."""
MAX_TYPED = 50
"""Typed prompts a run keeps; the oldest goes first."""


class Explored:
    """Runs that are being looked at, perhaps while they are written."""

    def __init__(self, sources: Sequence[str | Path], device: str = "auto", dtype: str = "float32") -> None:
        """`device` and `dtype` of the models that compute attention, as for `score`.

        Raises InputError for a source that is none or was not scored, or none at all.
        """
        if not sources:
            raise InputError("no run given; name one or more scored runs")
        self._sources = list(sources)
        self._where: dict[str, Any] = {"device": device, "dtype": dtype}
        self._lock = threading.RLock()
        self._runs = [open_run(source) for source in sources]
        for run in self._runs:
            if not any((run.folder / "results" / "heads").glob("step*.parquet")):
                raise InputError(f"{run.folder}: no results/heads yet; run `copyscope score {run.folder}` first")
        self._stamp = ""
        self._payload: Payload | None = None
        self._texts: dict[int, Texts] = {}
        self._prompts: dict[int, OrderedDict[str, Shown]] = {place: OrderedDict() for place in range(len(sources))}
        self._models: dict[int, Any] = {}
        self._models_lock = threading.Lock()  # its own, so that a model can be loaded while the tables are read
        self._files: dict[tuple[int, int], int] = {}
        self._patterns: OrderedDict[tuple[int, str, int], bytes] = OrderedDict()

    @property
    def title(self) -> str:
        return f"copyscope: {', '.join(run.name for run in self._runs)}"

    def stamp(self) -> str:
        """Changes when checkpoints or results are added or replaced."""
        return "/".join(str(_changed(folder)) for run in self._runs for folder in _folders(run))

    def index(self) -> dict[str, Any]:
        """The page's index, as the folders are now. Raises InputError if a run was not scored or a table is damaged."""
        return self._current().index

    def block(self, name: str) -> bytes:
        """A block by its name; attention is computed. Raises InputError if there is no such block, or why not."""
        kind, _, rest = name.partition("/")
        if kind == "attention":
            return self._attention(rest)
        if kind in ("predictions", "matrices"):
            return self._of_model(kind, rest)
        blocks = self._current().blocks
        if name not in blocks:
            raise InputError(f"{name}: no such block")
        return blocks[name]

    def prompt(self, place: int, text: str) -> dict[str, Any]:
        """Takes a prompt and returns its entry. Raises InputError if it is empty, too long, or `place` is no run."""
        with self._lock:
            run, texts = self._run(place), self._texts_of(place)
            shown = typed_prompt(texts, text)
            self._known(place)[shown.id] = shown
            typed = [name for name, prompt in self._prompts[place].items() if prompt.kind == "typed"]
            for name in typed[:-MAX_TYPED]:
                del self._prompts[place][name]
            return shown.entry(texts, _steps(run))

    def asked_prompt(self, asked: Any) -> dict[str, Any]:
        """`prompt` as a page asks for it. Raises InputError also where that is not `{"run": 0, "text": "…"}`."""
        run, text = (asked.get("run"), asked.get("text")) if isinstance(asked, dict) else (None, None)
        if type(run) is not int or type(text) is not str:
            raise InputError('a prompt is {"run": number, "text": "…"}')
        return self.prompt(run, text)

    def _current(self) -> Payload:
        from copyscope.analyses.page.payload import payload  # here, so that the server is there at once

        with self._lock:
            stamp = self.stamp()
            if self._payload is None or stamp != self._stamp:
                self._runs = [open_run(source) for source in self._sources]
                content = payload(self._runs, live=True)
                self._forget_replaced()
                for place, entry in enumerate(content.entries):
                    try:
                        texts = self._texts_of(place)
                        shown = self._known(place).values()
                        entry.fields["prompts"] = [p.entry(texts, _steps(self._runs[place])) for p in shown]
                    except InputError as error:
                        content.index["left_out"].append(f"{entry.fields['name']}: attention: {error}")
                self._payload, self._stamp = content, stamp
            return self._payload

    def _run(self, place: int) -> Run:
        if not 0 <= place < len(self._runs):
            raise InputError(f"run {place}: there are runs 0 to {len(self._runs) - 1}")
        return self._runs[place]

    def _texts_of(self, place: int) -> Texts:
        if place not in self._texts:
            self._texts[place] = texts_of(self._run(place))
        return self._texts[place]

    def _known(self, place: int) -> OrderedDict[str, Shown]:
        known = self._prompts[place]
        if not known:
            known.update({p.id: p for p in default_prompts(self._run(place), self._texts_of(place))})
        return known

    def _attention(self, name: str) -> bytes:
        parts = name.split("/")
        if len(parts) != 3 or not parts[0].isdecimal() or not parts[2].isdecimal():
            raise InputError(f"attention/{name}: give attention/RUN/PROMPT/STEP")
        key = int(parts[0]), parts[1], int(parts[2])
        with self._lock:
            if key in self._patterns:
                self._patterns.move_to_end(key)
                return self._patterns[key]
            shown = self._shown(key[0], key[1])
        patterns = self._models_of(key[0]).attention(key[2], shown.ids)  # waits for its own model only
        with self._lock:
            self._patterns[key] = patterns
            total = sum(map(len, self._patterns.values()))
            while total > PATTERN_BYTES and len(self._patterns) > 1:
                total -= len(self._patterns.popitem(last=False)[1])
        return patterns

    def _shown(self, place: int, name: str) -> Shown:
        """A prompt by its name. Raises InputError if it is not known."""
        self._run(place)
        shown = self._known(place).get(name)
        if shown is None:
            raise InputError(f"prompt {name!r}: not known here any more; type it again")
        return shown

    def _of_model(self, kind: str, name: str) -> bytes:
        """Predictions of a prompt, perhaps without a head, or a head's matrices over its tokens."""
        parts = name.split("/")
        lengths = (4,) if kind == "matrices" else (3, 4)
        if len(parts) not in lengths or not parts[0].isdecimal() or not parts[2].isdecimal():
            raise InputError(f"{kind}/{name}: give {kind}/RUN/PROMPT/STEP/L3H1; predictions also without the head")
        place, step = int(parts[0]), int(parts[2])
        with self._lock:
            shown, texts = self._shown(place, parts[1]), self._texts_of(place)
        of = self._models_of(place)
        return (of.matrices if kind == "matrices" else of.predictions)(step, shown.ids, texts.words, *parts[3:])

    def warm_up(self) -> None:
        """Imports torch and loads the first run's last model, so that the first attention asked for is there at once.

        A checkpoint that cannot be read is said when it is asked for.
        """
        steps = _steps(self._runs[0])
        with contextlib.suppress(InputError):
            if steps:
                self._models_of(0).load(steps[-1])

    def _models_of(self, place: int) -> Any:
        from copyscope.analyses.page.attention import Models  # takes torch

        with self._models_lock:
            if place not in self._models:
                self._models[place] = Models(self._runs[place], **self._where)
            return self._models[place]

    def _forget_replaced(self) -> None:
        """After the runs were opened again: models know the new checkpoints, and nothing of replaced ones is kept."""
        files = {
            (place, checkpoint.step): _changed(Path(checkpoint.path))
            for place, run in enumerate(self._runs)
            for checkpoint in run.series.checkpoints
        }
        for place, run in enumerate(self._runs):
            old = {key: value for key, value in self._files.items() if key[0] == place}
            if any(files.get(key) != value for key, value in old.items()):
                self._models.pop(place, None)
                self._texts.pop(place, None)
                self._prompts[place].clear()
                for key in [key for key in self._patterns if key[0] == place]:
                    del self._patterns[key]
            elif place in self._models:
                self._models[place].run = run
        self._files = files


def _steps(run: Run) -> list[int]:
    return [checkpoint.step for checkpoint in run.series.checkpoints]


def _folders(run: Run) -> list[Path]:
    results = run.folder / "results"
    kinds = sorted(results.glob("**/")) if results.is_dir() else []
    return [run.folder if not (run.folder / "checkpoints").is_dir() else run.folder / "checkpoints", *kinds]


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
