"""Writes README.md of this folder: each question with its verdicts, its figure and what would change our mind.

    python docs/results/write_readme.py

Every number in it is taken from the tables that are kept here (verdicts.json and configs of each study, runs.csv of
those of forks); a test holds the page against them. What a study found in detail stands in the README.md of its own
folder, written by hand.
"""

import json
import textwrap
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from copyscope.analyses.studies import OF_FORKS
from copyscope.analyses.studies.forked import PARENT

HERE = Path(__file__).parent
PRESETS = HERE.parents[1] / "training" / "presets"
MINUS = "\N{MINUS SIGN}"


class Question(NamedTuple):
    """What is asked, the folder whose figure stands for it, and what would change our mind."""

    title: str
    folder: str
    figure: str
    """What the figure shows."""
    rows: tuple[tuple[str, str, str, int], ...]
    """Claim, words for its effect with {} for the number, folder, number of the verdict there."""
    says: str
    mind: str


QUESTIONS = (
    Question(
        "Is it updates that count, or tokens?",
        "batch-size",
        "Formation step of copying against batch size, and copying accuracy over training",
        (
            ("updates alone count (claim 2), on Python", "steps ∝ batch size^{}", "batch-size", 0),
            ("the same, on a dictionary", "steps ∝ batch size^{}", "batch-size-dictionary", 0),
        ),
        "Larger batches need fewer updates, by about the square-root law of arXiv 2511.16893, and gain less the "
        "larger they are.",
        "Batches as large as the paper's, which are far larger than ours: where larger ones no longer help, "
        "updates alone would count.",
    ),
    Question(
        "Does a longer context count as a larger batch does?",
        "context",
        "Formation step against batch × context, and the constant of the square-root law by condition",
        (
            ("tokens grow as the square root of batch × context", "steps ∝ (batch × context)^{}", "context", 0),
            ("a longer context counts as a larger batch does", "exponent greater by {}", "context", 1),
            ("the published constant holds (arXiv 2511.16893)", "tokens are {} of those foretold", "context", 2),
            ("the same, on text as it comes", "tokens are {} of those foretold", "context", 3),
            ("text as it comes makes it later than chosen windows", "change of the step {}", "context", 4),
            ("the same constant, with a vocabulary of 1,024", "tokens are {} of those foretold", "context", 5),
            ("that vocabulary makes it later than one of 320", "change of the step {}", "context", 6),
        ),
        "Over six pairs of batch and context the square-root law holds, but the batch counts for more of it than "
        "the context does, and copying forms an order of magnitude sooner than its published constant says. Neither "
        "that windows are chosen for their repeats nor the small vocabulary explains that: induction heads form "
        "a little later without either.",
        "Larger models at the same batch and context, and other optimizers.",
    ),
    Question(
        "Does a higher learning rate bring copying on?",
        "intensity",
        "Copying accuracy by learning rate and step, and against the summed learning rate",
        (
            ("a higher rate needs fewer updates (claim 4)", "steps ∝ rate^{}", "intensity", 1),
            ("copying forms at a certain sum of rates", "the sum errs by a factor of {} in steps", "intensity", 0),
        ),
        "It does, up to an optimum. The sum of rates predicts the step over the lower ones and fails at the highest.",
        "Higher rates at which copying comes sooner still.",
    ),
    Question(
        "Which law of learning rate and batch size foretells when copying forms?",
        "rate-and-batch",
        "Step at which copying forms by learning rate and batch size, and how far each law errs on cells left out",
        (
            (
                "when rate × √batch size, summed, passes a threshold",
                "it errs by a factor of {} on cells left out",
                "rate-and-batch",
                0,
            ),
        ),
        "Both count, and about alike: with both exponents fitted the step goes by about the square root of rate × "
        "batch size, and cells that were left out are foretold within a tenth. No law with given exponents comes near "
        "that; of those the one asked about errs least, but not clearly less than its rivals.",
        "Higher rates and larger batches, where either stops to help, and other optimizers: these runs are by Muon.",
    ),
    Question(
        "Does Muon bring copying on?",
        "optimizer",
        "Formation step and final copying accuracy by optimizer and rate, and curves",
        (
            ("Muon makes copying earlier than AdamW", "change of the step {}", "optimizer", 0),
            ("Muon at twice the rate", "change of the step {}", "optimizer", 2),
            ("AdamW at twice the rate", "change of the step {}", "optimizer", 1),
        ),
        "Three seeds a setting cannot tell. Every run by Muon forms copying within these updates, at steps that lie "
        "close together; AdamW's are further apart, and at twice the rate one has not formed it by the end.",
        "Ten seeds a setting.",
    ),
    Question(
        "In what order do heads and copying form?",
        "seeds",
        "Formation step and final copying accuracy of six seeds, and their curves",
        (
            ("previous-token head, then induction head, then copying", "share of runs {}", "seeds", 2),
            ("from shallow to deep (claim 3), three layers", "Kendall's tau {}", "seeds", 3),
            ("the same, six layers", "Kendall's tau {}", "scale", 3),
            ("seeds differ by no more than a factor of 1.25", "one standard deviation is a factor of {}", "seeds", 0),
        ),
        "The stages come in order in every run. With induction heads in one or two layers nothing can be said of "
        "depth.",
        "A run in which an induction head forms before any previous-token head.",
    ),
    Question(
        "Does copying form after the loss has settled?",
        "settling",
        "Loss and copying accuracy over training as they are read by eye, and with the steps that the rules find",
        (
            (
                "copying after the loss has settled (claim 1), long runs",
                "its step is {} times that of the settled loss",
                "settling",
                0,
            ),
            ("the same, six seeds", "its step is {} times that of the settled loss", "seeds", 1),
        ),
        "Not by the stricter rule, which calls the loss settled once a doubling of the steps brings less than a "
        "twentieth of its fall: copying rises before that, or with it. By a rule half as strict the loss settles in "
        "some runs before their heads form, only to fall faster again when they do. So the two rules disagree, and the "
        "verdict is undecided.",
        "The paper's size, where the loss falls over a thousand times as many tokens.",
    ),
    Question(
        "Do heads form from shallow to deep?",
        "depth",
        "Formation step of every induction head and every previous-token head, by layer",
        (
            ("induction heads, eight layers", "Kendall's tau {}", "depth", 0),
            ("previous-token heads, eight layers", "Kendall's tau {}", "depth", 1),
            ("previous-token head, then induction head, then copying, eight layers", "share of runs {}", "depth", 2),
        ),
        "Nothing points to it, and too few layers have induction heads to rule it out: in most seeds the first "
        "induction head stands in the last layer.",
        "Models with induction heads in six layers or more.",
    ),
    Question(
        "When is it decided where and when induction forms?",
        "commitment",
        "Formation steps of forks, their scatter, and in how many the parent's head is first, by where they began",
        (
            (
                "by 0.9 of the formation step, when it forms",
                "share of the scatter of ln step that is left {}",
                "commitment",
                0,
            ),
            ("by 0.9, in which head", "rise of the share of forks with the parent's head {}", "commitment", 1),
        ),
        "Forks that read the rest of the text in another order end with another head, and at another step, if they "
        "begin at step 0. From 0.4 of the formation step on nearly all have their parent's head, though none of it "
        "can be seen by then; that was looked at afterwards, and the planned verdicts, at 0.9, are undecided with "
        "three parents.",
        "More than three parents, and another recipe.",
    ),
    Question(
        "When does a change matter that lasts for a while?",
        "window",
        "How far each change moves the formation step, and in how many pairs another head is first, by where it begins",
        (
            (
                "a while without loss on repeats, from 0.3 of the formation step on, moves it",
                "change of the step {}",
                "window",
                2,
            ),
            ("the same, from 0.75 on", "change of the step {}", "window", 3),
            ("a while at twice the learning rate, from 0.3 on", "change of the step {}", "window", 0),
            ("the same, from 0.75 on", "change of the step {}", "window", 1),
            ("a while with uniform attention in layer 0, from 0.3 on", "change of the step {}", "window", 4),
            ("the same, from 0.75 on", "change of the step {}", "window", 5),
        ),
        "Each change lasts for a fifth of the formation step, in forks that are compared with forks which read the "
        "same text without it. Repeats that teach nothing delay induction heads, early and late; of the other two the "
        "intervals over parents are too wide. Which head is first is easily changed early, hardly late.",
        "More parents, changes of other lengths, and forks that end later.",
    ),
    Question(
        "Does regularization make copying earlier or stronger?",
        "regularization",
        "Formation step and final copying accuracy by setting, and curves",
        (
            ("attention dropout 0.1 (claim 4)", "change of the step {}", "regularization", 1),
            ("weight decay 0.1", "change of the step {}", "regularization", 2),
            ("weight decay 1.0", "change of the step {}", "regularization", 3),
            ("both 0.1", "change of the step {}", "regularization", 4),
        ),
        "Four seeds a setting cannot tell: in each but one a seed had not formed copying by the end. On a short text, "
        "passed over many times, weight decay does (next question).",
        "Ten seeds a setting, on text of this length.",
    ),
    Question(
        "And where a short text is passed over many times?",
        "passes",
        "Prefix matching, loss on held-out text, ICL score, and accuracy in in-context tasks by setting",
        (
            ("attention dropout 0.1, short text (claim 4)", "change of the step {}", "passes", 0),
            ("weight decay 1.0, short text (claim 4)", "change of the step {}", "passes", 1),
            ("both, short text", "change of the step {}", "passes", 2),
            ("weight decay 1.0 keeps induction heads for longer", "share of the highest kept, more by {}", "passes", 4),
        ),
        "With weight decay nearly every run forms induction heads and copying, without it none does: there the text "
        "is learnt by heart. (Looked at afterwards: on a long text it forms without any.) Loss on held-out text "
        "is higher with it all the same. Attention dropout changes nothing. "
        "Whether heads that have formed are lost again without weight decay cannot be said, since none formed.",
        "Longer runs without weight decay that come to copy; other optimizers than Muon.",
    ),
    Question(
        "What does an induction head need?",
        "intervention",
        "Formation step and final copying accuracy by intervention, and curves",
        (
            ("a previous-token head given from the start makes it earlier", "change of the step {}", "intervention", 0),
            ("one head held uniform makes it later", "change of the step {}", "intervention", 1),
            ("no attention below the last layer makes it later", "change of the step {}", "intervention", 2),
            ("no loss on what repeats makes it later", "change of the step {}", "intervention", 3),
        ),
        "Without attention below the last layer, or without loss on what repeats, copying does not form within "
        "these runs. Any one "
        "head can be spared.",
        "A run that copies without either.",
    ),
    Question(
        "On which text does copying form sooner?",
        "corpus",
        "Formation step and final copying accuracy by corpus, and curves",
        (("text that repeats itself more teaches it sooner", "steps ∝ share of predictable tokens^{}", "corpus", 0),),
        "It forms on code, dictionary and manuals, and on wiki and prose only in longer runs; the planned line "
        "through the corpora "
        "is left undecided by so few points.",
        "More corpora, of one vocabulary, that differ in how much they repeat and in nothing else.",
    ),
    Question(
        "Do depth, width and heads matter?",
        "scale",
        "Formation step and final copying accuracy by size, and curves",
        (
            ("deeper models need fewer updates", "steps ∝ layers^{}", "scale", 0),
            ("wider ones", "steps ∝ width^{}", "scale", 1),
            ("more heads", "steps ∝ heads^{}", "scale", 2),
        ),
        "There is a least size, below which copying does not form; beyond it, more is no faster at these learning "
        "rates.",
        "Learning rates tuned for each size.",
    ),
)
OTHER_PAGES = (
    "Single runs: [the demo](quickstart/README.md) and [what was tried for it](quickstart/recipe.md), [a longer "
    "one](laptop/README.md), [batch 32](batch32/README.md), [three layers](three-layers/README.md). Other in-context "
    "tasks than copying: [tasks](tasks/README.md). Not run for want of a GPU: every study at `--size paper`; each says "
    "what it will cost before it trains. [What was dated when](dated.md)."
)


