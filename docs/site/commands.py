"""Fills docs/commands.md with the help of every command, so that it cannot fall behind."""

from typing import Any

MARK = "<!-- the help of every command -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    return markdown.replace(MARK, commands_markdown()) if MARK in markdown else markdown


def commands_markdown() -> str:
    """A heading and the help text of every command."""
    from typer.testing import CliRunner

    from copyscope.analyses.cli import app

    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    parts = []
    for name in names:
        result = CliRunner().invoke(app, [name, "--help"], env={"TERMINAL_WIDTH": "100", "COLUMNS": "100"})
        if result.exit_code:
            raise RuntimeError(f"copyscope {name} --help ended with {result.exit_code}")
        parts.append(f"## {name}\n\n```text\n{result.output.strip()}\n```\n")
    return "\n".join(parts)
