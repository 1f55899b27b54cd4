"""Copies of the book for readers who build nothing: one PDF, and one archive with the site and the PDF in it.

    python book/publish.py pdf    _build/iterative-tilting.pdf, printed by Chromium from a build of all pages in one
    python book/publish.py zip    _build/site.zip, the same bytes for the same pages

Run by `make pdf` and `make site.zip`, which build the pages first.
"""

import base64
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "_build"
PDF = BUILD / "iterative-tilting.pdf"
ARCHIVE = BUILD / "site.zip"
#: A4 in inches, with room for the page number.
PAPER = {
    "paperWidth": 8.27,
    "paperHeight": 11.69,
    "marginTop": 0.75,
    "marginBottom": 0.85,
    "marginLeft": 0.85,
    "marginRight": 0.85,
}
FOOTER = '<div style="width: 100%; text-align: center; font: 9px serif"><span class="pageNumber"></span></div>'
#: Answers are printed, the code behind them and behind figures is not; then wait for formulas and fonts.
READY = """
const done = arguments[0];
document.documentElement.classList.add("whole-book");
for (const fold of document.querySelectorAll("details.hide")) fold.open = fold.textContent.includes("Show the answer");
MathJax.startup.promise.then(() => document.fonts.ready).then(() => done());
"""


def one_page() -> Path:
    """Build all pages in one; it is beside the site, not in it."""
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", ".", "--builder", "singlehtml", "--all", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    page = BUILD / "singlehtml" / "book" / "index.html"
    if done.returncode or not page.is_file():
        sys.exit(f"the pages could not be put into one:\n{done.stdout}{done.stderr}")
    # Its links to styles and scripts are written for a page at the root.
    return Path(shutil.copy(page, BUILD / "singlehtml" / "all.html"))


def print_pdf(page: Path, pdf: Path) -> None:
    """Print a page when its formulas are set, with an outline and tags for screen readers."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        sys.exit("printing needs Chromium and chromedriver; on Debian: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
    ):
        options.add_argument(argument)
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        chrome.set_page_load_timeout(600)
        chrome.set_script_timeout(600)
        chrome.command_executor.client_config.timeout = 900
        chrome.get(page.as_uri())
        chrome.execute_async_script(READY)
        settings = PAPER | {
            "printBackground": True,
            "displayHeaderFooter": True,
            "headerTemplate": "<span></span>",
            "footerTemplate": FOOTER,
            "generateTaggedPDF": True,
            "generateDocumentOutline": True,
        }
        printed = base64.b64decode(chrome.execute_cdp_cmd("Page.printToPDF", settings)["data"])
    pdf.write_bytes(re.sub(rb"/(CreationDate|ModDate) \(D:\d{14}", rb"/\1 (D:20000101000000", printed))


def pack(site: Path, pdf: Path, archive: Path) -> None:
    """Put the site and the PDF into an archive, in a fixed order and without dates."""
    files = {f"iterative-tilting/{path.relative_to(site).as_posix()}": path for path in site.rglob("*") if path.is_file()}
    files[f"iterative-tilting/{pdf.name}"] = pdf
    part = archive.with_suffix(".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        for name in sorted(files):
            if not name.endswith("/.buildinfo"):
                out.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), files[name].read_bytes(), zipfile.ZIP_DEFLATED)
    os.replace(part, archive)


def main() -> None:
    """Make what is asked for and say where it is."""
    what = sys.argv[1:]
    if what == ["pdf"]:
        print_pdf(one_page(), PDF)
        print(f"The book in one file: {PDF}")
    elif what == ["zip"]:
        pack(BUILD / "html", PDF, ARCHIVE)
        print(f"The site and the PDF: {ARCHIVE}")
    else:
        sys.exit("say what to make: python book/publish.py pdf, or python book/publish.py zip")


if __name__ == "__main__":
    main()
