"""What each measure is called, its range and unit, where it comes from, and what it cannot tell."""

from typing import NamedTuple


class Measure(NamedTuple):
    """One measure's words, for figures, tables and reports."""

    title: str
    low: float | None
    """Lowest possible value; None where there is no fixed one."""
    high: float | None
    unit: str
    """Empty for a pure number."""
    meaning: str
    source: str
    cannot_tell: str

    @property
    def signed(self) -> bool:
        return self.low is None or self.low < 0

    @property
    def scale(self) -> str:
        """Range and unit in words, such as "0 to 1" or "nats"."""
        if self.low is None or self.high is None:
            return self.unit or "no fixed range"
        return f"{self.low:g} to {self.high:g}" + (f" {self.unit}" if self.unit else "")


MEASURES: dict[str, Measure] = {
    "induction_attention": Measure(
        "Induction attention",
        0,
        1,
        "",
        "On random tokens repeated once, at a distance that varies from prompt to prompt: mean attention of repeated "
        "tokens to the token that followed before.",
        "arXiv 2409.09281",
        "whether the head writes what it looks at into the output",
    ),
    "prefix_matching_sum": Measure(
        "Prefix matching (sum over repeats)",
        0,
        1,
        "",
        "25 random tokens four times: attention to the tokens that followed earlier occurrences, added up.",
        "Olsson et al. 2022, head activation evaluators",
        "whether the head copies; a head can match prefixes and write something else",
    ),
    "prefix_matching_mean": Measure(
        "Prefix matching (mean over pairs)",
        0,
        1,
        "",
        "As prefix matching (sum), averaged over the earlier occurrences, so a perfect head scores below 1.",
        "Olsson et al. 2022, head activation evaluators",
        "whether the head copies; not comparable with the sum",
    ),
    "previous_token": Measure(
        "Previous-token attention",
        0,
        1,
        "",
        "Mean attention from each token to the one just before it; its null is the mean of the places 2 to 8 back.",
        "Olsson et al. 2022",
        "whether a later head uses it: that takes composition or ablation",
    ),
    "best_offset": Measure(
        "Best offset",
        1,
        8,
        "positions back",
        "How many positions back the head looks most, of 1 to 8.",
        "offset diagonals, common practice (TransformerLens head detector)",
        "how much it looks there: every head has a best offset; read the attention at it",
    ),
    "best_offset_attention": Measure(
        "Attention at the best offset",
        0,
        1,
        "",
        "Mean attention to the token that many positions back; its null is the mean of the other offsets, 1 to 8.",
        "offset diagonals, common practice (TransformerLens head detector)",
        "whether a later head uses it; a head that looks further back, at itself or at the first token",
    ),
    "duplicate_token": Measure(
        "Duplicate-token attention",
        0,
        1,
        "",
        "Mean attention from a token to its own earlier occurrences.",
        "Wang et al. 2022 (arXiv 2211.00593)",
        "whether the model's output depends on it",
    ),
    "anti_induction": Measure(
        "Anti-induction attention",
        0,
        1,
        "",
        "As induction attention, but to the token before the earlier occurrence: a control of direction.",
        "control of arXiv 2409.09281's measure",
        "anything by itself; high along with induction attention, the head looks around the earlier occurrence",
    ),
    "attention_entropy": Measure(
        "Attention entropy",
        0,
        None,
        "nats",
        "Mean entropy of each position's attention: 0 for a single key, the log of their number for an even spread.",
        "common practice",
        "where the head looks; it grows with the length of the prompt",
    ),
    "bos_sink": Measure(
        "Attention to the first token",
        0,
        1,
        "",
        "Mean attention of every later position to the first one, where heads at rest put it.",
        "Xiao et al. 2023 (arXiv 2309.17453)",
        "whether the head rests or reads something there",
    ),
    "copying_score": Measure(
        "Copying score",
        -1,
        1,
        "",
        "25 random tokens: share of the head's raise of logits that falls on the tokens it attends to.",
        "Olsson et al. 2022, head activation evaluators",
        "indirect effects through later layers; an indifferent head is near -0.9, not 0",
    ),
    "k_composition": Measure(
        "K-composition",
        0,
        1,
        "",
        "How much of what an earlier head writes a later head's keys pick up.",
        "Elhage et al. 2021, composition scores",
        "whether the two attend where it matters; random heads are not at 0",
    ),
    "path_score": Measure(
        "Previous-token → induction path score",
        0,
        1,
        "",
        "Previous-token score of the earlier head × K-composition × induction attention of the later one.",
        "after Olsson et al. 2022, argument 4",
        "whether the path has an effect: that takes path patching",
    ),
    "eigenvalue_positivity_raw": Measure(
        "Eigenvalue positivity (raw weights)",
        -1,
        1,
        "",
        "Sum of real parts over sum of magnitudes of the eigenvalues of the head's full OV circuit.",
        "Elhage et al. 2021, copying heads",
        "where the head looks, or what layers in between make of its output",
    ),
    "eigenvalue_positivity_folded": Measure(
        "Eigenvalue positivity (norm weights folded in)",
        -1,
        1,
        "",
        "As eigenvalue positivity (raw), with the weights of the norms multiplied in.",
        "Elhage et al. 2021, copying heads",
        "where the head looks, or what layers in between make of its output",
    ),
    "induction_score": Measure(
        "Induction score",
        -1,
        1,
        "",
        "Induction attention × eigenvalue positivity: it looks where copying needs it to and writes what it sees.",
        "arXiv 2409.09281",
        "whether copying breaks without the head: that takes ablation",
    ),
    "copying_accuracy_token": Measure(
        "Copying accuracy per token (teacher-forced)",
        0,
        1,
        "",
        "Share of suffix tokens that are the likeliest, with the right tokens put in before each, after a prefix that "
        "occurred once before in random context.",
        "arXiv 2409.09281",
        "what the model generates, which is less; how far below the top choice the right token lies",
    ),
    "copying_accuracy_greedy": Measure(
        "Copying accuracy per token (as generated)",
        0,
        1,
        "",
        "Share of suffix tokens that are right when the model continues the prefix with its own likeliest tokens.",
        "arXiv 2409.09281",
        "which tokens it would get right after a right one: a single wrong token costs those that follow; of fewer "
        "samples than the others (copying_greedy_samples), so its standard error is larger",
    ),
    "copying_accuracy_token_averaged": Measure(
        "Copying accuracy of averaged weights, per token (teacher-forced)",
        0,
        1,
        "",
        "That of the mean of the weights of the last third of the steps so far.",
        "arXiv 2409.09281; mean of weights: Izmailov et al. 2018",
        "when copying formed: a mean lags behind the run",
    ),
    "copying_accuracy_exact": Measure(
        "Copying accuracy, whole suffix",
        0,
        1,
        "",
        "Share of samples in which all six suffix tokens are right, as generated.",
        "arXiv 2409.09281",
        "partial success: one wrong token in six counts as failure",
    ),
    "copying_loss_first": Measure(
        "Loss on the first half",
        None,
        None,
        "nats",
        "Mean loss on random tokens seen for the first time.",
        "Olsson et al. 2022",
        "anything about copying by itself; it can exceed the log of the vocabulary size: a model of text expects other "
        "tokens than random ones",
    ),
    "copying_loss_second": Measure(
        "Loss on the repeated half",
        None,
        None,
        "nats",
        "Mean loss on the same random tokens the second time.",
        "Olsson et al. 2022",
        "which heads lower it",
    ),
    "copying_loss_shuffled": Measure(
        "Loss on a shuffled second half",
        None,
        None,
        "nats",
        "Control: mean loss on the same random tokens the second time, in random order.",
        "control of Olsson et al. 2022's repeated sequences",
        "copying by itself; as low as the repeated half, the model raises every token that it has seen",
    ),
    "copying_loss_difference": Measure(
        "Copying loss difference (second half minus first)",
        None,
        None,
        "nats",
        "Below 0: having seen the tokens before helps.",
        "Olsson et al. 2022",
        "whether the help comes from copying in order or from raising every token seen before: the shuffled half does",
    ),
    "copying_loss": Measure(
        "Copying loss",
        None,
        None,
        "nats",
        "Mean loss on the repeated half of random tokens.",
        "Olsson et al. 2022",
        "which heads lower it, unless a head is ablated",
    ),
    "icl_score": Measure(
        "In-context-learning score",
        None,
        None,
        "nats",
        "Loss of the same natural-text tokens late in a context minus early in one; below 0: context helps.",
        "Olsson et al. 2022",
        "which skill helps: copying is one of many",
    ),
    "natural_loss": Measure(
        "Loss on natural text",
        None,
        None,
        "nats",
        "Mean loss per token on held-out text.",
        "common practice",
        "anything about one skill",
    ),
    "natural_loss_predictable": Measure(
        "Loss on what induction could predict",
        None,
        None,
        "nats",
        "Held-out text: tokens that followed the current token earlier in the same window.",
        "after Olsson et al. 2022",
        "whether induction got them right; frequent pairs are also learnt by heart",
    ),
    "natural_loss_other": Measure(
        "Loss on what induction could not predict",
        None,
        None,
        "nats",
        "Held-out text: tokens that had not followed the current token in the window.",
        "after Olsson et al. 2022",
        "anything about copying",
    ),
    "natural_predictable_share": Measure(
        "Share of tokens that induction could predict",
        0,
        1,
        "",
        "Of held-out text.",
        "after Olsson et al. 2022",
        "anything about the model: it is a property of the text",
    ),
    "train_loss": Measure(
        "Training loss",
        0,
        None,
        "nats",
        "Mean loss per token of the batch of an update, as logged while training.",
        "common practice",
        "what the model does on text it has not seen",
    ),
    "validation_loss": Measure(
        "Validation loss",
        0,
        None,
        "nats",
        "Mean loss per token on held-out text, as measured while training.",
        "common practice",
        "anything about one skill",
    ),
    "lr": Measure(
        "Learning rate",
        0,
        None,
        "",
        "What the optimiser's steps were scaled by.",
        "common practice",
        "how far the weights moved",
    ),
    "grad_norm": Measure(
        "Gradient norm",
        0,
        None,
        "",
        "Norm of the gradient of all weights, before clipping.",
        "common practice",
        "in which weights the change lies",
    ),
    "copying_samples": Measure(
        "Samples of the copying test",
        None,
        None,
        "",
        "How many prefixes were asked for.",
        "arXiv 2409.09281",
        "how many contexts they come from; samples of one context are not independent",
    ),
    "copying_greedy_samples": Measure(
        "Samples of the copying test that were generated",
        None,
        None,
        "",
        "How many prefixes the model continued with its own tokens: a fifth of the contexts, at least 10.",
        "",
        "how many contexts they come from; samples of one context are not independent",
    ),
    "copying_subsequences": Measure(
        "Subsequences in a context of the copying test",
        None,
        None,
        "",
        "50 in the paper; fewer where the context is too short for them.",
        "arXiv 2409.09281",
        "accuracies with different numbers do not compare",
    ),
}


