"""What happened in a run, in ten lines, and where the run comes from."""

from typing import Any

import polars as pl

from copyscope.analyses.formation.emergence import emergence
from copyscope.analyses.formation.heads import copying_formation, formation_steps, loss_settled, order_of_appearance
from copyscope.analyses.formation.step_rule import CONFIRM
from copyscope.analyses.tables.averages import averaged
from copyscope.analyses.tables.run import Run, chance, read_metrics, read_tables, score_tables, scored_table
from copyscope.training.environment import environments
from copyscope.training.errors import InputError

CARRIERS = 3
"""Heads named in the summary."""
KINDS = (("previous_token", "Previous-token"), ("prefix_matching_sum", "Induction"))
"""Measures that the summary speaks of, and what heads are called that score high."""
METHOD_WORDS = {
    "zero": "zeroed", "mean": "replaced by its mean", "mean_over_positions": "replaced by its mean over positions",
    "resample": "taken from another prompt", "frozen_patterns": "zeroed with all attention held",
}  # fmt: skip


def summary_lines(run: Run) -> list[str]:
    """What happened, a sentence a line: settling of the loss, order of formation, copying, carriers, ablation."""
    heads, model = score_tables(run)
    lines = [_data_line(run, heads)]
    few = heads["step"].n_unique() <= CONFIRM
    for part in (_final_lines,) if few else (_loss_line, _head_lines, _copying_lines):
        try:
            lines += part(run, heads, model)
        except InputError as error:  # too few checkpoints, say: the line then says what is missing
            lines.append(str(error))
    return lines + _ablation_lines(run)


def _data_line(run: Run, heads: pl.DataFrame) -> str:
    steps = heads["step"].n_unique()
    if not run.data or not run.config:
        return f"Measured {steps} checkpoint{'s' * (steps != 1)} of {run.name}."
    tokens = run.config.train.steps * run.config.train.batch_size * run.config.model.n_ctx
    share = tokens / run.data["train"]["tokens"]
    return (
        f"Trained {run.config.train.steps:,} updates on {tokens / 1e6:.1f} M tokens of the corpus {run.data['corpus']} "
        f"({share:.2f} of its {run.data['train']['tokens'] / 1e6:.1f} M) and measured {steps} checkpoints."
    )


def _final_lines(run: Run, heads: pl.DataFrame, model: pl.DataFrame) -> list[str]:
    """Where there are too few checkpoints to say when anything formed: how things are at the last."""
    last = heads.filter(pl.col("step") == pl.col("step").max())
    lines = []
    for measure, kind in KINDS:
        rows = last.filter(pl.col("measure") == measure).sort("value", descending=True).head(CARRIERS)
        null = last.filter(pl.col("measure") == f"{measure}_null").select("layer", "head", null="value")
        named = "; ".join(
            f"{_head(row)} {row['value']:.2f}" + ("" if row["null"] is None else f" (null {row['null']:.2f})")
            for row in rows.join(null, on=["layer", "head"], how="left", maintain_order="left").iter_rows(named=True)
        )
        if named:
            lines.append(f"{kind} heads ({measure}), the highest: {named}.")
    value = dict(model.filter(pl.col("step") == pl.col("step").max()).select("measure", "value").iter_rows())
    if {"copying_accuracy_token", "copying_accuracy_exact"} <= value.keys():
        lines.append(
            f"Copying accuracy on random tokens: {value['copying_accuracy_token']:.3f} per token, "
            f"{value['copying_accuracy_exact']:.3f} exact."
        )
    return lines


def _loss_line(run: Run, heads: pl.DataFrame, model: pl.DataFrame) -> list[str]:
    metrics = read_metrics(run)
    if metrics.is_empty():  # somebody else's series: its losses are not known
        return []
    settled = loss_settled(metrics)
    fall = f"Loss: {settled.start:.2f} nats at step 0, {settled.lowest:.2f} at its lowest"
    if settled.lowest >= settled.start:
        return ["The loss did not fall."]
    rule = f"a doubling of the steps bringing less than {settled.share:.0%} of the fall so far"
    if settled.step is None:
        return [f"{fall}; not settled by step {settled.last // 2:,} ({rule})."]
    return [f"{fall}; settled at step {settled.step:,} ({rule})."]


