"""What each study answers: verdicts from its runs, by the rules of the claims and a few of its own."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from scipy import stats

from copyscope.analyses.claims.across_runs import (
    compared,
    exponent,
    learning_rate,
    on_steps,
    optimization_intensity,
    regularization,
    steps_table,
    updates_not_tokens,
)
from copyscope.analyses.claims.contrast import INTERVALS, contrast, step_effect
from copyscope.analyses.claims.evidence import COPYING_LOSS, Evidence
from copyscope.analyses.claims.verdict import (
    MIN_RUNS,
    Verdict,
    blank,
    computed_unlike,
    elsewhere,
    few,
    interval,
    line_of,
    on_exponent,
    taken_as_later,
    undated,
    undecided,
)
from copyscope.analyses.claims.within_runs import (
    delayed_emergence,
    previous_shallow_to_deep,
    shallow_to_deep,
    stage_after_stage,
)
from copyscope.analyses.statistics.censored import censored_slope
from copyscope.analyses.studies.context import APART, LIKE, context_constant, context_laws, later_than_like
from copyscope.analyses.studies.evidence import StudyRun, by_loss, conditions, evidence_of
from copyscope.analyses.studies.passes import beside, keeps, kept
from copyscope.analyses.studies.rate_and_batch import rate_and_batch

SAME_SEED_FACTOR = 1.25
"""Scatter of the formation step over seeds (one standard deviation, as a factor) up to which seeds count as alike."""
SIZES = {"depth": "model.n_layers", "width": "model.d_model", "heads": "model.n_heads"}
LATER, EARLIER = "later or weaker", "earlier or stronger"
EXPECTED = {
    "previous-token head given": EARLIER,
    "that head uniform": LATER,
    "uniform below the last layer": LATER,
    "no loss on repeats": LATER,
}
"""What the theory of induction heads predicts for a condition of the study `intervention`, against `plain`."""

Claim = Callable[[list[Evidence]], Verdict]
Judge = Callable[[Sequence[StudyRun], bool], list[Verdict]]
"""From the runs, and whether to date copying by its loss, to verdicts."""


@dataclass(frozen=True)
class Rules:
    """The rules of one study."""

    by_date: Judge
    """Those that depend on when copying formed: judged by either way of dating it, since the two may differ."""
    without_date: tuple[Claim, ...] = ()
    """Those that do not."""


def judge(name: str, runs: Sequence[StudyRun]) -> list[Verdict]:
    """The verdicts of a study, the one it is about first. Each says by which measure copying was dated, and what the
    other measure would have said where that is something else."""
    loss = by_loss(runs)
    ways = ("accuracy per token", "the copying loss")
    how = f"copying dated by {ways[loss]}" + (", since accuracy formed in few runs" if loss else "")
    absent = [run for run in runs if run.evidence is None]
    note = elsewhere(len(absent), f"such as {absent[0].label}: {absent[0].reason}"[:160]) if absent else ""
    note += computed_unlike(run.outcome.folder for run in runs if run.evidence)
    rules = RULES[name]
    verdicts = []
    for verdict, other in zip(rules.by_date(runs, loss), rules.by_date(runs, not loss), strict=True):
        otherwise = _otherwise(verdict, other, ways[not loss])
        verdicts.append(replace(verdict, reason=f"{verdict.reason}; {how}{otherwise}{note}"))
    evidence = evidence_of(runs)
    undated = [claim(evidence) for claim in rules.without_date]
    return verdicts + [replace(verdict, reason=verdict.reason + note) for verdict in undated]


def _otherwise(verdict: Verdict, other: Verdict, way: str) -> str:
    """What dating copying the other way says, where it says something else."""
    if (verdict.verdict, verdict.value, verdict.low) == (other.verdict, other.value, other.low):
        return ""
    value = "" if other.value is None else f" {other.value:.3g}"
    words = interval(other)
    return f" (by {way}: {other.verdict}{value}{f', {words}' if words else ''})"


def _claims(*claims: Claim) -> Judge:
    """The rules of `copyscope claims`, on the study's runs."""
    return lambda runs, loss: [claim(evidence_of(runs, loss)) for claim in claims]


