"""The smallest sets that copying needs: what is enough when all else is taken out, and what must go for it to break."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.ablation.effects import runs_of
from copyscope.interp.ablation.hooked_rerun import HookedRuns
from copyscope.interp.ablation.parts import METHODS, NOTHING, Part, Parts, all_heads, check_parts
from copyscope.interp.ablation.questions import MEASURES, copying_question, default_repeated, loss_question
from copyscope.interp.ablation.rerun import Rerun
from copyscope.interp.forward.memory import within_memory
from copyscope.interp.measures.heads import check_names
from copyscope.interp.models.lens import HookedModel
from copyscope.interp.prompts.generate import CopyingTest
from copyscope.training.errors import InputError
from copyscope.training.progress import Progress

KEPT, BROKEN = 0.9, 0.1
"""Shares of the clean accuracy that copying has to keep, or to fall under."""
MIN_CORRECT = 20
"""Right answers that the whole model must give."""
SHORTLIST = 8
"""Candidates for removal that the whole test decides between."""


@dataclass(frozen=True, kw_only=True)
class SmallestSet:
    """Result of one search."""

    search: str
    """`keep` or `remove`."""
    unit: str
    """`heads` or `layers` (whole attention layers)."""
    parts: list[Part]
    """The set, in order of layer; no member of it can be left out. With `reached` False the best that was found."""
    reached: bool
    accuracy: float
    """Copying accuracy with all but the set ablated (`keep`), or with the set ablated (`remove`)."""
    clean: float
    """Of the whole model."""
    bar: float
    """What `accuracy` had to stay at or above (`keep`), or to fall under (`remove`)."""
    control: float
    """Mean accuracy of random sets of the same size; NaN if there is no other set of that size."""
    control_best: float
    """The best of them: the highest for `keep`, the lowest for `remove`."""
    control_sets: int


@within_memory
def smallest_set(
    model: HookedModel,
    test: CopyingTest,
    search: str = "keep",
    unit: str = "heads",
    *,
    method: str = "mean",
    measure: str = "copying_accuracy_token",
    share: float | None = None,
    n_control: int = 20,
    seed: int = 0,
    max_bytes: int | None = None,
    screened: int = 24,
    progress: Progress | None = None,
) -> SmallestSet:
    """The fewest heads (or attention layers) with which copying keeps 90 % of its accuracy, all other heads ablated;
    or (`remove`) the fewest whose ablation brings it under 10 %. MLPs stay.

    `keep` leaves units out, those that matter least first: units are ranked by what leaving each out (beside what is
    out already) does to accuracy and then to copying loss, and the longest stretch of the ranking goes that keeps
    accuracy above the bar; ranked again until nothing more can go. `remove` takes the unit that lowers accuracy most,
    again and again, and then puts back every one that is not needed. Either result is minimal in that no member can be
    left out; that no smaller set of other members exists, a greedy search cannot promise. `share`: another bar than
    0.9 or 0.1.

    To be quick, candidates are ranked on the first `screened` contexts of the test alone; what goes is decided on all
    of it, and the last ranking of `keep`, which shows that no member can be left out, is on all of it too. `progress`
    is called with (units taken out so far, of how many).

    A set that is enough under mean ablation need not be what the model uses in full: backup heads and heads that only
    sharpen are left out of it, and the result holds for this test, method and bar only.

    Raises:
        InputError: the model copies too little for a share of its accuracy to mean something, or an unknown name.
    """
    check_names([search], ("keep", "remove"), "search")
    check_names([unit], ("heads", "layers"), "unit")
    check_names([method], METHODS, "ablation method")
    check_names([measure], MEASURES[:2], "measure")
    asked = _Accuracy(model, test, default_repeated(model, test, seed), method, measure, seed, max_bytes)
    units: list[Part] = [(layer, "attention") for layer in range(model.cfg.n_layers)]
    if unit == "heads":
        units = list(all_heads(model))
    share = (KEPT if search == "keep" else BROKEN) if share is None else share
    if not 0 < share < 1:
        raise InputError(f"share={share}: give the share of the clean accuracy, between 0 and 1")
    right = asked.clean * len(test.tokens) * (1 if measure.endswith("exact") else test.suffix.shape[1])
    if right < MIN_CORRECT:
        raise InputError(
            f"smallest set: the model gets only {round(right)} answers right ({measure} {asked.clean:.4f}), and shares "
            f"of less than {MIN_CORRECT} mean little; take a later step, more samples or another measure"
        )
    bar = share * asked.clean
    done = None if progress is None else lambda out: progress("searching sets", len(out), len(units))
    chosen = (_keep if search == "keep" else _remove)(asked, asked.on_part(screened), units, bar, done)
    if progress:
        progress("searching sets", len(units), len(units))
    out = [u for u in units if u not in chosen] if search == "keep" else chosen
    accuracy = asked.of([out])[0][0] if out else asked.clean
    reached = accuracy >= bar if search == "keep" else accuracy < bar
    others = _random_sets(units, chosen, n_control, seed)
    values = [a for a, _ in asked.of([[u for u in units if u not in o] if search == "keep" else o for o in others])]
    best = (max if search == "keep" else min)(values, default=float("nan"))
    mean = sum(values) / len(values) if values else float("nan")
    return SmallestSet(
        search=search,
        unit=unit,
        parts=sorted(chosen),
        reached=reached,
        accuracy=accuracy,
        clean=asked.clean,
        bar=bar,
        control=mean,
        control_best=best,
        control_sets=len(values),
    )


class _Accuracy:
    """Copying accuracy, and copying loss to tell ties apart, with sets of units ablated."""

    def __init__(
        self,
        model: HookedModel,
        test: CopyingTest,
        repeated: Int[Tensor, "prompt pos"],
        method: str,
        measure: str,
        seed: int,
        max_bytes: int | None,
    ) -> None:
        self.model, self.test, self.repeated = model, test, repeated
        self.how = method, measure, seed, max_bytes
        question = copying_question(model, test)
        self.column, self.weight = question.measures.index(measure), question.weight
        self.runs = [
            runs_of(model, q, method, seed, max_bytes)
            for q in (question, loss_question(model, "copying_loss", repeated, repeated.shape[1] // 2))
        ]
        self.clean = self._mean(self.runs[0].answers([]).clean[None])[0]

    def on_part(self, contexts: int) -> "_Accuracy":
        """The same on the first contexts of the test, and as large a part of the prompts."""
        of_all = self.test.context.cpu()
        count = max(2, contexts)
        if count >= int(of_all.max()) + 1:
            return self
        samples = of_all < count
        test = CopyingTest(*(column[samples.to(column.device)] for column in self.test))
        prompts = max(2, len(self.repeated) * count // (int(of_all.max()) + 1))
        return _Accuracy(self.model, test, self.repeated[:prompts], *self.how)

    def _mean(self, values: Tensor) -> list[float]:
        return ((values[..., self.column] * self.weight).sum(dim=1) / self.weight.sum()).tolist()

    def of(self, sets: Sequence[Sequence[Part]], out: Sequence[Part] = ()) -> list[tuple[float, float]]:
        """(accuracy, -copying loss) with each of `sets` ablated, and `out` besides: higher is better copying."""
        if not sets:
            return []
        variants: list[Parts] = [check_parts(self.model, parts) for parts in sets]
        base = check_parts(self.model, out) if out else NOTHING
        accuracy, loss = (_ablated(runs, variants, base) for runs in self.runs)
        return list(zip(self._mean(accuracy), (-loss[..., 0].mean(dim=1)).tolist(), strict=True))


def _ablated(runs: Rerun | HookedRuns, variants: list[Parts], base: Parts) -> Float[Tensor, "variant row measure"]:
    if isinstance(runs, Rerun) and runs.can_share_base:
        return runs.answers(variants, base=base).ablated
    return runs.answers([parts.union(base) for parts in variants]).ablated


Done = Callable[[list[Part]], object]


def _keep(whole: _Accuracy, quick: _Accuracy, units: list[Part], bar: float, done: Done | None) -> list[Part]:
    out: list[Part] = []
    ranking = quick
    while True:
        kept = [u for u in units if u not in out]
        if len(kept) == 1:
            return kept
        scores = ranking.of([[u] for u in kept], out)
        ranked = [kept[i] for i in sorted(range(len(kept)), key=lambda i: scores[i], reverse=True)]
        if ranking is whole and max(scores)[0] < bar:
            return kept
        # The longest stretch that may go at once, by halving; one unit may, if the whole test ranked it.
        low, high = int(ranking is whole), len(kept) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if whole.of([ranked[:middle]], out)[0][0] >= bar:
                low = middle
            else:
                high = middle - 1
        ranking = ranking if low else whole
        out += ranked[:low]
        if done:
            done(out)


def _remove(whole: _Accuracy, quick: _Accuracy, units: list[Part], bar: float, done: Done | None) -> list[Part]:
    out: list[Part] = []
    value = whole.clean
    while value >= bar and len(out) < len(units):
        candidates = [u for u in units if u not in out]
        if quick is not whole and len(candidates) > SHORTLIST:
            guess = quick.of([[u] for u in candidates], out)
            candidates = [candidates[i] for i in sorted(range(len(candidates)), key=lambda i: guess[i])[:SHORTLIST]]
        scores = whole.of([[u] for u in candidates], out)
        worst = min(range(len(candidates)), key=lambda i: scores[i])
        out.append(candidates[worst])
        value = scores[worst][0]
        if done:
            done(out)
    while len(out) > 1 and value < bar:
        scores = whole.of([[u for u in out if u != back] for back in out])
        least = min(range(len(out)), key=lambda i: scores[i])
        if scores[least][0] >= bar:
            break
        del out[least]
        value = scores[least][0]
    return out


def _random_sets(units: list[Part], chosen: list[Part], count: int, seed: int) -> list[list[Part]]:
    """Different sets of the same size other than the chosen one, with as many heads of each layer if there are such."""
    drawing = random.Random(seed)
    sets: dict[frozenset[Part], None] = {}
    by_layer: dict[int, list[Part]] = {}
    for part in units:
        by_layer.setdefault(part[0], []).append(part)
    matched = any(len(by_layer[layer]) > sum(c[0] == layer for c in chosen) for layer, _ in chosen)
    for _ in range(20 * count):
        if matched:
            drawn = [
                u
                for layer, members in by_layer.items()
                for u in drawing.sample(members, sum(c[0] == layer for c in chosen))
            ]
        else:
            drawn = drawing.sample(units, len(chosen))
        if set(drawn) != set(chosen):
            sets[frozenset(drawn)] = None
        if len(sets) == count:
            break
    return [sorted(s) for s in sets]


def sets_table(sets: Sequence[SmallestSet], method: str) -> pl.DataFrame:
    """A row a member: search, unit, method, layer, head (null for a layer), reached, accuracy, clean, bar, control,
    control_best, control_sets, size. The numbers are those of the whole set."""
    rows = [
        {
            "search": s.search,
            "unit": s.unit,
            "method": method,
            "layer": layer,
            "head": part if isinstance(part, int) else None,
            "size": len(s.parts),
            "reached": s.reached,
            "accuracy": s.accuracy,
            "clean": s.clean,
            "bar": s.bar,
            "control": s.control,
            "control_best": s.control_best,
            "control_sets": s.control_sets,
        }
        for s in sets
        for layer, part in s.parts
    ]
    schema = {"search": pl.String, "unit": pl.String, "method": pl.String, "layer": pl.Int64, "head": pl.Int64}
    schema |= {"size": pl.Int64, "reached": pl.Boolean}
    schema |= dict.fromkeys(("accuracy", "clean", "bar", "control", "control_best"), pl.Float64)
    return pl.DataFrame(rows, schema=schema | {"control_sets": pl.Int64})
