"""What stored ablations say, in a line or a few each, for the command line, the summary and the page."""

import math
from typing import Any

import polars as pl

from copyscope.interp.head_names import head_name

NAMED = 5
"""Heads, pairs or paths that are named."""
BROKEN = 0.1
"""Copying is broken where less than this share of the whole model's accuracy is left."""
COPIES = 0.01
"""Accuracy from which a share of it means something."""
UNDONE = 0.1
"""An effect is undone by holding attention where less than this share of it is left."""
METHODS = {
    "zero": "set to zero",
    "mean": "replaced by its mean over prompts",
    "mean_over_positions": "replaced by its mean over prompts and positions",
    "resample": "taken from another prompt",
    "frozen_patterns": "set to zero with all attention patterns held",
}
"""What is done to a head, in words."""


def in_words(what: str, table: pl.DataFrame, clean: float | None = None) -> list[str]:
    """Lines about the last step of a kind's table, one a method. `clean`: copying accuracy of the whole model, where
    known, so that heads which break copying can be named."""
    last = table.filter(pl.col("step") == pl.col("step").max())
    if last.is_empty():
        return []
    step, lines = int(last["step"][0]), []
    for (method,), part in last.group_by("method", maintain_order=True):
        said = _heads(part, clean) if what == "heads" else _WORDS[what](part)
        lines.append(f"{what} at step {step:,}, {method}: {said}")
    return lines


def removal_lines(last: pl.DataFrame, clean: float | None) -> list[str]:
    """What removing one head does, for a summary: which heads break copying, and what each of the strongest costs on
    repeated tokens and on natural text, beside heads of like attention entropy.

    `last`: ablations of single heads at one step; `clean`: copying accuracy of the whole model.
    """
    method, strongest = removed_heads(last)
    if "copying_loss" not in strongest.columns:
        return []
    how = f"Removing one head ({METHODS.get(method, method)})"
    if clean is not None and clean < COPIES:
        best = strongest.row(0, named=True)
        return [
            f"{how}: the model hardly copies, so this says little; largest effect on copying loss "
            f"{_name(best)} {best['copying_loss']:+.2f} nats."
        ]
    names = _listed([_name(row) for row in breaking(strongest, clean).iter_rows(named=True)])
    breaks = f"{names} {'each break' if ' and ' in names else 'breaks'}" if names else "no single head breaks"
    lines = [f"{how}: {breaks} copying (under a tenth of its accuracy left)."]
    said = []
    for row in strongest.head(3).iter_rows(named=True):
        said.append(f"{_name(row)} {row['copying_loss']:+.2f}{_beside(row)}")
    alone = _by_attention_alone(last, strongest)
    steering = f" {_listed(alone)} only steer{'s' * (len(alone) == 1)} later heads' attention." if alone else ""
    return [*lines, f"Cost in copying loss, nats: {'; '.join(said)}.{steering}"]


def removed_heads(last: pl.DataFrame) -> tuple[str, pl.DataFrame]:
    """The first method of a table of single heads removed at one step, and its rows: a row a head, a column a measure,
    the head whose removal costs most copying loss first (where that was measured)."""
    method = str(last["method"][0])
    wide = _wide(last.filter(pl.col("method") == method))
    return method, wide.sort("copying_loss", descending=True) if "copying_loss" in wide.columns else wide


def breaking(wide: pl.DataFrame, clean: float | None) -> pl.DataFrame:
    """All heads without which less than `BROKEN` of the accuracy `clean` is left, worst first; none where `clean` is
    unknown or below `COPIES`. `wide`: a row a head, a column a measure."""
    if clean is None or clean < COPIES or "copying_accuracy_token" not in wide.columns:
        return wide.clear()
    return wide.filter(clean + pl.col("copying_accuracy_token") < BROKEN * clean).sort("copying_loss", descending=True)


def _by_attention_alone(last: pl.DataFrame, removed: pl.DataFrame) -> list[str]:
    """Heads whose removal hurts copying, but not once all attention patterns are held: they act on what later heads
    attend to and on nothing else."""
    held = last.filter(pl.col("method") == "frozen_patterns")
    if held.is_empty() or (last["method"][0] == "frozen_patterns"):
        return []
    both = removed.join(_wide(held), on=["layer", "head"], suffix="_held")
    loss, error = pl.col("copying_loss"), pl.col("copying_loss_se").fill_nan(0)
    large = (loss > 4 * error) & (loss >= 0.1)
    alone = both.filter(large & (pl.col("copying_loss_held").abs() < UNDONE * loss)).sort(loss, descending=True)
    return [_name(row) for row in alone.head(NAMED).iter_rows(named=True)]