def _regularization(runs: Sequence[StudyRun], loss: bool) -> list[Verdict]:
    return [*_claims(regularization)(runs, loss), *_against_first(runs, loss, {}, "Regularization")]


def _passes(runs: Sequence[StudyRun], loss: bool) -> list[Verdict]:
    """Earlier or stronger, against none; and whether induction heads last."""
    names = conditions(runs)
    first, *others = ([run for run in runs if run.condition == name] for name in names)
    pairs = zip(names[1:], others, strict=True)
    lasting = [
        replace(
            keeps((names[0], name), (kept(first), kept(other)), len(others)),
            details=beside(names[0], first, name, other, len(others)),
        )
        for name, other in pairs
    ]
    return [*_against_first(runs, loss, {}, "Regularization"), *lasting]


def _context(runs: Sequence[StudyRun], loss: bool) -> list[Verdict]:
    """The laws on chosen windows of one vocabulary; then, with another vocabulary and with every window, the constant,
    and how much later copying forms."""
    by_name = {name: [run for run in runs if run.condition == name] for name in conditions(runs)}
    chosen = [run for run in runs if run.condition not in APART]
    verdicts, like = context_laws(evidence_of(chosen, loss)), evidence_of(by_name.get(LIKE, []), loss)
    for name in [name for name in APART if name in by_name]:
        own = evidence_of(by_name[name], loss)
        verdicts += [context_constant(own, f", {name}"), later_than_like(name, like, own)]
    return verdicts


def _optimizer(runs: Sequence[StudyRun], loss: bool) -> list[Verdict]:
    """In updates, which are tokens too, since batches are equal; then in seconds, as far as runs took any."""
    timed = [run for run in runs if run.outcome.status.seconds > 0]
    return [*_against_first(runs, loss, {}), *_against_first(timed, loss, {}, seconds=True)]


def _against_first(
    runs: Sequence[StudyRun], loss: bool, expected: dict[str, str], what: str = "", seconds: bool = False
) -> list[Verdict]:
    """A verdict a condition, each against the first; the intervals are 95 % for all conditions together.

    `seconds`: compare the seconds to formation (of the whole run, scoring included) instead of the updates.
    """
    names = conditions(runs)
    verdicts = []
    for name in names[1:]:
        wanted = expected.get(name, EARLIER)
        title = f"{what}: {name}" if what else name[:1].upper() + name[1:]
        claim = blank(
            f"{title} makes copying {wanted} than {names[0]}{', in seconds' if seconds else ''}",
            f"relative change of the {'seconds to formation' if seconds else 'formation step'} against {names[0]}",
            f"{INTERVALS} (of nats saved, where copying is dated by the loss), 95 % for all conditions and both "
            "questions together: one on the expected side of 0, none on the other.",
            "An interval on the other side, none on the expected one.",
        )
        pair = [run for run in runs if run.condition in (names[0], name)]
        verdicts.append(_contrasted(claim, pair, name, len(names) - 1, wanted, loss, seconds))
    return verdicts


def _contrasted(
    claim: Verdict, pair: Sequence[StudyRun], name: str, comparisons: int, wanted: str, loss: bool, seconds: bool
) -> Verdict:
    evidence = evidence_of(pair, loss)
    known = [run for run in pair if run.evidence]
    if len({run.condition for run in known}) < 2:
        return undecided(claim, len(evidence), "no runs to compare")
    outcomes = [outcome(one, loss) for one in evidence]
    if seconds:
        outcomes = [_in_seconds(values, run) for values, run in zip(outcomes, known, strict=True)]
    effect = contrast([int(run.condition == name) for run in known], outcomes, comparisons)
    value, low, high = step_effect(effect.table)
    claim = replace(claim, value=value, low=low, high=high)
    verdict = "undecided"
    if effect.verdict in ("helps", "harms"):
        verdict = "supported" if (effect.verdict == "helps") == (wanted == EARLIER) else "contradicted"
    details = effect.table.with_columns(pl.lit(name).alias("value"), pl.lit(pair[0].condition).alias("baseline"))
    if loss:
        details = details.with_columns(pl.col("quantity").replace({"copying_accuracy_token": "copying_loss_saved"}))
    return replace(
        claim, verdict=verdict, runs=len(evidence), details=details, reason=effect.reason + on_steps(evidence)
    )


