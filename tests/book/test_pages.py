"""The real book, from a small batch, in a real browser: every page, and every picture that a reader can move."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import small_batch
from browsing import complaints, emulate, requests, violations, visit
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

EXPLORERS = {
    "tilts": "book/pages/s1_introduction",
    "noise": "book/pages/s2_1_1_forward",
    "ddim": "book/pages/s2_1_2_reverse",
    "covariance": "book/pages/s3_1_tilted_score",
    "tilt": "book/pages/s4_1_gaussian_tilts",
    "estimators": "book/pages/b_estimators",
    "budget": "book/pages/b_error_budget",
    "slides": "book/pages/d_digits",
}
#: Of what a page loads beyond the files that all pages share.
LIMIT = 1_000_000


@pytest.fixture(scope="module")
def site() -> Path:
    return small_batch.site()


def pages(site: Path) -> list[str]:
    """All pages but the redirection at the top."""
    every = sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)
    return [path.relative_to(site).with_suffix("").as_posix() for path in every if path != site / "index.html"]


def test_every_page(browser: Any, site: Path) -> None:
    """On a small phone: no complaint of the console, no request to anywhere, no formula that failed, nothing at the side.

    On a desktop: no violation of WCAG 2 A or AA that axe-core finds, in one of the colour schemes in turn, or in both.
    """
    problems = []
    both = {"book/index", EXPLORERS["tilt"]}
    for number, page in enumerate(pages(site)):
        visit(browser, site, page, width=360)
        width, failed = browser.execute_script(
            "return [document.documentElement.scrollWidth, document.querySelectorAll('mjx-merror, [data-mjx-error]').length]"
        )
        if width > 360:
            problems.append(f"{page} is {width} pixels wide")
        if failed:
            problems.append(f"{page}: {failed} formulas failed")
        problems += [f"{page}: {message}" for message in complaints(browser)]
        away = [url for url in requests(browser) if not url.startswith(("file:", "data:", "blob:"))]
        problems += [f"{page} asks for {url}" for url in away]
        for scheme in ("light", "dark"):
            if page in both or scheme == ("light", "dark")[number % 2]:
                emulate(browser, scheme=scheme)
                problems += [f"{page}, {scheme}: {problem}" for problem in violations(browser)]
    assert problems == []


def test_axe_sees_what_it_should(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        "<html><body><img src='data:,'><input><p style='color: #aaa; background: #fff'>pale</p></body></html>"
    )
    visit(browser, tmp_path, "page")
    found = {problem.split(" at ")[0] for problem in violations(browser)}
    assert {"image-alt", "label", "color-contrast", "html-has-lang"} <= found


def test_weight(site: Path) -> None:
    """A page and the files that it does not share with most others."""
    asked: dict[Path, set[Path]] = {}
    for page in pages(site):
        path = site / f"{page}.html"
        loaded = re.findall(r'<(?:img|script|link)\b[^>]*?\b(?:src|href)="([^"#:]+)"', path.read_text("utf-8"))
        files = {(path.parent / unquote(urlsplit(address).path)).resolve() for address in loaded if ".html" not in address}
        asked[path] = {file for file in files if file.is_file()}
    assert len(asked) > 25
    times = Counter(file for files in asked.values() for file in files)
    shared = {file for file, count in times.items() if count > len(asked) / 2}
    weights = {path: sum(file.stat().st_size for file in {path, *files} - shared) for path, files in asked.items()}
    assert {path.name: weight for path, weight in weights.items() if weight > LIMIT} == {}
    assert max(weights.values()) > 300_000  # figures do count


def test_scripts_are_only_where_they_are_needed(site: Path) -> None:
    wanted = {page: [name] for name, page in EXPLORERS.items()} | {"book/index": ["tilts"], "book/live": ["live"]}
    for page in pages(site):
        html = (site / f"{page}.html").read_text("utf-8")
        assert re.findall(r'data-explorer="(\w+)" ', html) == wanted.get(page, []), page
        assert ("explorers.css" in html) == (page in wanted), page


# Pictures that a reader can move


def said(browser: Any) -> str:
    """What an explorer says at the moment."""
    text: str = browser.execute_script("return document.querySelector('.explorer .says').textContent")
    return text


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@pytest.fixture(scope="module", params=EXPLORERS)
def opened(browser: Any, site: Path, request: pytest.FixtureRequest) -> str:
    """The name of an explorer whose page is open, for the tests of it in turn."""
    visit(browser, site, EXPLORERS[request.param])
    return str(request.param)


def test_an_explorer_is_driven_by_keys_and_by_mouse(browser: Any, opened: str) -> None:
    """Each input, reached with the tab key, changes what is said or drawn; what is said is announced."""
    inputs = browser.find_elements(By.CSS_SELECTOR, ".explorer input, .explorer button, .explorer [role=slider]")
    picture = "return [...document.querySelectorAll('.explorer svg path')].map(e => e.getAttribute('d')).join('|')"
    labels = browser.execute_script(
        "return [...document.querySelectorAll('.explorer input')].map(e => e.labels[0]?.textContent ?? '')"
    )
    assert all(labels)
    browser.execute_script("arguments[0].focus({preventScroll: false})", inputs[0])
    reached, moved = set(), 0
    for _ in range(3 * len(inputs)):
        focused = browser.switch_to.active_element
        if focused not in inputs:
            break
        reached.add(focused)
        before = said(browser) + browser.execute_script(picture)
        kind = focused.get_attribute("type") or "range"
        focused.send_keys({"range": Keys.ARROW_LEFT, "radio": Keys.ARROW_RIGHT}.get(kind, Keys.SPACE))
        changed = said(browser) + browser.execute_script(picture) != before
        moved += changed or kind == "button"  # a button may play, or choose what is chosen
        assert changed or kind == "button", f"{opened}: a key on {kind} {focused.get_attribute('id')} changes nothing"
        if opened in {"tilts", "slides"} and kind == "button":
            focused.send_keys(Keys.SPACE)  # stop
        focused.send_keys(Keys.TAB)
    radios = {e.get_attribute("name") for e in inputs if e.get_attribute("type") == "radio"}  # one stop for each group
    assert len(reached) >= len([e for e in inputs if e.get_attribute("type") != "radio"]) + len(radios)
    slider = next((e for e in inputs if e.get_attribute("type") == "range"), None) or inputs[-1]
    before = said(browser) + browser.execute_script(picture)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)
    if slider.get_attribute("type") == "range":
        wide = slider.size["width"]
        ActionChains(browser).move_to_element(slider).click_and_hold().move_by_offset(
            -int(0.4 * wide), 0
        ).release().perform()
    else:
        slider.click()
    assert said(browser) + browser.execute_script(picture) != before
    spoken = "return document.querySelector('.explorer [role=status]').textContent"
    wait_for(lambda: browser.execute_script(spoken) == said(browser), "what is said is announced")
    assert complaints(browser) == []


def test_an_explorer_stands_for_a_captioned_figure(browser: Any, site: Path, opened: str) -> None:
    """With scripts it takes the figure's place, without them and on paper the figure stays."""
    shown = """
      const box = document.querySelector('.explorer');
      const still = document.querySelector(`figure [data-itlib-figure="${box.dataset.figure}"]`);
      const seen = e => e.getBoundingClientRect().height > 40;
      return [seen(box), seen(still), box.closest('figure')?.querySelector('figcaption')?.textContent ?? ''];
    """
    explorer, still, caption = browser.execute_script(shown)
    assert (explorer, still) == (True, False)
    assert re.match(r"\s*Figure \d+ ", caption)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script(shown)[:2] == [False, True]
    emulate(browser, scripts=False)
    browser.get((site / f"{EXPLORERS[opened]}.html").as_uri())
    assert browser.execute_script(shown)[:2] == [False, True]
    emulate(browser)