CALIBRATIONS = ("_null", "_selectivity", "_se", "_p", "_control")
"""Endings of what calibrates a measure and is not one itself."""


def is_calibration(measure: str) -> bool:
    """Whether `measure` is the null, selectivity, standard error, p-value or control of another."""
    return measure.endswith(CALIBRATIONS)


def describe(measure: str) -> Measure:
    """The words for `measure`, also for an ablation's effect on it (`zero:copying_loss`) and with `_null`,
    `_selectivity` or `_control` added; unknown: its own title."""
    if measure in MEASURES:
        return MEASURES[measure]
    method, colon, base = measure.partition(":")
    if colon and base in MEASURES:
        words = MEASURES[base]
        bounded = words.low is not None and words.high is not None
        low, high = (-1, 1) if bounded else (None, None)
        return words._replace(title=f"{words.title}: change when the head is removed ({method})", low=low, high=high)
    for suffix, words in (("_null", ", random target"), ("_control", ", mean of the layer's other heads")):
        if measure.endswith(suffix) and measure.removesuffix(suffix) in MEASURES:
            base = MEASURES[measure.removesuffix(suffix)]
            return base._replace(title=base.title + words)
    if measure.endswith("_value_weighted") and measure.removesuffix("_value_weighted") in MEASURES:
        base = MEASURES[measure.removesuffix("_value_weighted")]
        return base._replace(
            title=f"{base.title}, weighted by values",
            source=f"{base.source}; Kobayashi et al. 2020",
            meaning=f"{base.meaning} Each key counts by the length of what its value writes.",
        )
    if measure.endswith("_selectivity") and measure.removesuffix("_selectivity") in MEASURES:
        base = MEASURES[measure.removesuffix("_selectivity")]
        return base._replace(title=base.title + ", selectivity", low=None, high=None, unit="× uniform attention")
    return Measure(measure, None, None, "", "", "", "")