def outcome(run: Evidence, loss: bool) -> dict[str, float | None]:
    """What `contrast` compares. With `loss`, the nats that a repetition saves stand in for the accuracy, which says
    little where copying is too partial to be dated by it."""
    return compared(run) | (
        {"copying_accuracy_token": -run.final[COPYING_LOSS]} if loss and COPYING_LOSS in run.final else {}
    )


def _in_seconds(values: dict[str, float | None], run: StudyRun) -> dict[str, float | None]:
    """Outcomes in which a step counts as the seconds that the run took to it."""
    per_update = math.log(run.outcome.status.seconds / run.outcome.run.config.train.steps)
    logs = ("log_step", "log_last_step")
    return values | {name: value + per_update for name in logs if (value := values.get(name)) is not None}


def _scale(runs: Sequence[StudyRun], loss: bool) -> list[Verdict]:
    """One verdict a size that was varied while the other sizes are those of the first run."""
    verdicts = []
    for word, name in SIZES.items():
        others = [other for other in SIZES.values() if other != name]
        alike = [run for run in runs if run.evidence and all(_value(run, o) == _value(runs[0], o) for o in others)]
        values = [_value(run, name) for run in alike]
        if len(set(values)) > 1:
            verdicts.append(_power(word, values, evidence_of(alike, loss)))
    return verdicts


def _depth_of_heads(runs: list[Evidence]) -> Verdict:
    """Shallow to deep in the deepest models."""
    deepest = max((run.n_layers for run in runs), default=0)
    return shallow_to_deep([run for run in runs if run.n_layers == deepest])


def _power(word: str, values: Sequence[int], runs: Sequence[Evidence]) -> Verdict:
    claim = blank(
        f"More {word}: copying forms in fewer updates",
        f"exponent of the {word} in the formation step",
        f"{line_of(word)}, over at least {MIN_RUNS} that formed at two values or more; the 95 % interval lies below 0.",
        "The interval lies above 0.",
    )
    formed = [value for value, run in zip(values, runs, strict=True) if run.step is not None]
    count, note = len(set(formed)), on_steps(runs)
    if count < 2 or len(formed) < MIN_RUNS:
        return undecided(claim, len(runs), f"copying formed at {count} values of it{note}")
    claim = replace(claim, runs=len(runs), details=steps_table(runs, word, values))
    return on_exponent(claim, exponent(values, runs), f"formed at {count} of {len(set(values))} values{note}")


def _value(run: StudyRun, name: str) -> int:
    section, _, field = name.partition(".")
    return getattr(getattr(run.outcome.run.config, section), field)


