"""Commands as a user types them, in this process."""

import sys

import pytest

from copyscope.analyses import cli


def copyscope(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code."""
    monkeypatch.setattr(sys, "argv", ["copyscope", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)
