"""One headless Chromium for all browser tests, cut off from the network; skipped where there is none."""

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_payload import Made, made

from analyses.page.build import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]  # fmt: skip
READY = """
const done = arguments[arguments.length - 1];
(async () => {
  while (!window.copyscope || !window.copyscope.ready) await new Promise((r) => setTimeout(r, 10));
  await copyscope.ready;
  await copyscope.idle();
  done(document.documentElement.dataset.lastError || "");
})();
"""
GO = """
const [patch, done] = [arguments[0], arguments[arguments.length - 1]];
copyscope.go(patch);
copyscope.idle().then(() => done(copyscope.numbers()));
"""


class Tab:
    """The browser with a page in it: what a reader does, and what the page says it shows."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        self.driver.get("about:blank")  # so that a new hash on the same file is a new visit
        self.logs()
        self.driver.get(address)
        self.wait()

    def wait(self) -> None:
        self.driver.execute_async_script(READY)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def go(self, **patch: Any) -> dict[str, Any]:
        return self.driver.execute_async_script(GO, patch)

    def numbers(self) -> dict[str, Any]:
        self.wait()
        return self.run("return copyscope.numbers()")

    def press(self, *keys: str, on: str = "body") -> dict[str, Any]:
        """Real key presses, on the element of a CSS selector."""
        if on != "body":
            self.run("document.querySelector(arguments[0]).focus()", on)
        else:
            self.run("document.activeElement.blur()")
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()
            self.wait()
        return self.numbers()

    def mouse(self, selector: str, x: float, y: float, *kinds: str) -> None:
        """Real mouse events at (x, y) from an element's top left corner: move, press, release."""
        self.run("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
        self.wait()
        find = "const b = document.querySelector(arguments[0]).getBoundingClientRect(); return [b.x, b.y]"
        box = self.run(find, selector)
        names = {"move": "mouseMoved", "press": "mousePressed", "release": "mouseReleased"}
        for kind in kinds:
            what = {"type": names[kind], "x": box[0] + x, "y": box[1] + y}
            if kind != "move":
                what |= {"button": "left", "clickCount": 1}
            elif "press" in kinds and kinds.index("press") < kinds.index("move"):
                what |= {"button": "left", "buttons": 1}
            self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", what)
        self.wait()

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def table(self, selector: str) -> list[list[str]]:
        """Rows of the first table under `selector`, its head first."""
        return self.run(
            "return [...document.querySelector(arguments[0]).querySelectorAll('tr')]"
            ".map((row) => [...row.children].map((cell) => cell.textContent))",
            selector,
        )

    def console(self) -> list[str]:
        """Warnings and errors of the console since the last look."""
        return [e["message"] for e in self.driver.get_log("browser") if e["level"] in ("WARNING", "SEVERE")]

    def requests(self) -> list[str]:
        """Addresses asked for since the last look, data: and blob: aside."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return [url for url in found if not url.startswith(("data:", "blob:", "about:"))]

    def logs(self) -> None:
        self.console()
        self.requests()

    def errors(self) -> int:
        return int(self.run("return document.documentElement.dataset.errors"))

    def size(self, width: int, height: int = 900, dark: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def picture(self, path: Path) -> None:
        """A PNG of the whole page, for looking at by hand."""
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(shot["data"]))


@pytest.fixture(scope="session")
def browser() -> Iterator[Tab]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (copyscope[dev])")
    if CHROMIUM is None or CHROMEDRIVER is None:
        pytest.skip("no chromium and chromedriver on PATH (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    os.environ.setdefault("SE_OFFLINE", "true")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    driver.set_script_timeout(60)
    try:
        yield Tab(driver)
    finally:
        driver.quit()


@pytest.fixture
def tab(browser: Tab) -> Tab:
    """The shared browser at 1280 px in a light theme."""
    browser.driver.switch_to.default_content()
    browser.size(1280)
    return browser


@pytest.fixture(scope="session")
def small() -> Made:
    return made()


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Made], str]:
    """Writes a made page once and returns its file address."""
    known: dict[int, tuple[Made, str]] = {}

    def write(payload: Made) -> str:
        if id(payload) not in known:
            path = tmp_path_factory.mktemp("page") / "page.html"
            path.write_text(page(payload.index, payload.blocks), encoding="utf-8")
            known[id(payload)] = (payload, path.as_uri())
        return known[id(payload)][1]

    return write


@pytest.fixture(scope="session")
def address(small: Made, written: Callable[[Made], str]) -> str:
    """The small made page's address."""
    return written(small)
