"""The report in a real browser, from file://: plots drawn, no errors, no requests, hostile text inert."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "analyses"))
from synthetic_run import synthetic_run  # type: ignore[import-not-found]

from analyses.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (Debian: apt-get install chromium)")
QUIET = "disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
FLAGS = [
    "--headless", "--no-sandbox", *(f"--{flag}" for flag in QUIET.split()),
    "--enable-logging=stderr", "--v=0", "--virtual-time-budget=8000",
    "--proxy-server=127.0.0.1:9",  # nobody listens there, so no request can leave
]  # fmt: skip


def visit(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's DOM after its scripts ran, and what its console said."""
    done = subprocess.run(
        [CHROMIUM or "", *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def attribute(dom: str, name: str) -> str | None:
    found = re.search(rf'<html[^>]*\sdata-{name}="([^"]*)"', dom)
    return found.group(1) if found else None


def test_the_report_draws_under_its_policy_without_errors(tmp_path: Path) -> None:
    run = synthetic_run()
    hostile = "</script><img src=x onerror=\"document.documentElement.id='broken'\">"
    page = write_report(
        tmp_path / "report.html", title=hostile, summary_lines=[hostile], heads=run.heads, model=run.model,
        metrics=run.metrics, ablations=run.ablations, config_toml=hostile, provenance={hostile: hostile},
    )  # fmt: skip
    dom, console = visit(page, tmp_path / "profile")
    assert attribute(dom, "errors") == "0", attribute(dom, "last-error")
    assert attribute(dom, "plots") == "3"
    assert console == []
    assert dom.count('class="heatmaplayer') >= 3
    assert not re.search(r"<html[^>]*\sid=", dom)  # the hostile handler would have set it
    assert not re.search(r"<img[^>]*onerror", dom.split("</main>")[0])
    assert "Share chart" not in dom.split("</main>")[0]


def test_the_counter_does_count(tmp_path: Path) -> None:
    """The same page with a broken figure and a forbidden request: both are seen, so silence above means something."""
    run = synthetic_run(count=14)
    page = write_report(tmp_path / "report.html", title="x", summary_lines=[], heads=run.heads, model=run.model,
                        metrics=run.metrics)  # fmt: skip
    html = page.read_text(encoding="utf-8")
    page.write_text(html.replace("<main>", '<main><img src="https://example.invalid/a.png">', 1), encoding="utf-8")
    dom, console = visit(page, tmp_path / "profile")
    assert int(attribute(dom, "errors") or 0) >= 1
    assert "blocked img-src" in (attribute(dom, "last-error") or "")
    assert any("Content Security Policy" in line for line in console)
