"""The page as a notebook's widget: prompts that are typed in it are computed by the kernel."""

from collections.abc import Callable
from importlib.resources import files
from typing import Any

import anywidget
import traitlets

from copyscope.analyses.explorer.state import Explored
from copyscope.analyses.page.build import page, script_json
from copyscope.analyses.page.libraries import library
from copyscope.training.errors import InputError


class PromptWidget(anywidget.AnyWidget):
    """The page about some runs, live, in a frame that may reach neither the notebook nor the network.

    It asks the kernel by messages `{"view", "id", "kind", "value"}`, and gets `{"view", "id", "error"}` with bytes.
    """

    _esm = files("copyscope.analyses.explorer").joinpath("widget.js").read_text(encoding="utf-8")
    height = traitlets.Int(900, help="Of the frame, in pixels.").tag(sync=True)

    def __init__(self, explored: Explored, start: str, saved: str, height: int) -> None:
        """`start`: the view it opens with, as in the page's address; `saved`: HTML that stands in for the widget where
        there is no kernel."""
        super().__init__(height=height)
        self._explored, self._start, self._saved = explored, start, saved
        self.on_msg(self._asked)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is not None:  # what nbconvert and notebooks without a kernel show
            bundle[0]["text/html"] = self._saved
        return bundle

    def _asked(self, _: Any, question: Any, buffers: Any) -> None:
        """Answers one message; what goes wrong is said in the page in one line."""
        asked = question if isinstance(question, dict) else {}
        error, data = "", []
        try:
            data = [self._answer(asked.get("kind"), asked.get("value"))]
        except InputError as why:
            error = str(why)
        except Exception as why:  # a message handler that raises leaves the page waiting
            error = f"{type(why).__name__}: {why}"
        said = {"view": asked.get("view"), "id": asked.get("id"), "error": " ".join(error.split())}
        self.send(said, buffers=data)

    def _answer(self, kind: Any, value: Any) -> bytes:
        answers: dict[str, Callable[[], str | bytes]] = {
            "page": lambda: page({"title": self._explored.title}, {}, "kernel"),
            "index": lambda: script_json(self._explored.index() | {"start": self._start}),
            "block": lambda: self._explored.block(str(value)),
            "library": lambda: library(str(value)),
            "prompt": lambda: script_json(self._explored.asked_prompt(value)),
            "changed": self._explored.stamp,
        }
        if kind not in answers:
            raise InputError(f"{kind!r}: the page asks for {', '.join(answers)}")
        answer = answers[kind]()
        return answer.encode() if isinstance(answer, str) else answer