def _beside(row: dict[str, Any]) -> str:
    """What stands beside an effect on copying loss: that of heads of like attention entropy (of the layer's other
    heads, in tables without), and the effect on natural text."""
    controls = (("copying_loss_matched", "matched heads"), ("copying_loss_control", "other heads of its layer"))
    control = next((f" ({whose} {_signed(row[name])})" for name, whose in controls if row.get(name) is not None), "")
    natural = row.get("natural_loss")
    return control + ("" if natural is None else f", natural loss {_signed(natural)}")


def _signed(value: float) -> str:
    """With its sign, but no -0.00."""
    return f"{round(value, 2) + 0.0:+.2f}"


def _wide(part: pl.DataFrame) -> pl.DataFrame:
    return part.pivot("measure", index=["layer", "head"], values="value")


def _name(row: dict[str, int]) -> str:
    return _head(row["layer"], row["head"])


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _head(layer: int, head: int | None) -> str:
    return f"layer {layer}" if head is None else head_name(layer, head)


def _strongest(table: pl.DataFrame, *columns: str) -> str:
    wide = table.pivot("measure", index=list(columns), values="value").sort("copying_loss", descending=True)
    listed = ", ".join(
        f"{_part(row)} {row['copying_loss']:+.2f} ± {row['copying_loss_se']:.2f}{_beside(row)}"
        for row in wide.head(NAMED).iter_rows(named=True)
    )
    return f"largest effects on copying loss when removed alone, nats: {listed}"


def _part(row: dict[str, Any]) -> str:
    return f"{row['part']} of layer {row['layer']}" if "part" in row else _name(row)


def _heads(table: pl.DataFrame, clean: float | None) -> str:
    broken = [_name(row) for row in breaking(_wide(table), clean).iter_rows(named=True)]
    words = f"; each breaks copying (under a tenth of its accuracy left): {_listed(broken)}" if broken else ""
    return _strongest(table, "layer", "head") + words


def _layers(table: pl.DataFrame) -> str:
    return _strongest(table, "layer", "part")


def _pairs(table: pl.DataFrame) -> str:
    loss = table.filter(pl.col("measure") == "copying_loss").sort("synergy", descending=True).head(3)
    listed = ", ".join(
        f"{_head(r['layer'], r['head'])} with {_head(r['other_layer'], r['other_head'])} {r['synergy']:+.2f} ± "
        f"{r['synergy_se']:.2f}"
        for r in loss.iter_rows(named=True)
    )
    return f"removed together, copying loss rises by more than the sum of both alone (nats): {listed}"


def _sets(table: pl.DataFrame) -> str:
    words = []
    for (search, unit), part in table.group_by("search", "unit", maintain_order=True):
        words.append(_set_words(str(search), str(unit), part))
    return "; ".join(words)


def _set_words(search: str, unit: str, part: pl.DataFrame) -> str:
    row = part.row(0, named=True)
    one = unit.removesuffix("s")
    if search == "keep" and row["reached"] and math.isnan(row["control"]):  # there is no other set of that size
        return f"no {one} can be left out"
    names = ", ".join(_head(layer, head) for layer, head in part.select("layer", "head").rows())
    what = "enough for copying" if search == "keep" else f"a smallest set of {unit} that breaks copying when removed"
    if not row["reached"]:
        what = f"no set of {unit} {'is enough' if search == 'keep' else 'breaks copying'}; this comes nearest"
    control = "" if math.isnan(row["control"]) else f"; random sets of that size {row['control']:.3f}"
    return f"{names} ({what}: accuracy {row['accuracy']:.3f}, whole model {row['clean']:.3f}{control})"


def _paths(table: pl.DataFrame) -> str:
    rows = table.sort("copying_loss", descending=True).head(3).iter_rows(named=True)
    listed = ", ".join(
        f"{_head(r['source_layer'], r['source_head'])} → {_head(r['layer'], r['head'])} {r['copying_loss']:+.2f} nats, "
        f"attention {r['induction_attention']:+.2f} (K-composition {r['k_composition']:.2f})"
        for r in rows
    )
    return f"largest effects on copying loss when cut from the later head's {table['into'][0]}: {listed}"


def _attribution(table: pl.DataFrame) -> str:
    row = table.row(0, named=True)
    return (
        f"estimate against exact effect on copying loss: Pearson {row['pearson']:.2f}, Spearman {row['spearman']:.2f}"
    )


_WORDS = {"layers": _layers, "pairs": _pairs, "sets": _sets, "paths": _paths, "attribution": _attribution}
