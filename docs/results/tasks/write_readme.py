"""Writes README.md of this folder from the tables that are kept in its folders, one a run; a test holds the page
against them.

    python docs/results/tasks/write_readme.py
    python docs/results/tasks/write_readme.py keep RUN NAME     # tables of another run, asked and graded already
    python docs/results/tasks/write_readme.py keep-model OUT    # of a single model
"""

import shutil
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from copyscope.analyses.claims.evidence import gather
from copyscope.analyses.formation.emergence import step_ratio
from copyscope.analyses.formation.step_rule import middle
from copyscope.analyses.formation.tasks import task_formation
from copyscope.analyses.statistics.intervals import over_runs
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import read_tables

HERE = Path(__file__).parent
KEPT = ("choice_accuracy", "choice_accuracy_se", "accuracy", "control_choice", "chance", "chance_uniform", "prompts")
OF_MODEL = ("accuracy", "choice_accuracy", "control_choice", "chance", "gain", "prompts")
MODEL, N_HEADS = "smollm2.csv", 270
INDUCTION = "induction head"
DATED, NEAR = 3.0, 0.05
"""Intervals up to this factor wide date a task, others come behind; what is as close to chance is called so."""
NAMES = {
    ("recall", "pairs=4"): "recall, 4 pairs",
    ("recall", "pairs=8"): "recall, 8 pairs",
    ("recall", "pairs=16"): "recall, 16 pairs",
    ("labels", "shots=1"): "labels, 1 shot",
    ("labels", "shots=4"): "labels, 4 shots",
    ("labels", "shots=10"): "labels, 10 shots",
    ("prefix", "order=1"): "prefix of 1 token",
    ("prefix", "order=2"): "prefix of 2 tokens",
    ("prefix", "order=3"): "prefix of 3 tokens",
    ("fuzzy", "changed=0"): "copying test, first token",
    ("fuzzy", "changed=3"): "copying test, 3 of 12 changed",
    ("fuzzy", "changed=6"): "copying test, 6 of 12 changed",
    ("identifiers", "strings token"): "string: its last token",
    ("identifiers", "strings whole"): "string: the one that came next",
    ("identifiers", "names token"): "name: its last token",
    ("identifiers", "names whole"): "name: the one that came next",
    ("markov", "states=8"): "Markov chain, over the commonest",
    ("markov uniform", "states=8"): "Markov chain, over an even guess",
    ("backward", "tokens=32"): "backward",
    ("words", "first"): "first of four words",
    ("words", "last"): "last of four words",
}
"""Variants that the page shows, by task and variant."""
ORDERS = (
    (INDUCTION, ("recall", "pairs=4")),
    (INDUCTION, ("labels", "shots=10")),
    (INDUCTION, ("identifiers", "strings token")),
    (("recall", "pairs=4"), ("prefix", "order=2")),
    (("recall", "pairs=4"), ("fuzzy", "changed=0")),
    (("identifiers", "strings token"), ("identifiers", "strings whole")),
    (("identifiers", "strings token"), ("identifiers", "names token")),
    (("prefix", "order=2"), ("identifiers", "strings whole")),
)
Key = Any
Step = tuple[float, float, float]


class Run(NamedTuple):
    """What is kept of a run."""

    name: str
    config: dict[str, Any]
    last: int
    final: dict[Key, dict[str, float]]
    """Measures at the last step, by task and variant."""
    steps: dict[Key, Step | None]
    """When each formed, with its interval; stages by their name."""
    grades: dict[Key, dict[str, Any]]