def write_readme() -> str:
    """The page."""
    study = tomllib.loads((PRESETS / "study.toml").read_text())
    model, data, rate = study["model"], study["data"], study["optimizer"]["lr"]
    runs = len({path.stem for path in HERE.glob("*/configs/*.toml")})  # some stand in two studies
    of_forks = [pl.read_csv(HERE / name / "runs.csv") for name in OF_FORKS if (HERE / name).is_dir()]
    forks = sum(table.filter(pl.col("change") != PARENT).height for table in of_forks)
    parts = [
        "# Results: which of the paper's claims hold at this scale\n",
        _filled(
            "\"Language Models 'Grok' to Copy\" (arXiv 2409.09281) trained twelve layers on 40 B tokens. Here its "
            "questions are put to a "
            f"model that two CPU cores train in minutes: {model['n_layers']} layers of {model['n_heads']} heads, "
            f"width {model['d_model']}, "
            f"vocabulary {data['vocab_size']}, context {model['n_ctx']}, learning rate {rate:g} held after a "
            f"warm-up, on Python sources, of each "
            f"{data['repeat_choice']} windows the one with the most to copy (`training/presets/study.toml`). A "
            f"claim that fails here may hold there. Where another model was used, its study's page says so. "
            f"{runs} runs and {forks} forks in all; this page is drawn from their tables."
        )
        + "\n",
        _filled(
            "Copying has *formed* where its accuracy per token stays above a tenth; its step is the middle of the rise "
            "([rule](../formation.md)). Intervals are 95 %; a verdict is `undecided` unless the runs decide it."
        )
        + "\n",
        "| claim | verdict here | effect, with interval | runs |\n|---|---|---|---|",
    ]
    for question in QUESTIONS:
        parts += [_row(question.folder, *row) for row in question.rows]
    for question in QUESTIONS:
        own = f"[{question.folder}]({question.folder}/README.md)"
        parts.append(f"\n## {question.title}\n\n![{question.figure}]({question.folder}/figure.png)\n")
        parts.append(_filled(f"{question.says} All of it: {own}."))
        parts.append("\n" + _filled(f"*What would change our mind:* {question.mind}"))
    return "\n".join([*parts, "\n## Other results\n", _filled(OTHER_PAGES), ""])


