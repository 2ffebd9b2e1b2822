"""The formation map of a series: formation.json and its figures."""

from pathlib import Path
from typing import Any, NamedTuple

from analyses.figures import CONFIG, formation_map_figure
from analyses.formation import formation_json, formation_steps
from analyses.run import Run, open_run, read_metrics
from analyses.scores import tables
from interp.prompts import random_token_vocab
from training.checkpoints import write_json, write_text
from training.tokens import open_store

MAPPED = ("previous_token", "prefix_matching_sum", "induction_score")


class FormationResult(NamedTuple):
    formation: dict[str, Any]
    """What results/formation.json holds."""
    figures: list[Path]


def map_formation(source: str | Path) -> FormationResult:
    """Finds the formation steps of a scored series; writes results/formation.json and a map per measure in figures/.

    Raises InputError if the series was not scored, or has too few checkpoints to say when anything formed.
    """
    run = open_run(source)
    heads, model = tables(run)
    formation = formation_json(heads, model, read_metrics(run), chance=chance(run))
    write_json(run.folder / "results" / "formation.json", formation)
    written = []
    for measure in MAPPED:
        if measure in heads["measure"]:
            figure = formation_map_figure(heads, measure, formation_steps(heads, measure))
            path = run.folder / "figures" / f"formation_{measure}.html"
            write_text(path, figure.to_html(include_plotlyjs=True, config=CONFIG))
            written.append(path)
    return FormationResult(formation, written)


def chance(run: Run) -> float:
    """Copying accuracy of guessing: 1 / number of tokens that the test draws from; 0 where that is not known."""
    if not run.data:
        return 0.0
    import torch

    store = open_store(run.folder.parent / "tokens" / run.data["store"])
    return 1 / len(random_token_vocab(torch.from_numpy(store.counts), run.data["vocab_size"], [0]))
