"""The studies: their questions, and a sweep file for each size of each."""

from pathlib import Path

PRESETS = Path(__file__).parent / "presets"
SIZES = ("laptop", "paper")
QUESTIONS = {
    "batch-size": "Is it updates that count, or tokens?",
    "intensity": "Does copying form when the learning rates, summed, pass a threshold?",
    "regularization": "Does regularization make copying earlier or stronger?",
    "scale": "Do depth, width and heads change when copying forms?",
    "corpus": "On which text does copying form sooner?",
    "seeds": "What of it is chance?",
    "optimizer": "Does Muon make copying form sooner than AdamW, in updates and in seconds?",
    "settling": "Does copying form after the loss has settled, in runs ten times as long as it takes?",
    "depth": "Do heads form from shallow to deep where there are layers enough to tell?",
    "passes": "Does regularization keep copying where the text is passed over many times?",
    "context": "Do the tokens it takes grow as the square root of batch × context?",
    "rate-and-batch": "Which law of learning rate and batch size foretells when copying forms?",
    "intervention": "What does an induction head need in order to form?",
    "commitment": "How far is it decided by the state at a step when induction forms, and in which head?",
    "window": "When does a change that lasts for a while matter?",
}
OF_FORKS = ("commitment", "window")
"""Those that fork their runs (`studies.forked`)."""
