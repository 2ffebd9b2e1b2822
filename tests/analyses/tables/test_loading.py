"""One model for a whole series: what was asked for holds for each checkpoint."""

from pathlib import Path

import pytest
from tiny_series import tiny_series

from copyscope.analyses.tables import loading
from copyscope.analyses.tables.opening import open_run
from copyscope.interp.forward.memory import tokens_at_once
from copyscope.interp.models.devices import Compute
from copyscope.interp.models.hooked import load_hooked


@pytest.mark.parametrize("anew", [False, True])
def test_the_memory_asked_for_holds_for_each_checkpoint(
    anew: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether weights are put into the model at hand, or, as for a bridge, a new one is loaded."""
    run = open_run(tiny_series(tmp_path / "series"))
    if anew:
        monkeypatch.setattr(loading, "load_weights_into", lambda model, path, revision, prove: load_hooked(path))
    models = loading.SeriesModels(samples=2, loss_prompts=2, compute=Compute(max_bytes=2**21))
    loaded = [models.load(run, checkpoint, prove=False)[0] for checkpoint in run.series.checkpoints[:3]]
    assert len({id(model) for model in loaded}) == (3 if anew else 1)
    assert len({tokens_at_once(model) for model in loaded}) == 1
    assert tokens_at_once(loaded[-1]) < tokens_at_once(load_hooked(run.series.checkpoints[0].path))