def _head_lines(run: Run, heads: pl.DataFrame, model: pl.DataFrame) -> list[str]:
    lines = []
    for measure, kind in KINDS:
        table = formation_steps(heads, measure)
        stays = table.filter(pl.col("formed") & ~pl.col("fell_back"))
        strongest = stays.sort("final", descending=True).head(CARRIERS)
        others = [
            (table["fell_back"].sum(), "fell back later"),
            ((table["status"] == "weak").sum(), "rose a little only"),
        ]
        rest = "".join(f", {count} {words}" for count, words in others if count)
        if strongest.is_empty():
            best = table.sort("final", descending=True).row(0, named=True)
            lines.append(
                f"{kind} heads: none formed{rest} (highest {measure} is {_head(best)} with {best['final']:.2f})."
            )
            continue
        named = "; ".join(
            f"{_head(row)} at step {row['bracket_low']:,}–{row['bracket_high']:,} (now {row['final']:.2f}"
            + ("" if row["null"] is None else f", null {row['null']:.2f}")
            + ")"
            for row in strongest.iter_rows(named=True)
        )
        lines.append(f"{kind} heads ({measure}): {stays.height} formed{rest}; strongest {named}.")
    order = order_of_appearance(heads, model, chance=chance(run)).filter(pl.col("step").is_not_null())
    stages = [f"{row['stage']} ({row['measure']}) {row['step']:,}" for row in order.iter_rows(named=True)]
    lines.append(f"Order of appearance, by step: {', '.join(stages) if stages else 'nothing formed yet'}.")
    return lines


def _copying_lines(run: Run, heads: pl.DataFrame, model: pl.DataFrame) -> list[str]:
    table = {row["measure"]: row for row in copying_formation(model, chance(run)).iter_rows(named=True)}
    last = model.filter(pl.col("step") == pl.col("step").max())
    value = dict(zip(last["measure"], last["value"], strict=True))
    token = table["copying_accuracy_token"]
    when = {
        "not yet": "has not appeared",
        "begun": f"began at step {token['onset'] or 0:,} and has not formed yet",
    }.get(token["status"], f"began at step {token['onset'] or 0:,} and was half-way up at step {token['step'] or 0:,}")
    lines = [
        f"Copying accuracy on random tokens {when}; at the end {value['copying_accuracy_token']:.3f} per token, "
        f"{value['copying_accuracy_exact']:.3f} exact (chance {chance(run):.4f}).",
        f"Copying loss at the end: {value['copying_loss_first']:.2f} nats the first time, "
        f"{value['copying_loss_second']:.2f} when repeated.",
    ]
    lines += _averaged_lines(run)
    if token["formed"]:
        found = emergence(model, read_metrics(run), chance(run))
        words = {"after": "Copying surged after the loss had settled", "before": "Copying did not wait for the loss"}
        lines.append(f"{words.get(found.verdict, 'Whether copying came after the loss settled is undecided')}: "
                     f"{found.reason}.")  # fmt: skip
    return lines


def _averaged_lines(run: Run) -> list[str]:
    """What the mean of the last weights does, where there are means of this run."""
    found = averaged(run)
    if found is None:
        return []
    model = scored_table(found, "model")
    last = int(model["step"].max())  # type: ignore[arg-type]
    value = dict(model.filter(pl.col("step") == last).select("measure", "value").iter_rows())
    token, exact = value["copying_accuracy_token"], value["copying_accuracy_exact"]
    return [
        f"The mean of the weights of the last third of the steps to {last:,} copies {token:.3f} per token, {exact:.3f} "
        f"exact ({found.folder})."
    ]


def _ablation_lines(run: Run) -> list[str]:
    table = _ablations(run)
    if table is None:
        return ["No head was ablated."]
    last = table.filter((pl.col("step") == pl.col("step").max()) & (pl.col("method") == pl.col("method").first()))
    wide = last.pivot("measure", index=["layer", "head"], values="value")
    strongest = wide.sort("copying_loss", descending=True).head(CARRIERS)
    named = "; ".join(
        f"{_head(row)} {row['copying_loss']:+.2f} nats, {row['copying_accuracy_token']:+.3f} per token"
        for row in strongest.iter_rows(named=True)
    )
    typical = wide["copying_loss"].median()
    how = METHOD_WORDS.get(str(last["method"][0]), str(last["method"][0]))
    return [f"Removing one head ({how}) changes copying most for: {named} (median head {typical:+.2f} nats)."]


def _ablations(run: Run) -> pl.DataFrame | None:
    return read_tables(run, "ablations") if any((run.folder / "results" / "ablations").glob("step*.parquet")) else None


def _head(row: dict[str, Any]) -> str:
    return f"L{row['layer']}H{row['head']}"


def provenance(run: Run) -> dict[str, str]:
    """Where the run comes from: source, run id, corpus, and what it was computed with."""
    facts: dict[str, Any] = {"source": run.series.source}
    if run.config:
        facts["run_id"] = run.config.run_id
    for field in ("corpus", "fingerprint", "documents", "tokenizer_sha256"):
        if field in run.data:
            facts[f"corpus {field}" if field != "corpus" else field] = run.data[field]
    for one in environments(run.folder):
        words = ", ".join(f"{name} {value}" for name, value in one.items() if name != "from_step")
        facts[f"trained from step {one['from_step']:,} with"] = words
    return {name: str(value) for name, value in facts.items()}