def _corpus(runs: Sequence[StudyRun], loss: bool) -> list[Verdict]:
    claim = blank(
        "Copying forms in fewer updates on text that repeats itself more",
        "change of ln step for each unit of ln share of predictable tokens",
        f"{line_of('share')}, over corpora (mean ln step of each; share of its held-out tokens whose bigram occurred "
        f"before in the window), at least {MIN_RUNS} that formed; the 95 % interval lies below 0.",
        "The interval lies above 0.",
    )
    rows = []
    for name in conditions(runs):
        evidence = evidence_of([run for run in runs if run.condition == name], loss)
        steps = [one.step for one in evidence if one.step is not None]
        shares = [
            one.final["natural_predictable_share"] for one in evidence if "natural_predictable_share" in one.final
        ]
        share = float(np.mean(shares)) if shares else None
        mean = float(np.exp(np.mean(np.log(np.maximum(steps, 0.5))))) if steps else None
        last = max((float(one.last_step) for one in evidence), default=None)
        late = bool(evidence) and all(one.late for one in evidence)
        rows.append((name, share, mean, len(steps), len(evidence), last, late))
    names = ["corpus", "predictable share", "copying forms", "formed", "runs", "last step", "late"]
    details = pl.DataFrame(rows, schema=names, orient="row")
    repeating = details.filter(pl.col("predictable share") > 0)
    known = repeating.filter(pl.col("copying forms").is_not_null())
    late = repeating.filter(pl.col("copying forms").is_null() & pl.col("late"))
    claim = replace(claim, details=details.drop("late"), runs=int(details["formed"].sum()))
    note = elsewhere(details.height - repeating.height, "nothing repeated, or no run") + taken_as_later(late.height)
    if known.height < MIN_RUNS:
        return [replace(claim, reason=f"copying formed on {known.height} corpora: it takes {MIN_RUNS}{note}")]
    x, y = (np.log(known[column].to_numpy().astype(float)) for column in ("predictable share", "copying forms"))
    if np.ptp(x) == 0:
        return [replace(claim, reason=f"all corpora repeat themselves alike{note}")]
    fit = censored_slope(x, y, np.log(late["predictable share"].to_numpy()), np.log(late["last step"].to_numpy()))
    return [on_exponent(claim, fit, f"{known.height} corpora{note}")]


def _alike(evidence: list[Evidence]) -> Verdict:
    claim = blank(
        f"Seeds change the step at which copying forms by no more than a factor of {SAME_SEED_FACTOR:g}",
        "one standard deviation of ln step over seeds, as a factor",
        f"The 95 % interval (chi-square) lies below the factor; at least {MIN_RUNS} seeds.",
        "The interval lies above it.",
    )
    formed = [one for one in evidence if one.step is not None]
    late = sum(one.late for one in evidence)
    note = elsewhere(late, "no copying yet") + undated(len(evidence) - len(formed) - late)
    if len(formed) < MIN_RUNS:
        return undecided(claim, len(formed), few(len(formed)) + note)
    logs = np.log([max(one.step or 0.5, 0.5) for one in formed])
    free, spread = len(logs) - 1, float(np.std(logs, ddof=1))
    low, high = (spread * math.sqrt(free / stats.chi2.ppf(p, free)) for p in (0.975, 0.025))
    limit = math.log(SAME_SEED_FACTOR)
    verdict = "supported" if high < limit else "contradicted" if low > limit else "undecided"
    steps = [one.step for one in formed if one.step is not None]
    reason = f"copying formed between steps {min(steps):,.0f} and {max(steps):,.0f}{note}"
    return replace(
        claim,
        verdict=verdict,
        value=math.exp(spread),
        low=math.exp(low),
        high=math.exp(high),
        runs=len(formed),
        reason=reason,
    )


RULES = {
    "batch-size": Rules(_claims(updates_not_tokens)),
    "intensity": Rules(_claims(optimization_intensity, learning_rate)),
    "regularization": Rules(_regularization),
    "scale": Rules(_scale, (_depth_of_heads,)),
    "corpus": Rules(_corpus),
    "seeds": Rules(_claims(_alike), (delayed_emergence, stage_after_stage, shallow_to_deep)),
    "optimizer": Rules(_optimizer),
    "settling": Rules(_claims(), (delayed_emergence, stage_after_stage)),
    "depth": Rules(_claims(), (shallow_to_deep, previous_shallow_to_deep, stage_after_stage)),
    "passes": Rules(_passes),
    "context": Rules(_context),
    "rate-and-batch": Rules(lambda runs, loss: [rate_and_batch(evidence_of(runs, loss))]),
    "intervention": Rules(lambda runs, loss: _against_first(runs, loss, EXPECTED)),
}
