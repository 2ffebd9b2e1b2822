"""Every jaxtyping shape in the three packages is checked at run time while tests run (beartype).

Property tests (hypothesis) draw the same examples every time, so that the suite gives the same verdict every time.
`make test-search` (`--hypothesis-profile search`) draws new ones, and 20 times as many.
"""

import logging
import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.register_profile("search", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile("repeatable")
install_import_hook(["copyscope"], "beartype.beartype")

SLOW = (
    "tests/analyses/claims",
    "tests/analyses/commands/test_cli.py",
    "tests/analyses/explorer",
    "tests/analyses/figures/test_paper.py",
    "tests/analyses/formation",
    "tests/analyses/page",
    "tests/analyses/studies",
    "tests/analyses/tables",
    "tests/analyses/test_front_door.py",
    "tests/analyses/test_tutorial.py",
    "tests/browser",
    "tests/docs",
    "tests/faults",
    "tests/interp/ablation",
    "tests/interp/models/test_bridge.py",
    "tests/interp/models/test_families.py",
    "tests/interp/models/test_smollm2.py",
    "tests/packaging",
    "tests/robustness",
    "tests/series",
    "tests/training/test_processes.py",
    "tests/training/test_trainer.py",
    "tests/training/test_zoom.py",
)
"""The slowest files and folders, more than four fifths of the time of the suite; `make test-fast` leaves them out."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is in `SLOW`, and skips what needs a GPU where there is none."""
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not _has_gpu():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU: torch.cuda.is_available() is false"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What copyscope logs during the test, a line each."""
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, logger = Collect(), logging.getLogger("copyscope")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(before)
