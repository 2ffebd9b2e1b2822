"""What each measure is called, its range and unit, where it comes from, and what it cannot tell."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure's words, for figures, tables and reports."""

    title: str
    low: int | float | None
    """Lowest possible value; None where there is no fixed one."""
    high: int | float | None
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
        title="Induction attention",
        low=0,
        high=1,
        unit="",
        meaning="On random tokens repeated once, at a distance that varies from prompt to prompt: mean attention of "
        "repeated tokens to the token that followed before.",
        source="arXiv 2409.09281",
        cannot_tell="whether the head writes what it looks at into the output",
    ),
    "prefix_matching_sum": Measure(
        title="Prefix matching (sum over repeats)",
        low=0,
        high=1,
        unit="",
        meaning="25 random tokens four times: attention to the tokens that followed earlier occurrences, added up.",
        source="Olsson et al. 2022, head activation evaluators",
        cannot_tell="whether the head copies; a head can match prefixes and write something else",
    ),
    "prefix_matching_mean": Measure(
        title="Prefix matching (mean over pairs)",
        low=0,
        high=1,
        unit="",
        meaning="As prefix matching (sum), averaged over the earlier occurrences, so a perfect head scores below 1.",
        source="Olsson et al. 2022, head activation evaluators",
        cannot_tell="whether the head copies; not comparable with the sum",
    ),
    "previous_token": Measure(
        title="Previous-token attention",
        low=0,
        high=1,
        unit="",
        meaning="Mean attention from each token to the one just before it; its null is the mean of the places 2 to 8 "
        "back.",
        source="Olsson et al. 2022",
        cannot_tell="whether a later head uses it: that takes composition or ablation",
    ),
    "best_offset": Measure(
        title="Best offset",
        low=1,
        high=8,
        unit="positions back",
        meaning="How many positions back the head looks most, of 1 to 8.",
        source="offset diagonals, common practice (TransformerLens head detector)",
        cannot_tell="how much it looks there: every head has a best offset; read the attention at it",
    ),
    "best_offset_attention": Measure(
        title="Attention at the best offset",
        low=0,
        high=1,
        unit="",
        meaning="Mean attention to the token that many positions back; its null is the mean of the other offsets, 1 "
        "to 8.",
        source="offset diagonals, common practice (TransformerLens head detector)",
        cannot_tell="whether a later head uses it; a head that looks further back, at itself or at the first token",
    ),
    "duplicate_token": Measure(
        title="Duplicate-token attention",
        low=0,
        high=1,
        unit="",
        meaning="Mean attention from a token to its own earlier occurrences.",
        source="Wang et al. 2022 (arXiv 2211.00593)",
        cannot_tell="whether the model's output depends on it",
    ),
    "anti_induction": Measure(
        title="Anti-induction attention",
        low=0,
        high=1,
        unit="",
        meaning="As induction attention, but to the token before the earlier occurrence: a control of direction.",
        source="control of arXiv 2409.09281's measure",
        cannot_tell="anything by itself; high along with induction attention, the head looks around the earlier "
        "occurrence",
    ),
    "attention_entropy": Measure(
        title="Attention entropy",
        low=0,
        high=None,
        unit="nats",
        meaning="Mean entropy of each position's attention: 0 for a single key, the log of their number for an even "
        "spread.",
        source="common practice",
        cannot_tell="where the head looks; it grows with the length of the prompt",
    ),
    "bos_sink": Measure(
        title="Attention to the first token",
        low=0,
        high=1,
        unit="",
        meaning="Mean attention of every later position to the first one, where heads at rest put it.",
        source="Xiao et al. 2023 (arXiv 2309.17453)",
        cannot_tell="whether the head rests or reads something there",
    ),
    "first_token_norm_ratio": Measure(
        title="Length of the first token's value",
        low=0,
        high=None,
        unit="× mean of the others",
        meaning="Length of the head's value at the first position over the mean length at the others.",
        source="after Gu et al. 2024 (arXiv 2410.10781)",
        cannot_tell="whether the head looks there; the residual stream at a sink is long, its value short",
    ),
    "participation_ratio": Measure(
        title="Participation ratio of the head's outputs",
        low=0,
        high=None,
        unit="directions",
        meaning="Over how many directions the head's outputs spread on random tokens: 1 for a head that always writes "
        "along one.",
        source="common practice; over training: arXiv 2606.02378",
        cannot_tell="what the directions mean, or whether later layers read them",
    ),
    "ov_stable_rank": Measure(
        title="Stable rank of OV",
        low=0,
        high=None,
        unit="directions",
        meaning="Sum of squared singular values of W_V W_O over the largest squared: how many directions are strong.",
        source="Rudelson and Vershynin 2007",
        cannot_tell="which directions, or whether text has them",
    ),
    "ov_effective_rank": Measure(
        title="Effective rank of OV",
        low=0,
        high=None,
        unit="directions",
        meaning="Exponential of the entropy of the singular values of W_V W_O: weak directions count too.",
        source="Roy and Vetterli 2007",
        cannot_tell="which directions, or whether text has them",
    ),
    "qk_stable_rank": Measure(
        title="Stable rank of QK",
        low=0,
        high=None,
        unit="directions",
        meaning="Sum of squared singular values of W_Q W_Kᵀ over the largest squared, without rotary positions.",
        source="Rudelson and Vershynin 2007",
        cannot_tell="where the head looks: positions are left out",
    ),
    "qk_effective_rank": Measure(
        title="Effective rank of QK",
        low=0,
        high=None,
        unit="directions",
        meaning="Exponential of the entropy of the singular values of W_Q W_Kᵀ, without rotary positions.",
        source="Roy and Vetterli 2007",
        cannot_tell="where the head looks: positions are left out",
    ),
    "retrieval_score": Measure(
        title="Retrieval score",
        low=0,
        high=1,
        unit="",
        meaning="Copying test: share of suffix tokens that the model gets right while the head attends most, of all "
        "positions, to the one that holds the token.",
        source="Wu et al. 2024 (arXiv 2404.15574)",
        cannot_tell="whether the head's output is used; it is 0 while the model copies nothing, whatever the head does",
    ),
    "ngram_induction": Measure(
        title="N-gram induction",
        low=-1,
        high=1,
        unit="",
        meaning="Attention to what followed the same two tokens, minus the mean to what followed decoys that share "
        "only the last of them.",
        source="after Akyürek et al. 2024 (arXiv 2401.12973)",
        cannot_tell="whether the head writes what it finds; 0 for a head that matches single tokens, however well",
    ),
    "copy_suppression": Measure(
        title="Copy suppression",
        low=None,
        high=None,
        unit="logits",
        meaning="On repeated random tokens: how far the head lowers the logit of the current token by attending to its "
        "earlier copy; negative where it raises it.",
        source="after McDougall et al. 2023 (arXiv 2310.04625)",
        cannot_tell="whether it suppresses what earlier layers predict: that shows as a negative induction logit "
        "attribution",
    ),
    "copy_suppression_weights": Measure(
        title="Copy suppression by weights",
        low=0,
        high=1,
        unit="",
        meaning="Share of tokens that are among the ten whose logits the head lowers most when it attends to them, by "
        "the direct path from embedding to logits.",
        source="after McDougall et al. 2023 (arXiv 2310.04625)",
        cannot_tell="whether the head attends to such tokens; what the first MLP makes of a token is left out",
    ),
    "successor_score": Measure(
        title="Successor score",
        low=0,
        high=1,
        unit="",
        meaning="Share of entries of ordered lists (numbers, days, months, letters) after which the head, attending to "
        "them, raises the next entry above all others of the list; by weights.",
        source="Gould et al. 2023 (arXiv 2312.09230)",
        cannot_tell="whether the head attends to such tokens; with few entries as single tokens it is coarse",
    ),
    "function_vector": Measure(
        title="Function-vector score",
        low=None,
        high=None,
        unit="nats",
        meaning="Task of labels: rise of the right answer's log-probability when the head's output at the query, "
        "averaged over prompts with examples, is put into prompts whose labels are shuffled.",
        source="Todd et al. 2024 (arXiv 2310.15213)",
        cannot_tell="anything that differs between prompts: of labels drawn anew for each it can say that a label "
        "comes, not which one",
    ),
    "function_vector_estimate": Measure(
        title="Function-vector score, by one backward pass",
        low=None,
        high=None,
        unit="nats",
        meaning="First-order estimate of the function-vector score, of all heads at once.",
        source="attribution patching (arXiv 2310.10348) of Todd et al. 2024",
        cannot_tell="large changes: it does not see that a probability ends at 1",
    ),
    "function_vector_correlation": Measure(
        title="Function-vector score: exact against estimate",
        low=-1,
        high=1,
        unit="",
        meaning="Pearson correlation over heads of the exact function-vector score and its estimate.",
        source="control of the estimate",
        cannot_tell="which heads the estimate gets wrong; a few strong heads can make it high alone",
    ),
    "token_copying": Measure(
        title="Token-copying score",
        low=None,
        high=None,
        unit="nats",
        meaning="Random tokens, some of which come again: rise of the right next token's log-probability when the "
        "head's output is put into a prompt in which they had not come before.",
        source="after Feucht et al. 2025 (arXiv 2504.03022)",
        cannot_tell="heads that only work together, or a copy that another head makes too",
    ),
    "concept_copying": Measure(
        title="Concept-copying score",
        low=None,
        high=None,
        unit="nats",
        meaning="The same of names of several tokens, for the second token after the first, with the head's output put "
        "in one token earlier: the head tells of more than the next token.",
        source="after Feucht et al. 2025 (arXiv 2504.03022)",
        cannot_tell="whether the head knows the name as a unit: our names are two words joined, which the model may "
        "know only apart",
    ),
    "induction_logit_attribution": Measure(
        title="Induction logit attribution",
        low=None,
        high=None,
        unit="logits",
        meaning="On repeated random tokens: how far the head itself raises the logit of the right next token; negative "
        "with high induction attention, the head suppresses copying.",
        source="after Elhage et al. 2021, direct logit attribution",
        cannot_tell="indirect effects through later layers",
    ),
    "copying_score": Measure(
        title="Copying score",
        low=-1,
        high=1,
        unit="",
        meaning="25 random tokens: share of the head's raise of logits that falls on the tokens it attends to.",
        source="Olsson et al. 2022, head activation evaluators",
        cannot_tell="indirect effects through later layers; an indifferent head is near -0.9, not 0",
    ),
    "k_composition": Measure(
        title="K-composition",
        low=0,
        high=1,
        unit="",
        meaning="How much of what an earlier head writes a later head's keys pick up.",
        source="Elhage et al. 2021, composition scores",
        cannot_tell="whether the two attend where it matters; random heads are not at 0",
    ),
    "qk_ov_diagonal": Measure(
        title="QK·OV diagonal match",
        low=None,
        high=None,
        unit="standard deviations",
        meaning="Of the later head's QK times the earlier head's OV: mean of the diagonal minus mean of all entries, "
        "over their standard deviation. High: the later head looks for what the earlier one wrote, unturned.",
        source="Song et al. 2024 (arXiv 2408.09503)",
        cannot_tell="a match that is turned on the way; whether the two attend where it matters",
    ),
    "qk_ov_subspace": Measure(
        title="QK·OV subspace match",
        low=0,
        high=1,
        unit="",
        meaning="Largest cosine between the ten strongest directions that the earlier head writes and the ten that the "
        "later head's keys read.",
        source="Song et al. 2024 (arXiv 2408.09503)",
        cannot_tell="how strongly the direction is used; random heads are not at 0",
    ),
    "path_score": Measure(
        title="Previous-token → induction path score",
        low=0,
        high=1,
        unit="",
        meaning="Previous-token score of the earlier head × K-composition × induction attention of the later one.",
        source="after Olsson et al. 2022, argument 4",
        cannot_tell="whether the path has an effect: that takes path patching",
    ),
    "eigenvalue_positivity_raw": Measure(
        title="Eigenvalue positivity (raw weights)",
        low=-1,
        high=1,
        unit="",
        meaning="Sum of real parts over sum of magnitudes of the eigenvalues of the head's full OV circuit.",
        source="Elhage et al. 2021, copying heads",
        cannot_tell="where the head looks, or what layers in between make of its output",
    ),
    "eigenvalue_positivity_folded": Measure(
        title="Eigenvalue positivity (norm weights folded in)",
        low=-1,
        high=1,
        unit="",
        meaning="As eigenvalue positivity (raw), with the weights of the norms multiplied in.",
        source="Elhage et al. 2021, copying heads",
        cannot_tell="where the head looks, or what layers in between make of its output",
    ),
    "induction_score": Measure(
        title="Induction score",
        low=-1,
        high=1,
        unit="",
        meaning="Induction attention × eigenvalue positivity: it looks where copying needs it to and writes what it "
        "sees.",
        source="arXiv 2409.09281",
        cannot_tell="whether copying breaks without the head: that takes ablation",
    ),
    "copying_accuracy_token": Measure(
        title="Copying accuracy per token (teacher-forced)",
        low=0,
        high=1,
        unit="",
        meaning="Share of suffix tokens that are the likeliest, with the right tokens put in before each, after a "
        "prefix that occurred once before in random context.",
        source="arXiv 2409.09281",
        cannot_tell="what the model generates, which is less; how far below the top choice the right token lies",
    ),
    "copying_accuracy_greedy": Measure(
        title="Copying accuracy per token (as generated)",
        low=0,
        high=1,
        unit="",
        meaning="Share of suffix tokens that are right when the model continues the prefix with its own likeliest "
        "tokens.",
        source="arXiv 2409.09281",
        cannot_tell="which tokens it would get right after a right one: a single wrong token costs those that follow; "
        "of fewer samples than the others (copying_greedy_samples), so its standard error is larger",
    ),
    "copying_accuracy_token_averaged": Measure(
        title="Copying accuracy of averaged weights, per token (teacher-forced)",
        low=0,
        high=1,
        unit="",
        meaning="That of the mean of the weights of the last quarter of the steps so far.",
        source="arXiv 2409.09281; mean of weights: Izmailov et al. 2018",
        cannot_tell="when copying formed: a mean lags behind the run",
    ),
    "copying_mean_rank": Measure(
        title="Mean rank of the right token, copying test",
        low=1,
        high=None,
        unit="",
        meaning="Place of the right suffix token among all tokens by likelihood, 1 the likeliest, given the right ones "
        "before; it falls long before any accuracy rises.",
        source="common practice",
        cannot_tell="anything about the typical token: a few bad ranks weigh more than many good ones; a model that "
        "raises every token it has seen improves it too",
    ),
    "copying_accuracy_exact": Measure(
        title="Copying accuracy, whole suffix",
        low=0,
        high=1,
        unit="",
        meaning="Share of samples in which all six suffix tokens are right, as generated.",
        source="arXiv 2409.09281",
        cannot_tell="partial success: one wrong token in six counts as failure",
    ),
    "copying_loss_first": Measure(
        title="Loss on the first half",
        low=None,
        high=None,
        unit="nats",
        meaning="Mean loss on random tokens seen for the first time.",
        source="Olsson et al. 2022",
        cannot_tell="anything about copying by itself; it can exceed the log of the vocabulary size: a model of text "
        "expects other tokens than random ones",
    ),
    "copying_loss_second": Measure(
        title="Loss on the repeated half",
        low=None,
        high=None,
        unit="nats",
        meaning="Mean loss on the same random tokens the second time.",
        source="Olsson et al. 2022",
        cannot_tell="which heads lower it",
    ),
    "copying_loss_shuffled": Measure(
        title="Loss on a shuffled second half",
        low=None,
        high=None,
        unit="nats",
        meaning="Control: mean loss on the same random tokens the second time, in random order.",
        source="control of Olsson et al. 2022's repeated sequences",
        cannot_tell="copying by itself; as low as the repeated half, the model raises every token that it has seen",
    ),
    "copying_loss_difference": Measure(
        title="Copying loss difference (second half minus first)",
        low=None,
        high=None,
        unit="nats",
        meaning="Below 0: having seen the tokens before helps.",
        source="Olsson et al. 2022",
        cannot_tell="whether the help comes from copying in order or from raising every token seen before: the "
        "shuffled half does",
    ),
    "copying_loss": Measure(
        title="Copying loss",
        low=None,
        high=None,
        unit="nats",
        meaning="Mean loss on the repeated half of random tokens.",
        source="Olsson et al. 2022",
        cannot_tell="which heads lower it, unless a head is ablated",
    ),
    "icl_score": Measure(
        title="In-context-learning score",
        low=None,
        high=None,
        unit="nats",
        meaning="Loss of the same natural-text tokens late in a context minus early in one; below 0: context helps.",
        source="Olsson et al. 2022",
        cannot_tell="which skill helps: copying is one of many",
    ),
    "natural_loss": Measure(
        title="Loss on natural text",
        low=None,
        high=None,
        unit="nats",
        meaning="Mean loss per token on held-out text.",
        source="common practice",
        cannot_tell="anything about one skill",
    ),
    "natural_loss_copy_rule": Measure(
        title="Loss of the in-context copy rule on natural text",
        low=None,
        high=None,
        unit="nats",
        meaning="Baseline without a model: each token predicted by what followed the current one before in the window, "
        "and by how common tokens are.",
        source="in-context bigram rule, after arXiv 2402.11004",
        cannot_tell="anything about the model: it is a property of the text",
    ),
    "natural_kl_unigram": Measure(
        title="KL divergence from the corpus's unigram rule",
        low=0,
        high=None,
        unit="nats",
        meaning="Held-out text: of the model's next token from the shares of tokens in the training text.",
        source="after Edelman et al. 2024 (arXiv 2402.11004)",
        cannot_tell="in which direction the model differs: one that knows more than the rule is far from it too",
    ),
    "natural_kl_bigram": Measure(
        title="KL divergence from the corpus's bigram rule",
        low=0,
        high=None,
        unit="nats",
        meaning="Held-out text: of the model's next token from what followed the current token in the training text.",
        source="after Edelman et al. 2024 (arXiv 2402.11004)",
        cannot_tell="in which direction the model differs: one that knows more than the rule is far from it too",
    ),
    "copied_token_layer": Measure(
        title="First layer at which the copied token leads",
        low=0,
        high=None,
        unit="layers run",
        meaning="Logit lens on repeated random tokens: of the places that the model gets right, mean number of layers "
        "from which on the right token is the likeliest.",
        source="logit lens: nostalgebraist 2020",
        cannot_tell="whether an earlier layer holds the token in directions that the unembedding does not read",
    ),
    "natural_loss_predictable": Measure(
        title="Loss on what induction could predict",
        low=None,
        high=None,
        unit="nats",
        meaning="Held-out text: tokens that followed the current token earlier in the same window.",
        source="after Olsson et al. 2022",
        cannot_tell="whether induction got them right; frequent pairs are also learnt by heart",
    ),
    "natural_loss_other": Measure(
        title="Loss on what induction could not predict",
        low=None,
        high=None,
        unit="nats",
        meaning="Held-out text: tokens that had not followed the current token in the window.",
        source="after Olsson et al. 2022",
        cannot_tell="anything about copying",
    ),
    "natural_predictable_share": Measure(
        title="Share of tokens that induction could predict",
        low=0,
        high=1,
        unit="",
        meaning="Of held-out text.",
        source="after Olsson et al. 2022",
        cannot_tell="anything about the model: it is a property of the text",
    ),
    "train_loss": Measure(
        title="Training loss",
        low=0,
        high=None,
        unit="nats",
        meaning="Mean loss per token of the batch of an update, as logged while training.",
        source="common practice",
        cannot_tell="what the model does on text it has not seen",
    ),
    "validation_loss": Measure(
        title="Validation loss",
        low=0,
        high=None,
        unit="nats",
        meaning="Mean loss per token on held-out text, as measured while training.",
        source="common practice",
        cannot_tell="anything about one skill",
    ),
    "lr": Measure(
        title="Learning rate",
        low=0,
        high=None,
        unit="",
        meaning="What the optimiser's steps were scaled by.",
        source="common practice",
        cannot_tell="how far the weights moved",
    ),
    "grad_norm": Measure(
        title="Gradient norm",
        low=0,
        high=None,
        unit="",
        meaning="Norm of the gradient of all weights, before clipping.",
        source="common practice",
        cannot_tell="in which weights the change lies",
    ),
    "copying_samples": Measure(
        title="Samples of the copying test",
        low=None,
        high=None,
        unit="",
        meaning="How many prefixes were asked for.",
        source="arXiv 2409.09281",
        cannot_tell="how many contexts they come from; samples of one context are not independent",
    ),
    "copying_greedy_samples": Measure(
        title="Samples of the copying test that were generated",
        low=None,
        high=None,
        unit="",
        meaning="How many prefixes the model continued with its own tokens: a fifth of the contexts, at least 10.",
        source="",
        cannot_tell="how many contexts they come from; samples of one context are not independent",
    ),
    "accuracy": Measure(
        title="Task accuracy",
        low=0,
        high=1,
        unit="",
        meaning="In-context task: share of questions whose answer is the likeliest of all tokens.",
        source="of each task, see Definitions",
        cannot_tell="by which rule the model answers; below chance it can still know more than chance, because it may "
        "prefer tokens that are no candidates",
    ),
    "choice_accuracy": Measure(
        title="Task accuracy among the candidates",
        low=0,
        high=1,
        unit="",
        meaning="In-context task: share of questions whose answer is the likeliest of the tokens that a guess picks "
        "from.",
        source="of each task, see Definitions",
        cannot_tell="whether the model would say any of the candidates",
    ),
    "control_choice": Measure(
        title="Task accuracy among the candidates, control",
        low=0,
        high=1,
        unit="",
        meaning="The same where nothing in the context tells the answer; at chance unless the prompts give it away.",
        source="of each task, see Definitions",
        cannot_tell="anything about the task",
    ),
    "hits3": Measure(
        title="Answer among the three likeliest tokens",
        low=0,
        high=1,
        unit="",
        meaning="In-context task: share of questions whose answer is among the three likeliest tokens.",
        source="Todd et al. 2024 (arXiv 2310.15213)",
        cannot_tell="which of the three the model prefers",
    ),
    "mean_rank": Measure(
        title="Mean rank of the answer",
        low=1,
        high=None,
        unit="",
        meaning="In-context task: place of the answer among all tokens by likelihood, 1 the likeliest.",
        source="common practice",
        cannot_tell="anything about the typical question: a few bad ranks weigh more than many good ones",
    ),
    "gain": Measure(
        title="Log-probability gained over no context",
        low=None,
        high=None,
        unit="nats",
        meaning="In-context task: log-probability of the answer, minus the same after the query alone.",
        source="common practice",
        cannot_tell="whether the gain is the answer's own: every token seen in the context may have been raised",
    ),
    "kl_bigram": Measure(
        title="KL divergence from the in-context bigram rule",
        low=0,
        high=None,
        unit="nats",
        meaning="Markov chain: of the model's next token from the shares with which tokens followed the last one.",
        source="arXiv 2402.11004",
        cannot_tell="how much of it is probability on tokens that the chain does not have",
    ),
    "kl_unigram": Measure(
        title="KL divergence from the in-context unigram rule",
        low=0,
        high=None,
        unit="nats",
        meaning="Markov chain: of the model's next token from the shares of the tokens in the context.",
        source="arXiv 2402.11004",
        cannot_tell="how much of it is probability on tokens that the chain does not have",
    ),
    "copying_subsequences": Measure(
        title="Subsequences in a context of the copying test",
        low=None,
        high=None,
        unit="",
        meaning="50 in the paper; fewer where the context is too short for them.",
        source="arXiv 2409.09281",
        cannot_tell="accuracies with different numbers do not compare",
    ),
}


