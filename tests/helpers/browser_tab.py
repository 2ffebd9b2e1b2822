"""A browser tab with a page in it: what a reader does, and what the page says it shows."""

import base64
import json
from pathlib import Path
from typing import Any

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