def _filled(text: str) -> str:
    return textwrap.fill(text, 130, break_long_words=False, break_on_hyphens=False)


def _row(page: str, claim: str, words: str, folder: str, number: int) -> str:
    verdict = json.loads((HERE / folder / "verdicts.json").read_text())["claims"][number]
    effect = words.format(_value(verdict)) if _known(verdict) else "not known"
    shown = f"**{verdict['verdict']}**" if verdict["verdict"] != "undecided" else "undecided"
    return f"| [{claim}]({page}/README.md) | {shown} | {effect} | {verdict['runs']} |"


def _known(verdict: dict[str, Any]) -> bool:
    return any(verdict[name] is not None for name in ("value", "low", "high"))


def _value(verdict: dict[str, Any]) -> str:
    """−0.53 [−0.76, −0.30]; what is relative in per cent; a bound as `above` or `below`."""
    value, low, high = (verdict[name] for name in ("value", "low", "high"))
    relative = verdict["effect"].startswith("relative change")

    def shown(number: float) -> str:
        text = f"{100 * number:+.0f} %" if relative else f"{number:.2f}"
        return text.replace("-", MINUS)

    if value is None:
        return f"above {shown(low)}" if high is None else f"below {shown(high)}"
    if low is None or high is None:
        return shown(value)
    return f"{shown(value)} [{shown(low)}, {shown(high)}]".replace(" %,", ",").replace(" %]", "]")


if __name__ == "__main__":
    (HERE / "README.md").write_text(write_readme())
