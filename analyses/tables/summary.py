"""What happened in a run, in at most ten short lines, and where the run comes from."""

from typing import Any

import polars as pl

from copyscope.analyses.formation.emergence import emergence
from copyscope.analyses.formation.heads import copying_formation, formation_steps, loss_settled
from copyscope.analyses.formation.loss import LossSettled
from copyscope.analyses.formation.step_rule import CONFIRM
from copyscope.analyses.formation.step_text import step_text
from copyscope.analyses.tables.ablation_text import removal_lines
from copyscope.analyses.tables.averages import averaged
from copyscope.analyses.tables.run import Run, chance, read_metrics, score_tables, scored_table
from copyscope.analyses.tables.story import last_removals, stages_of
from copyscope.analyses.tables.text_read import TextRead, stored_text, training_loss
from copyscope.interp.head_names import head_name
from copyscope.training.environment import environments
from copyscope.training.errors import InputError
from copyscope.training.schedule import tokens_at

NAMED = 3
"""Heads named in a line."""
KINDS = (("previous_token", "Previous-token heads"), ("prefix_matching_sum", "Induction heads (prefix matching)"))
"""Measures that the summary speaks of, and what heads are called that score high."""


def summary_lines(run: Run) -> list[str]:
    """What happened, verdict first: copying, order of formation, heads, what removing them does, loss, text.

    A part that cannot be told (too few checkpoints, say) is a line that says what is missing. Raises InputError if the
    run was not scored.
    """
    heads, model = score_tables(run)
    few = heads["step"].n_unique() <= CONFIRM
    lines = []
    for part in (_copying_now, _final_heads) if few else (_verdict, _order, _heads):
        try:
            lines += part(run, heads, model)
        except InputError as error:
            lines.append(str(error))
    lines += _removal(run, heads, model)
    for part in (_plateau, _text):
        try:
            lines += part(run, heads, model)
        except InputError as error:
            lines.append(str(error))
    return lines


def formation_lines(run: Run) -> list[str]:
    """The lines about formation alone: whether the model copies, in which order heads and copying formed, the
    strongest heads. Raises InputError if the run was not scored, or has too few checkpoints."""
    heads, model = score_tables(run)
    return [line for part in (_verdict, _order, _heads) for line in part(run, heads, model)]


def unfinished(run: Run, step: int) -> str:
    """ " (unfinished: step 1,250 of 6,000)" where training has not come to its end, or only part of it was scored; else
    empty. `step`: the last that was scored."""
    last = run.config.train.steps if run.config else step
    if step >= last:
        return ""
    logged = read_metrics(run)["step"].max()
    trained = max([c.step for c in run.series.checkpoints] + [int(logged or 0), step])  # type: ignore[arg-type]
    return f" ({'unfinished: step' if trained < last else 'scored up to step'} {step:,} of {last:,})"


def _verdict(run: Run, heads: pl.DataFrame, model: pl.DataFrame) -> list[str]:
    row = _copying_row(run, model)
    words = {
        "not yet": "No copying yet",
        "begun": f"Copying has begun (clear of chance from step {row['onset'] or 0:,}) but has not formed",
        "formed": "Copying formed",
        "formed, fell back": "Copying formed and fell back",
    }
    verdict = words.get(row["status"], f"Copying: {row['status']}")
    return [verdict + line.removeprefix("Copying") for line in _copying_now(run, heads, model)]


def _copying_row(run: Run, model: pl.DataFrame, measure: str = "copying_accuracy_token") -> dict[str, Any]:
    return copying_formation(model, chance(run)).row(by_predicate=pl.col("measure") == measure, named=True)


def _copying_now(run: Run, heads: pl.DataFrame, model: pl.DataFrame) -> list[str]:
    """Accuracies at the last step, each named by what it is."""
    step, value = _last(model)
    kinds = (
        ("copying_accuracy_token", "per token (each given the right tokens before it)"),
        ("copying_accuracy_greedy", "per token as generated"),
        ("copying_accuracy_exact", "for whole suffixes"),
    )
    said = [f"{value[name]:.3f} {words}" for name, words in kinds if name in value]
    if not said:
        return []
    guess = f"; guessing {chance(run):.4f}" if chance(run) else ""
    return [f"Copying{unfinished(run, step)}: accuracy {', '.join(said)}{guess}{_of_averages(run)}."]