def keep(source: str, name: str) -> None:
    """Keeps the tables of a run in the folder `name`."""
    run, folder = open_run(source), HERE / name
    folder.mkdir(exist_ok=True)
    tasks = read_tables(run, "tasks").filter(pl.col("measure").is_in(KEPT))
    index = ["step", "tokens", "task", "variant"]
    wide = tasks.pivot("measure", index=index, values="value", maintain_order=True).select(*index, *KEPT)
    wide.with_columns(pl.col(KEPT).round(4)).write_csv(folder / "tasks.csv")
    graded = read_tables(run, "tasks/heads").drop("run", "tokens")
    graded.with_columns(pl.col(pl.Float64).round(4)).write_csv(folder / "heads.csv")
    found = gather(source)
    stages = [(stage, *(round(at) for at in step)) for stage, step in found.steps.items() if stage != "copying"]
    loss = found.copying_loss
    if loss is not None and loss.step is not None:
        stages.append(("copying (loss)", round(loss.step), round(loss.interval[0]), round(loss.interval[1])))
    pl.DataFrame(stages, schema=["stage", "step", "low", "high"], orient="row").write_csv(folder / "stages.csv")
    shutil.copy(run.folder / "config.toml", folder / "config.toml")


def keep_model(out: str) -> None:
    """Adds the tables of a single model, written by `copyscope tasks MODEL --out OUT`, to `MODEL`; a variant that is
    there already is replaced."""
    long = pl.concat([pl.read_parquet(path) for path in sorted(Path(out).glob("results/tasks/*.parquet"))])
    index, columns = ["task", "variant"], [*OF_MODEL[:2], "accuracy_se", "choice_accuracy_se", *OF_MODEL[2:]]
    wide = long.pivot("measure", index=index, values="value", maintain_order=True).select(*index, *columns)
    graded = pl.concat([pl.read_parquet(path) for path in sorted(Path(out).glob("results/tasks/heads/*.parquet"))])
    table = wide.join(graded.select(*index, "heads", "grade", "without"), on=index, how="left", maintain_order="left")
    table = table.with_columns(pl.col(pl.Float64).round(4)).cast({"prompts": pl.Int64})
    before = pl.read_csv(HERE / MODEL, schema=table.schema).join(table, on=index, how="anti", maintain_order="left")
    pl.concat([table, before]).write_csv(HERE / MODEL)


def read(folder: Path) -> Run:
    """The run that is kept in a folder."""
    wide = pl.read_csv(folder / "tasks.csv")
    index = ["step", "tokens", "task", "variant"]
    long = wide.unpivot(index=index, variable_name="measure", value_name="value")
    steps: dict[Key, Step | None] = {
        stage: (step, low, high) for stage, step, low, high in pl.read_csv(folder / "stages.csv").iter_rows()
    }
    for row in task_formation(long).iter_rows(named=True):
        task = row["task"] if row["over"] == "chance" else f"{row['task']} uniform"
        at = middle(row)
        steps[task, row["variant"]] = None if at is None else (at, row["low"], row["high"])
    last = wide.filter(pl.col("step") == pl.col("step").max())
    final = {(row["task"], row["variant"]): row for row in last.iter_rows(named=True)}
    final |= {
        ("markov uniform", variant): row | {"chance": row["chance_uniform"]}
        for (task, variant), row in final.items()
        if task == "markov"
    }
    grades = {(row["task"], row["variant"]): row for row in pl.read_csv(folder / "heads.csv").iter_rows(named=True)}
    config = tomllib.loads((folder / "config.toml").read_text())
    return Run(folder.name, config, int(wide["step"].max()), final, steps, grades)  # type: ignore[arg-type]


def write_readme() -> str:
    """The page."""
    runs = [read(path.parent) for path in sorted(HERE.glob("*/tasks.csv"))]
    parts = ["# In-context tasks: which form, when, and on which heads they rest\n", *_opening(runs), *_found(runs)]
    parts += [*_tasks(runs), *_orders(runs), *_each(runs), *_limits(runs), *_real_model()]
    return "\n".join(parts) + "\n"