def test_the_landing_picture_plays_and_respects_reduced_motion(browser: Any, site: Path) -> None:
    visit(browser, site, "book/index")
    assert said(browser).startswith("After tilt 20 of 20")
    button = browser.find_element(By.CSS_SELECTOR, ".explorer button")
    assert button.text == "Play"
    button.click()
    wait_for(lambda: re.match(r"After tilt 1?\d of 20", said(browser)), "it plays from the start")
    stop = "if (arguments[0].textContent === 'Pause') arguments[0].click(); return arguments[0].textContent"
    assert browser.execute_script(stop, button) == "Play"
    visit(browser, site, "book/index", motion="reduce")
    button = browser.find_element(By.CSS_SELECTOR, ".explorer button")
    assert button.text == "Next"
    button.click()
    assert said(browser).startswith("Before the first tilt")
    button.click()
    assert said(browser).startswith("After tilt 1 of 20")
    browser.find_element(By.CSS_SELECTOR, ".explorer input[value='5']").click()
    browser.find_element(By.CSS_SELECTOR, ".explorer button").click()
    assert said(browser).startswith("After tilt 1 of 5")


def test_the_landing_page_is_whole_without_scripts(browser: Any, site: Path) -> None:
    emulate(browser, 360, scripts=False)
    browser.get((site / "book" / "index.html").as_uri())
    height = browser.execute_script("return document.querySelector('figure.landing svg').getBoundingClientRect().height")
    width = browser.execute_script("return document.documentElement.scrollWidth")
    emulate(browser)
    assert height > 100
    assert width <= 360


def test_a_tilt_that_does_not_exist_is_said_to(browser: Any, site: Path) -> None:
    visit(browser, site, EXPLORERS["tilt"])
    browser.find_element(By.XPATH, "//button[text()='quadratic']").click()
    assert "must stay below 2.000" in said(browser)
    browser.find_element(By.CSS_SELECTOR, ".explorer input[type=range]").send_keys(Keys.END)
    assert said(browser).startswith("This tilt cannot be normalised")
    assert browser.execute_script("return document.querySelector('.explorer svg .none').textContent") == "no tilted density"


def test_adding_a_constant_hurts_the_single_sample_alone(browser: Any, site: Path) -> None:
    visit(browser, site, EXPLORERS["estimators"])

    def figures() -> list[float]:
        return [
            float(v.replace(",", ""))
            for v in re.findall(r"(?:sample|centred|baseline|Blackwell) ([\d.,]*\d)", said(browser))
        ]

    before = figures()
    slider = browser.find_elements(By.CSS_SELECTOR, ".explorer input[type=range]")[1]
    slider.send_keys(Keys.END)
    after = figures()
    assert len(before) == len(after) == 4
    assert after[0] > 3 * before[0]
    assert after[1:] == before[1:]