def _of_averages(run: Run) -> str:
    """What the mean of the last weights does, where there are means of this run."""
    try:
        means = averaged(run)
        if means is None:
            return ""
        _, value = _last(scored_table(means, "model"))
    except InputError as error:  # the run's own numbers are right all the same
        return f"; mean of the weights: {error}"
    return f"; mean of the weights of the last quarter {value['copying_accuracy_token']:.3f}"


def _order(run: Run, heads: pl.DataFrame, model: pl.DataFrame) -> list[str]:
    stages = stages_of(run, heads, model).drop_nulls("step").sort("step", maintain_order=True)
    if stages.is_empty():
        return ["Order of formation: nothing formed yet."]
    said = " → ".join(
        f"{row['stage']}{'' if row['head'] is None else f' {_name(row)}'} {step_text(row)}"
        for row in stages.iter_rows(named=True)
    )
    return [f"Order of formation, by step (95 % interval): {said}."]


def _heads(run: Run, heads: pl.DataFrame, model: pl.DataFrame) -> list[str]:
    lines = []
    for measure, kind in KINDS:
        table = formation_steps(heads, measure).sort("final", descending=True)
        stays = table.filter(pl.col("formed") & ~pl.col("fell_back"))
        early = table.filter(pl.col("status") == "from the start")
        unconfirmed = table.filter(pl.col("status") == "unconfirmed")
        counts = [
            (stays.height, "formed"),
            (early.height, "there from the start"),
            (table["fell_back"].sum(), "formed and fell back"),
            ((table["status"] == "weak").sum(), "partial"),
            (unconfirmed.height, f"at the level but unconfirmed (for fewer than {CONFIRM} checkpoints)"),
        ]
        said = [f"{count} {words}" for count, words in counts if count] or ["none formed"]
        best = [f"{_name(row)} {row['final']:.2f}, step {step_text(row)}" for row in _first(stays)]
        best += [f"{_name(row)} {row['final']:.2f}" for shown in (early, unconfirmed) for row in _first(shown)]
        if not best:
            best = [f"highest {_name(row)} {row['final']:.2f}" for row in _first(table, 1)]
        null = table["null"].drop_nulls()
        nulls = f"; null {null.median():.2f}" if len(null) else ""
        lines.append(f"{kind}: {', '.join(said)}; {'; '.join(best)}{nulls}.")
    return lines


def _final_heads(run: Run, heads: pl.DataFrame, model: pl.DataFrame) -> list[str]:
    """Where there are too few checkpoints to say when anything formed: how things are at the last."""
    last = heads.filter(pl.col("step") == pl.col("step").max())
    lines = []
    for measure, kind in KINDS:
        rows = last.filter(pl.col("measure") == measure).sort("value", descending=True).head(NAMED)
        null = last.filter(pl.col("measure") == f"{measure}_null")["value"]
        named = ", ".join(f"{_name(row)} {row['value']:.2f}" for row in rows.iter_rows(named=True))
        if named:
            nulls = f"; null {null.median():.2f}" if len(null) else ""
            lines.append(f"{kind}, the highest: {named}{nulls}.")
    return lines


def _removal(run: Run, heads: pl.DataFrame, model: pl.DataFrame) -> list[str]:
    removals = last_removals(run, model)
    if removals is None:
        return ["No head was ablated."]
    return removal_lines(removals.table, removals.accuracy)


