"""How many examples a property test runs: few and the same ones in `make test`, many new ones in `make test-search`."""

from typing import Any

from hypothesis import settings

_USUAL = 100
"""Examples that hypothesis runs where nothing else is said."""


def examples(n: int, **more: Any) -> settings:
    """`n` examples in `make test`, and as many times more as the profile in use asks for (tests/conftest.py).

    `more`: other settings of hypothesis.
    """
    default: Any = settings.default
    return settings(max_examples=max(1, n * default.max_examples // _USUAL), **more)
