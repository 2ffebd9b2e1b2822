"""Commands that measure a series."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from copyscope.analyses.commands.options import (
    AsJson,
    CacheLimit,
    Device,
    Dtype,
    EngineOptions,
    Memory,
    OnEngine,
    Order,
    Out,
    Samples,
    Silent,
    Source,
    Steps,
    TokenizerFolder,
    Workers,
    compute_options,
    echo_json,
    names,
    numbers,
    parse_options,
    quiet,
    series_of,
)


def score(
    series: Source,
    measures: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated head measures; or all, also those that take longer.  [default: those that do not]"
        ),
    ] = None,
    steps: Steps = None,
    seeds: Annotated[
        str | None, typer.Option(help="Comma-separated seeds of the random tokens.  [default: seeds.eval of the run]")
    ] = None,
    samples: Samples = 500,
    out: Out = None,
    order: Order = None,
    tokenizer: TokenizerFolder = None,
    cache_limit: CacheLimit = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    memory: Memory = None,
    engine: OnEngine = None,
    jobs: Workers = None,
    options: EngineOptions = None,
    as_json: AsJson = False,
    silent: Silent = False,
) -> None:
    """Score every head and the whole model at every checkpoint; writes results/heads and results/model.

    Prints for each measure how many heads are strong at the last step (above their random-target null by 0.3 of the
    room up to 1, p <= 0.05 corrected for the number of heads), and how many are above the null at all. With --jobs
    several processes each score whichever checkpoint is free; the tables are the same.

    \b
    Example: copyscope score runs/demo --measures previous_token,prefix_matching_sum
    """
    quiet()
    import polars as pl

    from copyscope.analyses.commands.console import Console
    from copyscope.analyses.formation.nulls import above_null
    from copyscope.analyses.tables.run import read_failed, selected
    from copyscope.analyses.tables.scores import score as run_score
    from copyscope.analyses.tables.text_measured import measure_text

    chosen = numbers(steps)
    compute = compute_options(device, dtype, memory)
    with Console(silent) as console:
        run = series_of(series, out, order, tokenizer)
        result = run_score(
            run,
            names(measures),
            chosen,
            console.advance,
            seeds=numbers(seeds, "--seeds"),
            samples=samples,
            cache_limit=cache_limit,
            **compute,
            engine=engine,
            jobs=jobs,
            options=parse_options(options),
        )
        measure_text(run, **compute)
    above, folder = above_null(result.heads), run.folder / "results"
    failed = {c.step for c in selected(run, chosen)} & read_failed(run).keys()
    if as_json:
        last = result.model.filter(pl.col("step") == pl.col("step").max())
        echo_json(
            {
                "results": folder,
                "step": last["step"][0],
                "model": dict(last.select("measure", "value").rows()),
                "heads_above_null": above,
                "not_measured": sorted(failed),
            }
        )
        raise typer.Exit(bool(failed))
    for line in [*score_lines(above, result.heads), *sink_lines(result.heads)]:
        typer.echo(line)
    typer.echo(f"{result.heads.height:,} scores of heads and {result.model.height:,} of the model in {folder}")
    raise typer.Exit(bool(failed))


def score_lines(above: Any, heads: Any) -> list[str]:
    """A line for each measure with a null: how many heads are strong, the best of them, and how many exceed their null
    at all. `above`: table of `above_null`; `heads`: of scores."""
    import polars as pl

    from copyscope.analyses.words.glossary import describe
    from copyscope.interp.head_names import head_name

    last = heads.filter(pl.col("step") == pl.col("step").max())
    count = last.select("layer", "head").n_unique()
    lines = []
    for name in sorted(set(last.filter(pl.col("measure").str.ends_with("_p"))["measure"])):
        measure = name.removesuffix("_p")
        exceed = above.filter(pl.col("measure") == measure)
        strong = exceed.filter(pl.col("strong"))
        shown = strong.head(5) if strong.height else exceed.head(1)
        limited = describe(measure).high is not None
        digits = ".2f" if limited else ".2g"
        named = shown.select("layer", "head", "value").iter_rows()
        best = ", ".join(f"{head_name(layer, head)} {value:{digits}}" for layer, head, value in named)
        best = f" ({'' if strong.height else 'highest '}{best}{', …' if strong.height > 5 else ''})" if best else ""
        kind = f"{strong.height or 'no'} strong head{'s' * (strong.height != 1)} of {count}{best}; " if limited else ""
        lines.append(f"{measure}: {kind}{exceed.height} above the null" + ("" if limited else f" of {count}{best}"))
    return lines


def sink_lines(heads: Any) -> list[str]:
    """How many heads rest on the first token at the last step; none where that was not scored."""
    from copyscope.analyses.formation.sinks import SINK_LEVEL, sink_fraction

    if not (heads["measure"] == "bos_sink").any():
        return []
    last = sink_fraction(heads).row(-1, named=True)
    return [f"attention sinks: {last['sinks']} of {last['heads']} heads above {SINK_LEVEL:g} on the first token"]


def ablate(
    series: Source,
    steps: Annotated[str | None, typer.Option(help="Comma-separated training steps.  [default: the last]")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="What replaces a head's output; comma-separated: zero, mean, mean_over_positions, resample, "
            "frozen_patterns.  [default: zero; mean for pairs, sets and paths]"
        ),
    ] = None,
    what: Annotated[
        str,
        typer.Option(help="What to remove; comma-separated: heads, layers, pairs, sets, paths, attribution; or all."),
    ] = "heads",
    over_training: Annotated[
        bool,
        typer.Option("--over-training", help="Ablate at --map-steps steps, half of them around where copying formed."),
    ] = False,
    map_steps: Annotated[int, typer.Option(min=2, help="Number of steps for --over-training.")] = 12,
    samples: Samples = 500,
    heads: Annotated[
        str | None,
        typer.Option(help="With heads or pairs: only these, as in L2H1,L3 (L3: all of layer 3).  [default: all]"),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts for the copying loss; fewer is faster.")] = 32,
    device: Device = "auto",
    dtype: Dtype = "float32",
    memory: Memory = None,
    out: Out = None,
    order: Order = None,
    tokenizer: TokenizerFolder = None,
    cache_limit: CacheLimit = None,
    engine: OnEngine = None,
    jobs: Workers = None,
    options: EngineOptions = None,
    as_json: AsJson = False,
    silent: Silent = False,
) -> None:
    """Remove heads and layers, find the smallest set copying needs, patch paths; writes results/ablations.

    heads: each head in turn. layers: each attention layer and MLP. pairs: which heads back each other up. sets: the
    fewest heads and layers that suffice for copying, and the fewest whose removal breaks it. paths: from previous-token
    heads into the keys of induction heads. attribution: a fast gradient estimate beside the exact effect.

    \b
    Example: copyscope ablate runs/demo --what heads,sets,paths
    """
    quiet()
    from copyscope.analyses.commands.console import Console
    from copyscope.analyses.tables.ablation_text import in_words
    from copyscope.analyses.tables.ablations import ablate as run_ablate
    from copyscope.analyses.tables.ablations import kinds
    from copyscope.analyses.tables.causal_map import causal_steps
    from copyscope.analyses.tables.run import read_failed

    chosen = numbers(steps)
    run = series_of(series, out, order, tokenizer)
    if over_training and chosen is None:
        chosen = causal_steps(run, map_steps)
    with Console(silent) as console:
        tables = {
            kind: run_ablate(
                run,
                chosen,
                names(method),
                console.advance,
                what=kind,
                samples=samples,
                loss_prompts=prompts,
                heads=heads,
                cache_limit=cache_limit,
                **compute_options(device, dtype, memory),
                engine=engine,
                jobs=jobs,
                options=parse_options(options),
            )
            for kind in kinds(names(what) or [])
        }
    folder = run.folder / "results" / "ablations"
    failed = {c.step for c in run.series.checkpoints if chosen is None or c.step in chosen}
    failed &= read_failed(run, "ablate").keys()
    if as_json:
        echo_json({"results": folder, **tables, "not_measured": sorted(failed)})
        raise typer.Exit(bool(failed))
    for kind, table in tables.items():
        for line in in_words(kind, table):
            typer.echo(line)
    typer.echo(f"{sum(t.height for t in tables.values()):,} rows in {folder}")
    raise typer.Exit(bool(failed))


def tasks(
    series: Source,
    names_: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            help="Comma-separated: recall, prefix, markov, fuzzy, backward, labels, identifiers, words.  "
            "[default: all]",
        ),
    ] = None,
    steps: Steps = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seed of the random tokens.  [default: seeds.eval of the run]")
    ] = None,
    prompts: Annotated[int, typer.Option(min=8, help="Independent contexts of a task's variant.")] = 256,
    lm_eval: Annotated[
        str | None,
        typer.Option(
            "--lm-eval",
            help="Instead, run these tasks of lm-evaluation-harness (comma-separated names or .yaml files) at every "
            "checkpoint; results/tasks/lm-eval. Needs copyscope[lm-eval].",
        ),
    ] = None,
    heads: Annotated[
        bool,
        typer.Option("--heads", help="Instead, grade what the induction heads are to each task, at the last step."),
    ] = False,
    out: Out = None,
    order: Order = None,
    tokenizer: TokenizerFolder = None,
    cache_limit: CacheLimit = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    memory: Memory = None,
    engine: OnEngine = None,
    jobs: Workers = None,
    options: EngineOptions = None,
    as_json: AsJson = False,
    silent: Silent = False,
) -> None:
    """Ask in-context tasks beyond copying at every checkpoint; writes results/tasks.

    Prints for each task its accuracy at the last step beside its control and chance, the mean rank of the right token,
    how much the context raises its log-probability, and when it formed. docs/tasks.md says what each is.
    With --heads (results/tasks/heads): accuracy without the induction heads beside that without other heads.

    \b
    Example: copyscope tasks runs/demo --tasks recall,prefix
    """
    quiet()
    import polars as pl

    from copyscope.analyses.commands.console import Console
    from copyscope.analyses.tables.run import read_failed, selected
    from copyscope.analyses.tables.task_heads import task_heads
    from copyscope.analyses.tables.task_text import grade_lines, task_lines
    from copyscope.analyses.tables.tasks import formation
    from copyscope.analyses.tables.tasks import tasks as run_tasks

    chosen = numbers(steps)
    if lm_eval is not None:
        if names_ is not None or heads or engine is not None or jobs is not None or seeds is not None:
            from copyscope.training.errors import InputError

            raise InputError("--lm-eval: not with --tasks, --heads, --seeds, --engine or --jobs")
        from copyscope.analyses.tables.harness import KIND, harness, harness_lines

        with Console(silent) as console:
            run = series_of(series, out, order, tokenizer)
            where = compute_options(device, dtype, memory)
            table = harness(run, names(lm_eval) or [], chosen, console.advance, cache_limit=cache_limit, **where)
        failed = {c.step for c in selected(run, chosen)} & read_failed(run, "tasks").keys()
        if as_json:
            last = table.filter(pl.col("step") == pl.col("step").max())
            echo_json({"results": run.folder / "results" / KIND, "tasks": last, "not_measured": sorted(failed)})
        else:
            for line in [*harness_lines(table), f"{table.height:,} rows in {run.folder / 'results' / KIND}"]:
                typer.echo(line)
        raise typer.Exit(bool(failed))
    with Console(silent) as console:
        run = series_of(series, out, order, tokenizer)
        table = (task_heads if heads else run_tasks)(
            run,
            names(names_),
            chosen,
            console.advance,
            seeds=numbers(seeds, "--seeds"),
            prompts=prompts,
            cache_limit=cache_limit,
            **compute_options(device, dtype, memory),
            engine=engine,
            jobs=jobs,
            options=parse_options(options),
        )
    folder = run.folder / "results" / "tasks" / ("heads" if heads else "")
    formed = None if heads else formation(table)
    failed = {c.step for c in selected(run, chosen)} & read_failed(run, "tasks").keys()
    if as_json:
        last = table.filter(pl.col("step") == pl.col("step").max())
        result = {"grades": last} if heads else {"tasks": last, "formation": formed}
        echo_json({"results": folder, **result, "not_measured": sorted(failed)})
        raise typer.Exit(bool(failed))
    for line in grade_lines(table) if heads else task_lines(table, formed):
        typer.echo(line)
    typer.echo(f"{table.height:,} rows in {folder}")
    raise typer.Exit(bool(failed))


def revisions(
    model: Annotated[str, typer.Argument(help="A model on the hub: ORG/NAME, or ORG/NAME@ with a condition.")],
    as_json: AsJson = False,
) -> None:
    """List a public model's revisions as steps and tokens: what SERIES can name after the @.

    A condition, as in @*, @log:24, @<=step4000, @step1000..step4000 or @stage1, lists only those that it names.

    \b
    Example: copyscope revisions EleutherAI/pythia-70m
    """
    quiet()
    from copyscope.training.checkpoints.revisions import revisions as list_revisions

    listed = list_revisions(model)
    if as_json:
        echo_json({"model": model, "revisions": [vars(revision) for revision in listed]})
        return
    for one in listed:
        step = "no step" if one.step is None else f"step {one.step:,}"
        tokens = "" if one.tokens is None else f", {one.tokens / 1e9:,.1f} B tokens"
        typer.echo(f"{one.name}: {step}{tokens}{f', {one.stage}' if one.stage else ''}")
    typer.echo(f"{sum(one.step is not None for one in listed)} of {len(listed)} revisions have a step")


def map_(
    series: Source,
    measures: Annotated[
        str | None,
        typer.Option(
            help="Measures to draw, comma-separated; also ablation effects such as zero:copying_loss.  [default: "
            "previous_token, prefix_matching_sum, induction_score, and an effect ablated at several steps]"
        ),
    ] = None,
    figures: Annotated[str, typer.Option(help="File formats, comma-separated: html, pdf, svg, png.")] = "html",
    story: Annotated[
        bool,
        typer.Option("--story", help="Also one figure of the run: loss, copying accuracy and both maps."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find when heads formed, print it, and draw formation maps; writes results/formation.json and figures/.

    \b
    Example: copyscope map runs/demo --figures html,pdf --story
    """
    quiet()
    from copyscope.analyses.figures.maps import map_formation
    from copyscope.analyses.tables.opening import open_run
    from copyscope.analyses.tables.run import read_failed
    from copyscope.analyses.tables.summary import formation_lines
    from copyscope.analyses.words.text import visible

    result = map_formation(series, names(measures), names(figures) or [], story)
    run = open_run(series)
    path, failed = run.folder / "results" / "formation.json", read_failed(run)
    if as_json:
        echo_json({"path": path, "formation": result.formation, "figures": result.figures, "not_measured": failed})
        return
    for step, why in failed.items():
        typer.echo(visible(f"step {step:,} is not measured: {why}"), err=True)
    for line in formation_lines(run):
        typer.echo(line)
    for written in [path, *result.figures]:
        typer.echo(str(written))


def claims(
    runs: Annotated[
        list[Path], typer.Argument(help="Scored runs: seeds of one recipe, or runs that differ in one setting.")
    ],
    factor: Annotated[
        str | None,
        typer.Option(
            help="The setting that differs, such as train.batch_size; runs that differ in others are refused."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write.  [default: claims.html beside the first run]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Test the claims of "Language Models 'Grok' to Copy" on scored runs: supported, contradicted or undecided.

    Writes an HTML page with effect sizes, intervals and decision rules, and the same as JSON beside it.

    \b
    Example: copyscope claims runs/seed0 runs/seed1 runs/seed2
    """
    quiet()
    from copyscope.analyses.claims.judge import claims as judge
    from copyscope.analyses.claims.page import verdict_line, write_claims

    judged = judge(runs, factor)
    page = write_claims(judged, [str(run) for run in runs], out or runs[0].resolve().parent / "claims.html")
    if as_json:
        echo_json({"page": page, **json.loads(page.with_suffix(".json").read_text("utf-8"))})
        return
    for verdict in judged.verdicts:
        typer.echo(verdict_line(verdict))
    typer.echo(str(page))