def _found(runs: list[Run]) -> list[str]:
    """The page in three sentences."""

    def after(key: Key) -> str:
        ratio = _over(runs, INDUCTION, key)
        assert ratio is not None
        return _ratio(ratio[0])

    def formed(key: Key) -> str:
        return f"{sum(run.steps.get(key) is not None for run in runs)} of {len(runs)} runs"

    markov = [run.final["markov", "states=8"] for run in runs]
    above = sum(row["choice_accuracy"] - 2 * row["choice_accuracy_se"] > row["chance"] for row in markov)
    found = (
        "**What one token tells comes with the induction head**: recall of four pairs forms at "
        f"{after(('recall', 'pairs=4'))} times its step, labels with ten examples at {after(('labels', 'shots=10'))}, "
        f"the last token of a random string at {after(('identifiers', 'strings token'))}.",
        "**What takes more than one token comes later than that head**: the copying test at "
        f"{after(('fuzzy', 'changed=0'))}, a prefix of two tokens at {after(('prefix', 'order=2'))} "
        f"(in {formed(('prefix', 'order=2'))}), the string that came next at "
        f"{after(('identifiers', 'strings whole'))} (in {formed(('identifiers', 'strings whole'))}).",
        "**Not learnt in any run**: the token *before*, and the first or last of a list. The Markov chain rises above "
        f"an even guess in {formed(('markov uniform', 'states=8'))}; it ends at "
        f"{_range([row['choice_accuracy'] for row in markov])}, in {above} of {len(runs)} two standard errors above "
        f"naming its commonest token ({markov[0]['chance']:.2f}), but not far enough to count as formed.",
    )
    return ["## What was found\n", *[_filled(f"- {line}", "  ") for line in found], ""]


def _opening(runs: list[Run]) -> list[str]:
    model = runs[0].config["model"]
    rows = ["| run | updates | schedule, vocabulary | seed | previous-token head | induction head | copying (loss) |"]
    rows.append("|---|---|---|---|---|---|---|")
    for run in runs:
        optimizer, seed = run.config["optimizer"], run.config["seeds"]["init"]
        stages = [_step(run.steps.get(stage)) for stage in ("previous-token head", INDUCTION, "copying (loss)")]
        what = f"{optimizer['schedule']}, {run.config['data']['vocab_size']}"
        rows.append(f"| {run.name} | {run.last:,} | {what} | {seed} | " + " | ".join(stages) + " |")
    return [
        _filled(
            f"`copyscope tasks` and `copyscope tasks --heads` on {len(runs)} runs ({model['n_layers']} layers of "
            f"{model['n_heads']} heads, width {model['d_model']}, context {model['n_ctx']}, on Python sources): the "
            "parents of the study `commitment`, which differ in their seed alone, and the demo by its recipe of then, "
            "which ended in a decay. What each task is: [In-context tasks](../../tasks.md). This page is drawn from "
            "the tables in this folder, one folder a run. Steps are updates; intervals are 95 %."
        ),
        "",
        *rows,
        "",
    ]


