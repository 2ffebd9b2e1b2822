"""What stored ablations say, in a line or a few each, for the command line."""

import polars as pl

from copyscope.interp.head_names import head_name

MOST = 5
"""Heads, pairs or paths that are named."""


def in_words(what: str, table: pl.DataFrame) -> list[str]:
    """Lines about the last step of a kind's table."""
    last = table.filter(pl.col("step") == pl.col("step").max())
    if last.is_empty():
        return []
    step, lines = int(last["step"][0]), []
    for (method,), part in last.group_by("method", maintain_order=True):
        found = _WORDS[what](part)
        lines.append(f"{what} at step {step}, {method}: {found}")
    return lines


def _strongest(table: pl.DataFrame, *columns: str) -> str:
    loss = table.filter(pl.col("measure") == "copying_loss").select(*columns, "value")
    error = table.filter(pl.col("measure") == "copying_loss_se").select(*columns, se="value")
    rows = loss.join(error, on=columns).sort("value", descending=True).head(MOST)
    by_head = columns[1] == "head"
    names = [
        (head_name(layer, own) if by_head else f"{own} of layer {layer}", v, se) for layer, own, v, se in rows.rows()
    ]
    listed = ", ".join(f"{name} {value:+.2f} ± {se:.2f}" for name, value, se in names)
    return f"removed alone, copying loss changes most for {listed} nats"


def _heads(table: pl.DataFrame) -> str:
    return _strongest(table, "layer", "head")


def _layers(table: pl.DataFrame) -> str:
    return _strongest(table, "layer", "part")


def _pairs(table: pl.DataFrame) -> str:
    loss = table.filter(pl.col("measure") == "copying_loss").sort("synergy", descending=True).head(3)
    listed = ", ".join(
        f"{head_name(r['layer'], r['head'])} with {head_name(r['other_layer'], r['other_head'])} {r['synergy']:+.2f} ± "
        f"{r['synergy_se']:.2f}"
        for r in loss.iter_rows(named=True)
    )
    return f"together more than alone (synergy in copying loss, nats): {listed}"


def _sets(table: pl.DataFrame) -> str:
    words = []
    for (search, unit), part in table.group_by("search", "unit", maintain_order=True):
        row = part.row(0, named=True)
        names = ", ".join(head_name(layer, head) for layer, head in part.select("layer", "head").rows())
        what = "enough for copying" if search == "keep" else "breaks copying when removed"
        if not row["reached"]:
            what = f"nearest to what is {'enough' if search == 'keep' else 'needed'} among {unit}"
        words.append(
            f"{names} ({what}: accuracy {row['accuracy']:.3f} of {row['clean']:.3f}; random sets {row['control']:.3f})"
        )
    return "; ".join(words)


def _paths(table: pl.DataFrame) -> str:
    rows = table.sort("copying_loss", descending=True).head(3).iter_rows(named=True)
    listed = ", ".join(
        f"{head_name(r['source_layer'], r['source_head'])} → {head_name(r['layer'], r['head'])} "
        f"{r['copying_loss']:+.2f} nats, "
        f"attention {r['induction_attention']:+.2f} (K-composition {r['k_composition']:.2f})"
        for r in rows
    )
    return f"cut from the reader's {table['into'][0]}, copying loss changes most for {listed}"


def _attribution(table: pl.DataFrame) -> str:
    row = table.row(0, named=True)
    return (
        f"estimate against exact effect on copying loss: Pearson {row['pearson']:.2f}, Spearman {row['spearman']:.2f}"
    )


_WORDS = {
    "heads": _heads,
    "layers": _layers,
    "pairs": _pairs,
    "sets": _sets,
    "paths": _paths,
    "attribution": _attribution,
}