def _plateau(run: Run, heads: pl.DataFrame, model: pl.DataFrame) -> list[str]:
    """When the loss had plateaued, and whether copying came after that."""
    metrics = read_metrics(run)
    if metrics.is_empty() or heads["step"].n_unique() <= CONFIRM:  # a third-party series: its losses are not known
        return []
    if not _copying_row(run, model)["formed"]:
        return [f"Loss: {_plateaued(loss_settled(metrics))}."]
    verdict = emergence(model, metrics, chance(run))
    words = {
        "after": "Copying surged after the loss had plateaued",
        "before": "Copying did not wait for the loss to plateau",
    }
    first = words.get(verdict.verdict, "Undecided whether copying came after the loss had plateaued")
    strict = _plateaued(verdict.settled)
    lenient = _plateaued(verdict.settled_leniently).partition(" (")[0]
    if lenient == strict.partition(" (")[0]:
        return [f"{first}: {strict}, also by a rule half as strict."]
    return [f"{first}: {strict}; by a rule half as strict, {lenient}."]


def _plateaued(settled: LossSettled) -> str:
    if settled.step is not None:
        return f"plateau from step {settled.step:,}"
    return f"no plateau by step {settled.last // 2:,} (half of the steps so far: each is compared with twice that step)"


def _text(run: Run, heads: pl.DataFrame, model: pl.DataFrame) -> list[str]:
    """Which text was read, and the loss on each kind of it."""
    step, value = _last(model)
    count = heads["step"].n_unique()
    measured = f"{count} checkpoint{'s' * (count != 1)} measured"
    if not run.data or not run.config:
        return [_losses(step, value, None, None), f"{measured} of {run.name}."]
    read, choice = stored_text(run), run.config.data.repeat_choice
    tokens = tokens_at(run.config, step)
    corpus = f"the {run.data['train']['tokens'] / 1e6:.1f} M of {run.data['corpus']}"
    passes = f", one window in {choice} kept" if choice > 1 else ""
    if read is None:
        share = f"{tokens / run.data['train']['tokens']:.2f} times {corpus}{passes}"
    else:
        share = f"{read.seen_before:.0%} of them not for the first time; {read.distinct_share:.1%} of {corpus}{passes}"
    lines = [f"Text: {tokens / 1e6:.1f} M tokens read, {share}; {measured}."]
    return [_losses(step, value, training_loss(run, step), read), *lines]


def _losses(step: int, value: dict[str, float], training: float | None, read: TextRead | None) -> str:
    """Each loss by its name; what is not known is left out."""
    losses = [
        (training, "training windows"),
        (read and read.loss_held_out_chosen, "held-out windows chosen alike"),
        (value.get("natural_loss"), "held-out at random"),
        (read and read.loss_training_text, "training text at random"),
        (value.get("copying_loss_first"), "random tokens the first time"),
        (value.get("copying_loss_second"), "random tokens repeated"),
    ]
    said = ", ".join(f"{loss:.2f} on {words}" for loss, words in losses if loss is not None)
    return f"Loss at step {step:,}, nats: {said}."


def _last(model: pl.DataFrame) -> tuple[int, dict[str, float]]:
    """The last step and its values by measure."""
    last = model.filter(pl.col("step") == pl.col("step").max())
    return int(last["step"][0]), dict(last.select("measure", "value").iter_rows())


def _first(table: pl.DataFrame, count: int = NAMED) -> list[dict[str, Any]]:
    return table.head(count).to_dicts()


def _name(row: dict[str, Any]) -> str:
    return head_name(row["layer"], row["head"])


def provenance(run: Run) -> dict[str, str]:
    """Where the run comes from: source, run id, corpus, and what it was computed with."""
    facts: dict[str, Any] = {"source": run.series.source}
    if run.config:
        facts["run_id"] = run.config.run_id
    for field in ("corpus", "fingerprint", "documents", "tokenizer_sha256"):
        if field in run.data:
            facts[f"corpus {field}" if field != "corpus" else field] = run.data[field]
    for setting in environments(run.folder):
        words = ", ".join(f"{name} {value}" for name, value in setting.items() if name != "from_step")
        facts[f"trained from step {setting['from_step']:,} with"] = words
    return {name: str(value) for name, value in facts.items()}
