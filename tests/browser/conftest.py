"""One headless Chromium for all browser tests, cut off from the network; skipped where there is none."""

import os
import shutil
from collections.abc import Callable, Iterator

import pytest
from browser_tab import Tab
from made_payload import Made, made

from copyscope.analyses.page.build import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]


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
    """A tab of the shared browser at 1280 px in a light theme.

    It has a history of its own: a browser keeps 50 entries, and then drops those that no click made, our page's own.
    """
    old = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    new = browser.driver.current_window_handle
    browser.driver.switch_to.window(old)
    browser.driver.close()
    browser.driver.switch_to.window(new)
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
