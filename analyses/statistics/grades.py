"""What a part of a model is to a task, judged by intervals over prompts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from copyscope.analyses.statistics.intervals import CONFIDENCE, t_interval

HALF = 0.5
"""Share of what a task has above chance that has to go for a part to be its primary one."""
GRADES = ("primary", "contributes", "correlates", "interferes", "nothing to see")


@dataclass(frozen=True, kw_only=True)
class Grade:
    """Accuracy in [0, 1]; intervals of 95 % over prompts."""

    grade: str
    """One of `GRADES`; see `grade`."""
    clean: float
    without: float
    """Accuracy without the part."""
    drop: float
    """clean − without, prompt by prompt."""
    drop_low: float
    drop_high: float
    control: str
    """The kind of control whose removal costs most."""
    control_without: float
    """Accuracy without it, the mean over its sets."""
    excess: float
    """How much more the part costs than that control."""
    excess_low: float
    excess_high: float


def grade(
    clean: Float[np.ndarray, " prompt"],
    without: Float[np.ndarray, " prompt"],
    controls: Mapping[str, Float[np.ndarray, "set prompt"]],
    chance: float,
) -> Grade:
    """Grades a part by accuracy with it, without it, and without sets of like parts (cf. arXiv 2606.05378).

    - `interferes`: without it the task goes better, and better than without any kind of control.
    - `nothing to see`: the model is not above `chance` at the task.
    - `primary`: its removal costs more than that of any kind of control, and more than half of what is above chance.
    - `contributes`: it costs more than any kind of control, but not clearly half.
    - `correlates`: the model does the task and has the part, which costs no more than its controls.

    "More" means that the 95 % interval of the difference is above 0. Between sets of a kind the spread counts too. At
    least two prompts. Cannot tell: what backup parts would make up for; a task that needs any of two parts correlates
    with both.
    """
    drop, paired = float((clean - without).mean()), t_interval(clean - without)
    excess = {kind: _excess(without, sets) for kind, sets in controls.items()}
    hardest = min(excess, key=lambda kind: excess[kind][0])
    verdict = "correlates"
    if paired[1] < 0 and all(high < 0 for _, _, high in excess.values()):
        verdict = "interferes"
    elif t_interval(clean)[0] <= chance:
        verdict = "nothing to see"
    elif all(low > 0 for _, low, _ in excess.values()):
        beyond = t_interval(clean - without - HALF * (clean - chance))[0]
        verdict = "primary" if beyond > 0 else "contributes"
    return Grade(
        grade=verdict,
        clean=float(clean.mean()),
        without=float(without.mean()),
        drop=drop,
        drop_low=paired[0],
        drop_high=paired[1],
        control=hardest,
        control_without=float(controls[hardest].mean()),
        excess=excess[hardest][0],
        excess_low=excess[hardest][1],
        excess_high=excess[hardest][2],
    )


def _excess(without: Float[np.ndarray, " prompt"], sets: Float[np.ndarray, "set prompt"]) -> tuple[float, float, float]:
    """Mean of what is left without the controls minus what is left without the part, and its interval."""
    more = sets.mean(axis=0) - without
    variance = more.var(ddof=1) / len(more)
    if len(sets) > 1:
        variance += sets.mean(axis=1).var(ddof=1) / len(sets)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(more) - 1) * np.sqrt(variance))
    return float(more.mean()), float(more.mean()) - half, float(more.mean()) + half