def _tasks(runs: list[Run]) -> list[str]:
    def order(key: Key) -> tuple[int, float, str]:
        ratio = _over(runs, INDUCTION, key)
        if ratio is None:
            return 2, 0.0, str(key)
        return int(ratio[0][2] > DATED * ratio[0][1]), ratio[0][0], str(key)

    rows = ["| task | chance | choice accuracy at the end | formed in | step ÷ that of the induction head | grade |"]
    rows.append("|---|---|---|---|---|---|")
    for key in sorted(NAMES, key=order):
        asked = [run for run in runs if key in run.final]
        if not asked:
            continue
        ends = [run.final[key]["choice_accuracy"] for run in asked]
        formed = [run for run in asked if run.steps.get(key)]
        ratio = _over(runs, INDUCTION, key)
        graded = key if key[0] != "markov uniform" else ("markov", key[1])
        grades = [run.grades[graded]["grade"] for run in asked if graded in run.grades]
        cells = [
            NAMES[key],
            f"{asked[-1].final[key]['chance']:.2f}",
            _range(ends),
            f"{len(formed)} of {len(asked)}",
            "–" if ratio is None else _ratio(ratio[0]),
            ", ".join(f"{grade} {grades.count(grade)}" for grade in sorted(set(grades), key=grades.index)),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return [
        "## Which form, and on what they rest\n",
        _filled(
            "In the order in which they form, those that are dated within a factor of three first. *Choice accuracy* "
            "is among the candidates, lowest to highest run; *step* is the mean ratio over the runs in which the task "
            "formed. The last column counts runs by what the induction heads are to the task "
            "([grades](../../tasks.md#which-heads-carry-them)): *primary* means that removing them costs more than "
            "removing any kind of control, and more than half of what is above chance."
        ),
        "",
        *rows,
        "",
        *[_filled(line) for line in _sums(runs)],
        "",
    ]


def _sums(runs: list[Run]) -> list[str]:
    """Sentences that count."""
    shown = [key for key in NAMES if key[0] != "markov uniform"]
    rows = [(run, key, run.grades[key]) for run in runs for key in shown if key in run.grades]
    done = [row for row in rows if row[2]["grade"] not in ("nothing to see", "interferes")]
    of = {grade: [row for row in done if row[2]["grade"] == grade] for grade in ("primary", "correlates")}
    at_chance = [row for _, _, row in done if row["without"] <= row["chance"] + NEAR]
    cost = sorted(row["excess"] for _, _, row in of["primary"])
    by_random = [row for row in of["correlates"] if row[2]["control"] == "random"]
    most = max(runs, key=lambda run: sum(row[0] is run for row in by_random))
    here = sum(row[0] is most for row in by_random)
    heads = next(iter(most.grades.values()))["heads"]
    return [
        f"A run does a task in {len(done)} of {len(rows)} cases. The induction heads are primary to "
        f"{len(of['primary'])} of these, where they cost {cost[0]:.2f} to {cost[-1]:.2f} of choice accuracy more than "
        f"the hardest control; without them choice accuracy is within {NEAR:.2f} of chance, or below it, in "
        f"{len(at_chance)}.",
        f"They only correlate with {len(of['correlates'])}. In {len(by_random)} of these the hardest control is random "
        f"sets, {here} of them in {most.name}, where {heads.count('L')} of 16 heads are induction heads ({heads}): as "
        "many others at random nearly always hold a head that feeds these, and cost almost as much.",
    ]


def _orders(runs: list[Run]) -> list[str]:
    rows = ["| first | then | step of the second ÷ step of the first | runs | |", "|---|---|---|---|---|"]
    for first, second in ORDERS:
        ratio = _over(runs, first, second)
        if ratio is None:
            continue
        (value, low, high), count = ratio
        says = "in this order" if low > 1 else "the other way round" if high < 1 else "undecided"
        says = says if count > 2 else "too few runs"
        name = first if isinstance(first, str) else NAMES[first]
        rows.append(f"| {name} | {NAMES[second]} | {_ratio((value, low, high))} | {count} | {says} |")
    return [
        "## In what order\n",
        _filled(
            "Pairs were chosen on an earlier run, which is not among these. Student's interval of the mean log ratio "
            "over runs, no narrower than the runs' own; no correction for the number of pairs."
        ),
        "",
        *rows,
        "",
    ]


def _each(runs: list[Run]) -> list[str]:
    rows = ["| task | " + " | ".join(run.name for run in runs) + " |", "|---" * (1 + len(runs)) + "|"]
    for key, name in NAMES.items():
        if any(run.steps.get(key) for run in runs):
            rows.append(f"| {name} | " + " | ".join(_step(run.steps.get(key)) for run in runs) + " |")
    return ["## Each run's formation steps\n", *rows, ""]


def _limits(runs: list[Run]) -> list[str]:
    prompts = sorted({int(row["prompts"]) for run in runs for row in [run.final["recall", "pairs=4"]]})
    spaced = sorted({len(pl.read_csv(HERE / run.name / "tasks.csv")["step"].unique()) for run in runs})
    few = f"{spaced[0]} or {spaced[-1]}" if spaced[0] != spaced[-1] else f"{spaced[0]}"
    return [
        "## What this cannot tell\n",
        _filled(
            f"One kind of model, {len(runs)} runs, {' or '.join(map(str, prompts))} contexts of a variant at {few} "
            "checkpoints of each; a task that forms between two of them is not dated more closely. Grades are not "
            "corrected for their number, and removing several heads together says nothing of one. Accuracy over all "
            "tokens is far lower than that among the candidates (recall of four at the end: "
            + _range([run.final["recall", "pairs=4"]["accuracy"] for run in runs])
            + "), because habits of the text outweigh what stands in the context. Runs end before four times the later "
            "steps, so these may still move. The tokenizers make names of pieces of words, whose last token can partly "
            "be guessed without the context."
        ),
        "",
    ]


def _real_model() -> list[str]:
    table = pl.read_csv(HERE / MODEL)
    rows = ["| task | accuracy | choice accuracy | its control | chance | nats over no context | induction heads |"]
    rows.append("|---|---|---|---|---|---|---|")
    for row in table.iter_rows(named=True):
        cells = [_with_error(row, "accuracy"), _with_error(row, "choice_accuracy")]
        cells += [f"{row[name]:.2f}" for name in ("control_choice", "chance")] + [f"{row['gain']:.1f}"]
        cells.append("–" if row["grade"] is None else f"{row['grade']} (without them {row['without']:.2f})")
        rows.append(f"| {NAMES.get((row['task'], row['variant']), row['variant'])} | " + " | ".join(cells) + " |")
    graded = table.drop_nulls("grade")
    heads = graded["heads"].unique().to_list()
    return [
        "## On a real model\n",
        _filled(
            f"SmolLM2-135M-Instruct ([how to get it](../../smollm2.md)), {table['prompts'].min()} to "
            f"{table['prompts'].max()} contexts of a variant. The last column, where it was asked, is of eight strong "
            f"induction heads removed together ({'; '.join(heads)}), with half as many contexts; `{MODEL}`."
        ),
        "",
        *rows,
        "",
        *[_filled(line) for line in _of_model(table)],
    ]


def _of_model(table: pl.DataFrame) -> list[str]:
    """What the table comes to."""
    graded = table.drop_nulls("grade")
    counts = graded.group_by("grade", maintain_order=True).len()
    grades = ", ".join(f"{count} {grade}" for grade, count in counts.iter_rows())
    clear = table.filter(pl.col("choice_accuracy") - 2 * pl.col("choice_accuracy_se") > pl.col("chance"))
    return [
        f"It is two standard errors above chance in {len(clear)} of {len(table)} variants. Grades of the eight heads: "
        f"{grades}. There are {N_HEADS} heads, and those that are left may do part of what these do.",
    ]


def _over(runs: list[Run], first: Key, second: Key) -> tuple[Step, int] | None:
    """Ratio of two steps over the runs that have both, and how many these are."""
    pairs = [(run.steps.get(second), run.steps.get(first)) for run in runs]
    ratios = [ratio for a, b in pairs if a and b and (ratio := step_ratio(a, b))]
    return (over_runs(*np.array(ratios, dtype=float).T), len(ratios)) if ratios else None


def _ratio(ratio: Step) -> str:
    return f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]"


def _step(step: Step | None) -> str:
    return "–" if step is None else f"{step[0]:,.0f} ({step[1]:,.0f}–{step[2]:,.0f})"


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _with_error(row: dict[str, Any], name: str) -> str:
    error = row[f"{name}_se"]
    return f"{row[name]:.2f}" + (f" ± {error:.2f}" if error >= 0.005 else "")


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 130, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    if sys.argv[1:2] == ["keep"]:
        keep(*sys.argv[2:])
    elif sys.argv[1:2] == ["keep-model"]:
        keep_model(sys.argv[2])
    else:
        (HERE / "README.md").write_text(write_readme())
