"""Which share of the text a run has read, against a count of every token it read; losses on each kind of text."""

from pathlib import Path

import numpy as np
import pytest
from small_demo import small_config, write_corpus

from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.text_measured import held_out_surprisal, measure_text, share_read
from copyscope.analyses.tables.text_read import stored_text
from copyscope.training.config import RunConfig
from copyscope.training.data.batches import n_windows, sequence_starts
from copyscope.training.data.repeats import repeat_value
from copyscope.training.data.store import TokenStore, token_store
from copyscope.training.trainer import train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus", documents=60)


def counted(config: RunConfig, store: TokenStore, steps: int) -> float:
    """Share of the text's tokens that any update read, by marking each."""
    length, k = config.model.n_ctx, config.data.repeat_choice
    seen = np.zeros(len(store.train), bool)
    for sequence in range(steps * config.train.batch_size):
        starts = sequence_starts(config.seeds.data, sequence * k, k, len(store.train), length)
        tokens = np.stack([store.train[s : s + length + 1] for s in starts])
        weights = np.stack([store.surprisal[s + 1 : s + length + 1] for s in starts])
        best = starts[int(repeat_value(tokens, weights).argmax())]
        seen[best : best + length] = True
    return float(seen.mean())


@pytest.mark.parametrize(("choice", "passes"), [(4, 0.9), (4, 3.3), (2, 2.0)])
def test_the_share_read_is_that_of_a_count(corpus: Path, tmp_path: Path, choice: int, passes: float) -> None:
    config = small_config(corpus, **{"data.repeat_choice": choice})
    store = token_store(config.data, tmp_path)
    count = n_windows(store.train, config.model.n_ctx)
    steps = int(passes * count / choice / config.train.batch_size)
    read = share_read(config, store, steps)
    assert read.passes == pytest.approx(passes, abs=0.05)
    assert read.distinct_share == pytest.approx(counted(config, store, steps), abs=0.035)
    tokens = steps * config.train.batch_size * config.model.n_ctx
    assert read.seen_before == pytest.approx(1 - read.distinct_share * len(store.train) / tokens, abs=1e-9)


def test_every_window_once_is_no_repetition(corpus: Path, tmp_path: Path) -> None:
    config = small_config(corpus)
    store = token_store(config.data, tmp_path)
    read = share_read(config, store, 10)
    assert read.seen_before == 0
    assert read.distinct_share == pytest.approx(10 * 2 * 64 / len(store.train))


def test_held_out_text_is_weighed_by_the_training_texts_pairs(corpus: Path, tmp_path: Path) -> None:
    store = token_store(small_config(corpus).data, tmp_path)
    weights, held_out, text = held_out_surprisal(store), store.validation[:], store.train[:]
    at = 57
    same = np.flatnonzero((text[:-1] == held_out[at - 1]) & (text[1:] == held_out[at]))
    wanted = float(store.surprisal[:][same[0] + 1]) if len(same) else float(store.surprisal[:].max())
    assert weights[at] == pytest.approx(wanted)


def test_losses_are_measured_once_and_kept(corpus: Path, tmp_path: Path) -> None:
    config = small_config(corpus, **{"data.repeat_choice": 2, "train.steps": 4})
    run = train(config, tmp_path / "run")
    assert stored_text(open_run(run)) is None
    read = measure_text(open_run(run))
    assert read is not None
    assert read == stored_text(open_run(run))
    assert read.loss_training_text == pytest.approx(read.loss_held_out_chosen, abs=0.3)  # untrained: all alike
    before = (run / "results" / "text.json").stat().st_mtime_ns
    measure_text(open_run(run))
    assert (run / "results" / "text.json").stat().st_mtime_ns == before