CALIBRATIONS = ("_null", "_selectivity", "_se", "_p", "_control", "_matched")
"""Endings of what calibrates a measure and is not one itself."""


def is_calibration(measure: str) -> bool:
    """Whether `measure` is the null, selectivity, standard error, p-value or a control of another."""
    return measure.endswith(CALIBRATIONS)


def describe(measure: str) -> Measure:
    """The words for `measure`, also for an ablation's effect on it (`zero:copying_loss`) and with `_null`,
    `_selectivity`, `_control` or `_matched` added; unknown: its own title."""
    if measure in MEASURES:
        return MEASURES[measure]
    method, colon, base = measure.partition(":")
    if colon and base in MEASURES:
        words = MEASURES[base]
        bounded = words.low is not None and words.high is not None
        low, high = (-1, 1) if bounded else (None, None)
        return replace(words, title=f"{words.title}: change when the head is removed ({method})", low=low, high=high)
    for suffix, words in (
        ("_null", ", random target"),
        ("_control", ", mean of the layer's other heads"),
        ("_matched", ", mean of heads of like attention entropy"),
    ):
        if measure.endswith(suffix) and measure.removesuffix(suffix) in MEASURES:
            base = MEASURES[measure.removesuffix(suffix)]
            return replace(base, title=base.title + words)
    if measure.endswith("_value_weighted") and measure.removesuffix("_value_weighted") in MEASURES:
        base = MEASURES[measure.removesuffix("_value_weighted")]
        return replace(
            base,
            title=f"{base.title}, weighted by values",
            source=f"{base.source}; Kobayashi et al. 2020",
            meaning=f"{base.meaning} Each key counts by the length of what its value writes.",
        )
    if measure.endswith("_selectivity") and measure.removesuffix("_selectivity") in MEASURES:
        base = MEASURES[measure.removesuffix("_selectivity")]
        return replace(base, title=base.title + ", selectivity", low=None, high=None, unit="× uniform attention")
    return Measure(title=measure, low=None, high=None, unit="", meaning="", source="", cannot_tell="")
