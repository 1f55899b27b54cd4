"""A headless Chromium for the tests: pages opened from their files, at a width, in a colour scheme."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

#: The rules of axe-core that stand for a success criterion of WCAG 2, level A or AA.
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, or a skipped test where there is none. Under CI a missing browser is a failure."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        message = "no chromium with chromedriver on this machine: `make browser` installs them on Debian and Ubuntu"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        chrome.set_script_timeout(300)  # a busy machine takes its time
        yield chrome


def emulate(
    browser: Any, width: int = 1280, scheme: str = "light", motion: str = "no-preference", scripts: bool = True
) -> None:
    """How pages are seen from now on."""
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"media": "", "features": [{"name": name, "value": value} for name, value in features.items()]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})


def visit(browser: Any, site: Path, page: str, width: int = 1280, scheme: str = "light", **how: Any) -> None:
    """Open a page from its file, at a width and in a colour scheme, and wait for the maths."""
    emulate(browser, width, scheme, **how)
    browser.get((site / page).as_uri() if ".html" in page else (site / f"{page}.html").as_uri())
    browser.execute_async_script(
        "const done = arguments[0]; (window.MathJax?.startup?.promise ?? Promise.resolve()).then(done)"
    )


def complaints(browser: Any) -> list[str]:
    """What the console has said since the last call, notes aside."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] not in ("INFO", "DEBUG")]


def requests(browser: Any) -> list[str]:
    """Addresses that were asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


#: A page is tens of thousands of elements, most of them of few kinds: strokes of pictures and formulas, and words of code.
#: One word of each kind stays, and of a picture what names it.
PRUNE = """
document.head.append(Object.assign(document.createElement('style'), {textContent: '* { transition: none !important }'}));
document.querySelectorAll('svg[aria-label], mjx-container > svg, math').forEach(e => e.replaceChildren());
const seen = new Set();
document.querySelectorAll('div.highlight pre span[class]').forEach(e => {
  if (seen.has(e.className)) e.replaceWith(...e.childNodes);
  seen.add(e.className);
});
document.querySelectorAll('div.highlight pre').forEach(e => e.normalize());
"""
AXE = """
const [tags, done] = arguments; // preloading would ask for style sheets, which a browser refuses on file://
axe.run(document, {runOnly: {type: 'tag', values: tags}, resultTypes: ['violations'], preload: false}).then(found => done(
  found.violations.flatMap(v => v.nodes.map(n => `${v.id} at ${n.target}: ${n.failureSummary}`))));
"""


def violations(browser: Any) -> list[str]:
    """WCAG 2 A and AA violations on the page that is open, by axe-core: rule, place, reason. Spoils the page."""
    import selenium_axe_python

    browser.execute_script(PRUNE)
    script = Path(selenium_axe_python.__file__).parent / "axe-core" / "axe.min.js"
    if not browser.execute_script("return 'axe' in window"):
        browser.execute_script(script.read_text("utf-8"))
    found: list[str] = browser.execute_async_script(AXE, WCAG)
    return found
