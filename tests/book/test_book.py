"""The book as a reader gets it: built strictly, read from files, without a network, in a real browser."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import provenance
import publish
import pytest
import small_book
from api_modules import chapter, front_door, rooms
from browsing import complaints, requests, visit
from bs4 import BeautifulSoup
from docutils import nodes
from glossary_links import pattern
from inline_svg import joined, strip_prolog
from nbformat.v4 import new_code_cell, new_notebook
from numerals import printed
from offline_site import add_scope, label_cells, mathjax_file, mend_folds, mend_lists, name_asides
from paper_equations import split_tag
from previews import targets
from run_it import head, hurried, links, notebook_of, words
from sharing import description
from site_checks import check_site, invalid

import itlib
from itlib import figures
from itlib.gaussian_mixture import paper_mixture
from itlib.rewards import parse_reward

PAGES = ("book/index", "book/pages/s4_2_results", "book/runs/N020_seed0", "book/notation", "book/reproduce", "book/api")


# The parts


@pytest.mark.parametrize(
    ("tex", "expected"),
    [
        (r"a = b \tag{2.1}", ("a = b", "2.1")),
        (
            r"\begin{aligned}a &= b\\ c &= d\end{aligned} \tag*{A.1}",
            (r"\begin{aligned}a &= b\\ c &= d\end{aligned}", "A.1"),
        ),
        ("a = b", ("a = b", None)),
    ],
)
def test_split_tag(tex: str, expected: tuple[str, str | None]) -> None:
    assert split_tag(tex) == expected


def test_split_tag_refuses_two_numbers() -> None:
    with pytest.raises(ValueError, match="one number"):
        split_tag(r"a \tag{1} b \tag{2}")


def test_add_scope() -> None:
    html = '<thead><tr><th class="head">a</th></tr></thead><tbody><tr><th>b</th><th scope="row">c</th></tr></tbody>'
    expected = html.replace('<th class="head">', '<th scope="col" class="head">').replace("<th>b", '<th scope="row">b')
    assert add_scope(html) == expected
    assert add_scope(expected) == expected


def test_label_cells() -> None:
    html = '<table class="cards table"><tr><th>a</th><th><p>b</p></th></tr><tr><td>1</td><td class="x">2</td></tr></table>'
    labelled = html.replace("<td>1", '<td data-label="a">1').replace("<td class", '<td data-label="b" class')
    plain = html.replace("cards ", "")
    assert label_cells(html + plain + html) == labelled + plain + labelled


def test_mend_lists() -> None:
    signature = "<dl>\n<dd><em>x</em>,</dd>\n<dd>y</dd>\n</dl>"
    assert mend_lists(signature) == '<ul class="sig-parameters">\n<li><em>x</em>,</li>\n<li>y</li>\n</ul>'
    terms = "<dl>\n<dt>a</dt>\n<dd>b</dd>\n</dl>"
    assert mend_lists(terms + signature).startswith(terms)
    assert mend_lists('<div role="doc-biblioentry">') == '<div role="listitem">'


def test_mend_folds() -> None:
    html = '<summary aria-label="Toggle hidden content">\n<p class="a">x</p><pre>y</pre></summary><p>z</p>'
    assert mend_folds(html) == '<summary>\n<span class="a">x</span><pre>y</pre></summary><p>z</p>'


def test_asides_have_names_of_their_own() -> None:
    margin, note = '<aside class="margin sidebar">a</aside>', '<aside class="footnote">b</aside>'
    first, second = (f'<aside aria-label="Aside {k}" class="margin sidebar">a</aside>' for k in (1, 2))
    assert name_asides(margin + note + margin) == first + note + second


def test_invalid_markup_is_found() -> None:
    page = "<summary><p>a</p></summary><h1> </h1><nav></nav><nav></nav><p><span>b</span></p><aside aria-label='c'></aside>"
    assert invalid(BeautifulSoup(page, "html.parser")) == [
        "<p> in <summary>: <p>a</p>", "an empty <h1>", "2 <nav> are called None"
    ]  # fmt: skip


def test_strip_prolog() -> None:
    assert strip_prolog('<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg><g/></svg>\n') == "<svg><g/></svg>"


def test_short_citations_differ() -> None:
    """The text cites by names and year, so a letter in the year (2024a) has to tell apart what would read alike."""
    from pybtex.database import parse_file

    short = []
    for entry in parse_file(str(small_book.ROOT / "book" / "references.bib")).entries.values():
        names = [" ".join(person.last_names) for person in entry.persons["author"]]
        short.append((*names, entry.fields["year"]) if len(names) < 3 else (names[0], "et al.", entry.fields["year"]))
    assert len(set(short)) == len(short) > 20


def test_words_are_counted_without_code_formulas_and_numbers() -> None:
    html = (
        "<p>Two well-known words, isn\u2019t <code>this</code> 3.5 km?</p><pre>not these</pre>"
        '<span class="math">\\(x y\\)</span><svg><text>nor this</text></svg>'
        '<details class="hide"><summary>Show</summary>yes</details>'
    )
    assert words(html) == len(["Two", "well-known", "words", "isn't", "this", "km", "yes"])


@pytest.mark.parametrize(
    ("page", "notebook"),
    [
        ("book/pages/s3_1_tilted_score", "s3_1_tilted_score"),
        ("book/runs/base_seed1", "s2_1_base_model"),
        ("book/runs/N020_seed0", "s4_2_experiment"),
        ("book/notation", None),
        ("genindex", None),
    ],
)
def test_a_computed_page_knows_its_notebook(page: str, notebook: str | None) -> None:
    assert notebook_of(page) == notebook
    assert notebook is None or (small_book.ROOT / "notebooks" / f"{notebook}.ipynb").is_file()


def test_every_chapter_of_the_contents_has_a_notebook_to_open() -> None:
    chapters = re.findall(r"file: book/pages/(\S+)", (small_book.ROOT / "_toc.yml").read_text("utf-8"))
    assert len(chapters) > 15
    assert [c for c in chapters if not (small_book.ROOT / "notebooks" / f"{c}.ipynb").is_file()] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3e-05", "3·10^−5"),
        ("at most 1.0e-02, or 1e+01", "at most 1.0·10^−2, or 10^1"),
        ("1e-3e, v1e-3, 0x1e5 and e-3", "1e-3e, v1e-3, 0x1e5 and e-3"),
        ("Adam, 1e-3", "Adam, 10^−3"),
    ],
)
def test_powers_of_ten_are_printed(text: str, expected: str) -> None:
    pieces = [piece.astext() if isinstance(piece, nodes.Text) else f"^{piece.astext()}" for piece in printed(text)]
    assert "".join(pieces) == expected


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([("parameters", 'profile = "smoke"')], False),  # a default, or a page that talks of it
        ([("injected-parameters", '# Parameters\nprofile = "full"')], False),
        ([("parameters", 'profile = "full"'), ("injected-parameters", '# Parameters\nprofile = "smoke"\nN = 10')], True),
    ],
)
def test_a_page_made_in_a_hurry_says_so(tmp_path: Path, cells: list[tuple[str, str]], expected: bool) -> None:
    made = [new_code_cell(source, metadata={"tags": [tag]}) for tag, source in cells]
    nbformat.write(new_notebook(cells=made), tmp_path / "page.ipynb")
    assert hurried(tmp_path / "page.ipynb") is expected


def test_services_open_the_paired_notebook() -> None:
    assert links("s1", "", "main") == []
    binder, colab = links("s1", "https://github.com/some-one/the.book.git", "dev")
    assert binder[1] == "https://mybinder.org/v2/gh/some-one/the.book/dev?urlpath=lab/tree/notebooks/s1.ipynb"
    assert colab == ("Colab", "https://colab.research.google.com/github/some-one/the.book/blob/dev/notebooks/s1.ipynb")
    ((label, url),) = links("s1", "https://example.org/a/b", "main")  # Colab opens what is on GitHub
    assert (label, url.split("?")[0]) == (
        "JupyterLab on Binder",
        "https://mybinder.org/v2/git/https%3A%2F%2Fexample.org%2Fa%2Fb/main",
    )


def test_colab_is_told_how_to_set_up() -> None:
    assert "git clone" in head("s1", "x.ipynb", 3, "https://github.com/a/b", "main")
    assert "git clone" not in head("s1", "x.ipynb", 3, "https://example.org/a/b", "main")


def test_terms_are_whole_words_and_the_longest_wins() -> None:
    found = [
        m[0]
        for m in pattern(["score", "score matching", "Rao–Blackwell"]).finditer(
            "score-based scores, score matching, Rao–Blackwell"
        )
    ]
    assert found == ["scores", "score matching", "Rao–Blackwell"]


def test_previews_carry_neither_anchors_nor_links() -> None:
    html = (
        '<div class="math" id="equation-a"><span class="eqno">(1)<a class="headerlink" href="#a">#</a></span>\\[x\\]</div>'
        '<dl class="glossary"><dt id="term-b">b</dt><dt id="term-c">c</dt><dd><p>a <a href="d.html">d</a></p></dd></dl>'
        '<div class="citation" id="id1"><span class="label">[1]</span><p>Someone.</p></div>'
    )
    found = dict(targets(html))
    assert list(found) == ["equation-a", "term-b", "term-c", "id1"]
    assert found["equation-a"] == '<div class="math"><span class="eqno">(1)</span>\\[x\\]</div>'
    assert found["term-c"] == "<strong>c</strong><div><p>a d</p></div>"
    assert found["id1"] == "<p>Someone.</p>"


def test_a_page_is_described_by_its_first_sentences() -> None:
    text = nodes.paragraph(
        "", "", nodes.Text("The base "), nodes.math("", "p_0"), nodes.Text("is tilted. " + "More words. " * 40)
    )
    page = nodes.section("", nodes.title("", "Title"), text)
    found = description(nodes.document(None, None, "", page))
    assert found.startswith("The base is tilted. More words.")
    assert len(found) <= 200
    assert found.endswith("…")


def test_an_archive_of_the_same_pages_is_the_same_bytes(tmp_path: Path) -> None:
    site, pdf = tmp_path / "html", tmp_path / "book.pdf"
    (site / "book").mkdir(parents=True)
    pdf.write_bytes(b"%PDF")
    archives = []
    for order in (("index.html", "book/a.html"), ("book/a.html", "index.html")):
        for name in order:
            (site / name).unlink(missing_ok=True)
            (site / name).write_text(name)
            os.utime(site / name, (1e9 + len(archives), 1e9))
        (site / ".buildinfo").write_text(str(order))  # says how it was built, and means nothing to a reader
        publish.pack(site, pdf, tmp_path / "site.zip")
        archives.append((tmp_path / "site.zip").read_bytes())
    assert archives[0] == archives[1]
    with zipfile.ZipFile(tmp_path / "site.zip") as archive:
        names = [f"iterative-tilting/{name}" for name in ("book.pdf", "book/a.html", "index.html")]
        assert archive.namelist() == names
        assert archive.read(names[1]) == b"book/a.html"


def test_mathjax_is_installed() -> None:
    assert mathjax_file().is_file()


def test_api_lists_every_public_module_once_and_after_those_it_imports() -> None:
    package = Path(figures.__file__).parents[1]
    listed = [name for modules in rooms().values() for name in modules]
    files = {".".join(p.relative_to(package.parent).with_suffix("").parts): p for p in package.rglob("[a-z]*.py")}
    assert sorted(listed) == sorted(files)
    for room, modules in rooms().items():
        for later, name in enumerate(modules):
            below = set(re.findall(r"^from ([\w.]+) import", files[name].read_text("utf-8"), re.MULTILINE))
            assert not below & set(modules[later:]), name
            assert room in ("", name.split(".")[1])
            assert f".. automodule:: {name}\n" in chapter(room, modules)


def test_api_begins_with_the_front_door() -> None:
    text = front_door()
    for name in itlib.__all__:
        thing = getattr(itlib, name)
        assert text.count(f"- :py:obj:`{name} <{thing.__module__}.{thing.__qualname__}>`: ") == 1
    assert ".. automodule:: itlib\n" in text


def test_api_finds_a_room_for_newcomers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "__init__",
        "sampling",
        "brand_new",
        "attic/__init__",
        "attic/old",
        "reproduce/__init__",
        "reproduce/batch",
    ):
        (tmp_path / "toy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "toy" / f"{name}.py").write_text("from toy.brand_new import x" if name == "sampling" else "")
    monkeypatch.syspath_prepend(tmp_path)
    assert list(rooms("toy").items()) == [
        ("", ["toy.brand_new", "toy.sampling"]), ("reproduce", ["toy.reproduce.batch"]), ("attic", ["toy.attic.old"])
    ]  # fmt: skip


# Figures


def some_figure() -> Any:
    curves = {n: np.linspace(0.2, 0.9, n) for n in (5, 10)}
    return figures.figure_2(curves, bands={5: (np.arange(1, 6) / 5, np.full(5, 0.1), np.full(5, 1.0))})


#: From linear RGB to what somebody sees who lacks one kind of cone: Machado, Oliveira and Fernandes (2009), severity 1.
SIGHT = {
    "all cones": np.eye(3),
    "no long": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "no medium": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]),
    "no short": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]),
}


def linear_rgb(color: str) -> Any:
    value = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(linear: Any) -> Any:
    """CIE 1976 L*a*b* of a colour in linear RGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ np.clip(linear, 1e-9, 1) / np.array([0.9505, 1, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_stay_apart_for_every_kind_of_sight(sight: str) -> None:
    seen = [lab(SIGHT[sight] @ linear_rgb(color)) for color in figures.SERIES]
    apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(apart) > 15


def test_colours_are_seen_on_white_and_on_black() -> None:
    """3 to 1, which WCAG 1.4.11 asks of graphics, against the page in both modes."""
    css = (small_book.ROOT / "book" / "_static" / "custom.css").read_text("utf-8")
    grounds = re.findall(r"--pst-color-background: (#[0-9a-f]{6})", css)
    assert len(grounds) == 2
    for color, ground in itertools.product(figures.SERIES, grounds):
        low, high = sorted(float(np.dot([0.2126, 0.7152, 0.0722], linear_rgb(c))) for c in (color, ground))
        assert (high + 0.05) / (low + 0.05) > 3, (color, ground)


def test_without_colour_markers_and_lines_tell_curves_apart() -> None:
    assert len(set(figures.MARKERS)) == len(set(figures.LINES)) == len(figures.SERIES)
    figure = figures.figure_2({n: np.linspace(0.1, 1, n) for n in (2, 3, 4, 5)})
    looks = [(line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines]
    assert len({marker for marker, _ in looks}) == len({style for _, style in looks}) == 4
    plt.close(figure)


def test_a_figure_is_the_same_bytes_twice() -> None:
    first, second = (figures.bundle(some_figure(), "error", "rising") for _ in range(2))
    assert first == second


def test_a_figure_takes_the_page_colour_and_says_what_it_shows() -> None:
    source = figures.to_svg(some_figure(), "error", 'rises, "steeply" & fast')
    assert "<style" not in source  # a rule in it would reach every other drawing of the page
    root = ElementTree.fromstring(source)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == 'rises, "steeply" & fast'
    assert "currentColor" in source
    assert figures.INK not in source
    assert "#000000" not in source
    assert "<dc:date>" not in source


def test_figures_on_one_page_share_no_ids() -> None:
    one, two = (figures.to_svg(some_figure(), name, "x") for name in ("one", "two"))
    ids = [set(re.findall(r'\bid="([^"]*)"', source)) for source in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for source, known in zip((one, two), ids, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', source)) <= known


def test_show_displays_what_glue_would_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append((data, options)))
    plt.close("all")
    figures.show(some_figure(), "error", "rising")
    ((data, options),) = shown
    assert set(data) == {"image/svg+xml", "image/png", "text/plain"}
    assert options["raw"]
    assert options["metadata"]["scrapbook"] == {"name": "error", "mime_prefix": ""}
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", ["Score", "a b", "", "1"])
def test_a_figure_needs_a_plain_name(name: str) -> None:
    with pytest.raises(ValueError, match="figure's name"):
        figures.to_svg(some_figure(), name, "x")


def test_scatter_is_an_image_inside_the_svg() -> None:
    cloud = np.random.default_rng(0).standard_normal((5000, 2))
    row = {"N": 5, "half": cloud, "final": cloud, "target": cloud}
    source = figures.to_svg(figures.figure_1([row]), "cloud", "x")
    assert source.count("<image") == 3
    assert len(source) < 200_000


def test_a_lighter_drawing_looks_the_same() -> None:
    t = np.linspace(0, 2 * np.pi, 400)
    curve = np.stack([200 + 90 * np.cos(t), 150 + 60 * np.sin(3 * t)], 1)
    path = "M " + " L ".join(f"{x:.6f} {y:.6f}" for x, y in curve) + " z"
    letter = "M 1.234567 2 Q 3 4 5.678901 6"
    source = f'<svg>\n<path id="used" d="{path}"/>\n<path id="unused" d="{letter}"/>\n<use href="#used"/></svg>'
    light = figures.lighter(source)
    assert len(light) < len(source) / 3
    assert 'id="used"' in light
    assert "unused" not in light
    assert letter in light
    short = np.array(re.findall(r"-?[\d.]+", re.findall(r'd="([^"]*) z"', light)[0]), dtype=float).reshape(-1, 2)
    ends, steps = short[:-1], np.diff(short, axis=0)
    along = ((curve[:, None] - ends) * steps).sum(-1) / (steps**2).sum(-1).clip(1e-9)
    nearest = ends + along.clip(0, 1)[..., None] * steps
    # A tenth of a point for the vertices that went, and half of one for rounding those that stayed.
    assert np.linalg.norm(curve[:, None] - nearest, axis=-1).min(1).max() < 0.1 + 0.05 * 2**0.5


def test_an_explorer_carries_its_model() -> None:
    model = {
        "mixture": figures.as_model(paper_mixture()),
        "reward": figures.as_model(parse_reward("b=1,2 A=3,4;4,5 c=6")),
        "a": "<&'\"",
    }
    html = figures.explorer_html("tilt", model, "still")
    tag = BeautifulSoup(html, "html.parser").div
    assert tag is not None
    assert (tag["data-explorer"], tag["data-figure"]) == ("tilt", "still")
    found = json.loads(str(tag["data-model"]))
    assert found == model
    assert found["reward"] == {"A": [3, 4, 5], "b": [1, 2], "c": 6}
    assert found["mixture"][1] == {"weight": 0.5, "mean": [2, 0], "cov": [0.5, 0, 0.5]}
    with pytest.raises(ValueError, match="JSON"):
        figures.explorer_html("tilt", {"a": float("nan")}, "still")


def test_small_plots_draw_their_data() -> None:
    with figures.house_style():
        figure, (left, right) = plt.subplots(1, 2)
        figures.losses(left, np.array([3.0, 2, 1]), np.array([3.0, 2, 2.5]), best_epoch=1)
        values = np.array([1.0, np.nan])
        figures.against_band(right, ["N = 20", "N = 50"], values, np.zeros(2), np.ones(2), np.full(2, 2.0))
    assert [text.get_text() for text in right.get_yticklabels()] == ["N = 20", "N = 50"]
    assert right.yaxis_inverted()
    assert figures.to_svg(figure, "small", "x")


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = small_book.make(tmp_path_factory.mktemp("book"))
    result = small_book.build(root)
    assert result.returncode == 0, result.stderr[-4000:]
    return root / "_build" / "html"


def test_links_ids_alts_and_requests(site: Path) -> None:
    assert check_site(site) == []


def test_check_site_sees_what_it_should(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text(
        '<body><p id="a"></p><p id="a"></p><img src="x.png"><a href="#b">b</a><a href="no.html">c</a>'
        '<script src="https://example.org/a.js"></script><table><thead><tr><th>h</th></tr></thead></table></body>'
    )
    problems = "\n".join(check_site(tmp_path))
    for expected in (
        "used 2 times",
        "alt text",
        "no #b",
        "nothing at no.html",
        "example.org",
        "without scope",
        "nothing at x.png",
    ):
        assert expected in problems


def test_the_captioned_figure_stays_and_the_plain_copy_goes(site: Path) -> None:
    for page, name in (("pages/s4_2_results", "score-error"), ("runs/N020_seed0", "samples")):
        html = (site / "book" / f"{page}.html").read_text("utf-8")
        assert html.count(f'data-itlib-figure="{name}"') == 1
        assert "<figcaption" in html


def test_a_table_made_by_code_is_numbered_and_referenced(site: Path) -> None:
    html = (site / "book" / "pages" / "s4_2_results.html").read_text("utf-8")
    assert 'id="tab-output"' in html
    assert re.search(r'href="#tab-output"><span class="std std-numref">Table \d+<', html)


def test_the_code_of_a_figure_is_next_to_it(site: Path) -> None:
    html = (site / "book" / "pages" / "s4_2_results.html").read_text("utf-8")  # whose code is in plain sight
    assert 'id="code-of-fig-score-error"' in html
    assert html.count('<a class="reference internal" href="#code-of-fig-score-error">The code of this figure</a>') == 1
    html = (site / "book" / "runs" / "N020_seed0.html").read_text("utf-8")  # whose code asked to be left out
    after = html[html.index("</figure>") :]
    assert "Show the code of this figure" in after
    assert after.index("Show the code of this figure") < after.index('<span class="n">show</span>')


def test_neighbouring_folds_are_one() -> None:
    def cell(source: str, *tags: str, outputs: tuple[Any, ...] = ()) -> dict[str, Any]:
        return {"cell_type": "code", "source": [source], "outputs": [*outputs], "metadata": {"tags": [*tags]}}

    glued, seen = {"data": {"application/papermill.record/text/plain": "1"}}, {"output_type": "stream", "text": "1"}
    prose = {"cell_type": "markdown", "source": ["text"], "metadata": {}}
    cells = [
        cell("a", "hide-input"),
        cell("b", "hide-input", outputs=(glued,)),
        cell("c", "hide-input", outputs=(seen,)),
        cell("d", "hide-input"),
        cell("also shown", "hide-input", outputs=(seen,)),
        prose,
        cell("e", "hide-input"),
        cell("f"),
        cell("g", "hide-cell"),
    ]
    cells[2]["metadata"]["mystnb"] = {"figure": {}}
    found = joined(cells)
    assert ["".join(c["source"]) for c in found] == ["a\n\nb\n\nc\n\nd", "also shown", "text", "e", "f", "g"]
    assert found[0]["outputs"] == [glued, seen]
    assert found[0]["metadata"]["mystnb"] == {"figure": {}}


def test_a_term_is_linked_where_a_page_uses_it_first(site: Path) -> None:
    html = (site / "book" / "runs" / "N020_seed0.html").read_text("utf-8")
    assert len(re.findall(r'<a class="term[^"]*" href="\.\./glossary.html#term-denoiser">denoisers</a>', html)) == 1
    assert html.count("denoiser") > 2  # the heading and the later use stay as they are
    assert 'class="term' not in (site / "book" / "glossary.html").read_text("utf-8")


def test_what_needs_an_address_is_absent_without_one(site: Path) -> None:
    html = (site / "book" / "pages" / "s4_2_results.html").read_text("utf-8")
    assert "make lab CHAPTER=s4_2_results" in html
    for absent in ("mybinder", "colab", "og:", 'rel="canonical"', "source-repository-button", "source-issues-button"):
        assert absent not in html
    assert '<meta name="description"' in html
    assert '<p class="you-will-see"><strong>You will see</strong>' in html
    assert not (site / "sitemap.xml").exists()


def test_one_setting_each_brings_buttons_and_tags(tmp_path: Path) -> None:
    config = (small_book.ROOT / "_config.yml").read_text("utf-8")
    config = config.replace('baseurl: ""', 'baseurl: "https://example.org/book"')
    config = config.replace('  url: ""', '  url: "https://github.com/a/b"')
    shutil.copytree(small_book.ROOT / "book" / "_ext", tmp_path / "book" / "_ext")
    shutil.copytree(small_book.ROOT / "book" / "_static", tmp_path / "book" / "_static")
    shutil.copy(small_book.ROOT / "book" / "references.bib", tmp_path / "book")
    (tmp_path / "_config.yml").write_text(config)
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nchapters:\n  - file: book/pages/s1_introduction\n"
    )
    (tmp_path / "book" / "index.md").write_text("# A book\n\nAbout tilts.\n")
    (tmp_path / "book" / "pages").mkdir()
    nbformat.write(small_book.notebook("# A chapter\n\nText."), tmp_path / "book" / "pages" / "s1_introduction.ipynb")
    result = small_book.build(tmp_path)
    assert result.returncode == 0, result.stderr[-4000:]
    site = tmp_path / "_build" / "html"
    assert check_site(site) == []  # an address in a tag is not a request
    html = (site / "book" / "pages" / "s1_introduction.html").read_text("utf-8")
    url = "https://example.org/book/book/pages/s1_introduction.html"
    for present in (
        "mybinder.org/v2/gh/a/b/main?urlpath=lab/tree/notebooks/s1_introduction.ipynb",
        "colab.research.google.com/github/a/b/blob/main/notebooks/s1_introduction.ipynb",
        f'<meta property="og:url" content="{url}">',
        '<meta property="og:image" content="https://example.org/book/_static/preview.png">',
        f'<link rel="canonical" href="{url}"',
        "source-repository-button",
        "source-issues-button",
        "github.com/a/b/issues/new",
    ):
        assert present in html
    assert f"<loc>{url}</loc>" in (site / "sitemap.xml").read_text("utf-8")


def test_only_the_contents_are_pages(site: Path) -> None:
    pages = {p.relative_to(site).with_suffix("").as_posix() for p in site.rglob("*.html") if "_static" not in p.parts}
    listed = set(re.findall(r"(?:root|file): (book/\S+)", (small_book.ROOT / "_toc.yml").read_text("utf-8")))
    runs = {"book/runs/base_seed0", "book/runs/N020_seed0"}
    assert pages - {"genindex", "py-modindex", "search", "index"} == listed | runs


def test_custom_style_is_loaded_once(site: Path) -> None:
    html = (site / "book" / "index.html").read_text("utf-8")
    assert html.count("custom.css") == 1
    assert "thebe" not in html


@pytest.mark.parametrize("page", PAGES)
def test_a_page_reads_well(browser: Any, site: Path, page: str) -> None:
    visit(browser, site, page, width=390)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert browser.execute_script("return document.querySelectorAll('mjx-merror, [data-mjx-error]').length") == 0
    if page != "book/reproduce":
        assert browser.execute_script("return document.querySelectorAll('mjx-container svg').length") > 0
    assert complaints(browser) == []
    urls = requests(browser)
    assert urls
    assert [url for url in urls if not url.startswith(("file:", "data:", "blob:"))] == []


def shown_numbers(browser: Any) -> dict[str, str]:
    """Displayed number of every labelled equation, by label."""
    pairs = browser.execute_script(
        "return [...document.querySelectorAll('div.math[id^=equation-]')]"
        ".map(e => [e.id, e.querySelector('.eqno').firstChild.textContent])"
    )
    return {identifier.removeprefix("equation-"): number for identifier, number in pairs}


def test_equations_carry_the_papers_numbers(browser: Any, site: Path) -> None:
    for page in ("book/pages/s2_1_1_forward", "book/pages/s3_1_tilted_score"):
        visit(browser, site, page)
        numbers = shown_numbers(browser)
        assert numbers
        assert numbers == {label: f"({label.removeprefix('eq-').replace('-', '.')})" for label in numbers}
    visit(browser, site, "book/pages/s4_2_results")
    assert shown_numbers(browser) == {"eq-own": "(1)", "eq-4-13": "(4.13)"}
    links = browser.execute_script(
        "return [...document.querySelectorAll('article a[href*=equation-]')].map(a => [a.hash, a.text])"
    )
    shown = {hash_: text for hash_, text in links if text.startswith("(")}
    assert shown == {
        "#equation-eq-2-1": "(2.1)",
        "#equation-eq-3-10": "(3.10)",
        "#equation-eq-4-13": "(4.13)",
        "#equation-eq-own": "(1)",
    }
    every = browser.execute_script("return [...document.querySelectorAll('.eqno')].map(e => e.firstChild.textContent)")
    assert "(9.9)" in every


def test_an_equation_can_be_looked_at_without_leaving_the_page(browser: Any, site: Path) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    visit(browser, site, "book/pages/s4_2_results")
    link = "article a[href$='#equation-eq-3-10']"  # which is on another page
    shown = (
        "const card = document.getElementById('link-preview'); return card && !card.hidden && card.style.visibility === ''"
    )
    assert not browser.execute_script(shown)
    browser.find_element("css selector", "body").send_keys(Keys.TAB)  # the keyboard is in use
    browser.execute_script("document.querySelector(arguments[0]).focus()", link)
    WebDriverWait(browser, 10).until(lambda b: b.execute_script(shown))
    card = browser.find_element("id", "link-preview")
    assert "(3.10)" in card.text
    assert card.find_elements("css selector", "mjx-container svg")
    assert browser.find_element("css selector", link).get_attribute("aria-describedby") == "link-preview"
    browser.find_element("css selector", "body").send_keys(Keys.ESCAPE)
    assert not browser.execute_script(shown)
    assert [m["message"] for m in browser.get_log("browser") if m["level"] == "SEVERE"] == []


CONTRAST = """
const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const parts = text => text.match(/[\\d.]+/g).map(Number);
const ground = element => {
  for (let e = element; e; e = e.parentElement) {
    const c = parts(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] === 1) return c.slice(0, 3);
  }
  return [255, 255, 255];
};
return arguments[0].map(selector => {
  const element = document.querySelector(selector);
  if (!element) return [selector, null];
  const [a, b] = [parts(getComputedStyle(element).color).slice(0, 3), ground(element)].map(luminance);
  return [selector, (Math.max(a, b) + .05) / (Math.min(a, b) + .05)];
});
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Any, site: Path, scheme: str) -> None:
    visit(browser, site, "book/pages/s4_2_results", scheme=scheme)
    assert browser.execute_script("return document.documentElement.dataset.theme") == scheme
    selectors = [
        "article p", "article p a", "article h1", "article th", "article td", "figcaption .caption-text", ".eqno",
        ".figure-svg > svg", "nav.bd-links p.caption", "nav.bd-links li > a", ".bd-footer-content p", "div.cell_input pre",
    ]  # fmt: skip
    ratios = dict(browser.execute_script(CONTRAST, selectors))
    assert {s: r for s, r in ratios.items() if r is None or r < 4.5} == {}
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    rgb = [int(v) for v in re.findall(r"\d+", ground)[:3]]
    assert (sum(rgb) < 150) == (scheme == "dark")


def test_a_dark_page_prints_dark_on_white(browser: Any, site: Path) -> None:
    visit(browser, site, "book/pages/s4_2_results", scheme="dark")
    media = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    selectors = ["article p", "article td", "figcaption .caption-text", "div.cell_input pre", ".figure-svg > svg"]
    ratios = dict(browser.execute_script(CONTRAST, selectors))
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(255, 255, 255)"
    assert {s: r for s, r in ratios.items() if r is None or r < 7} == {}


def test_the_reader_can_switch_modes(browser: Any, site: Path) -> None:
    visit(browser, site, "book/index", scheme="light")
    seen = set()
    for _ in range(3):
        browser.execute_script("document.querySelector('.theme-switch-button').click()")
        seen.add(browser.execute_script("return document.documentElement.dataset.theme"))
    browser.execute_script("localStorage.clear()")
    assert seen == {"light", "dark"}


def test_search_works_without_a_server(browser: Any, site: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get((site / "search.html").as_uri() + "?q=notation")
    found = WebDriverWait(browser, 10).until(
        lambda b: [a.get_attribute("href") for a in b.find_elements("css selector", "#search-results li a")]
    )
    assert any("book/notation.html" in url for url in found)
    browser.get((site / "search.html").as_uri() + "?q=tilt")
    said = r"found (\d+) page"
    found = WebDriverWait(browser, 60).until(lambda b: re.search(said, b.find_element("id", "search-results").text))
    links = browser.find_elements("css selector", "#search-results li a")
    documents = ["book/api" in link.get_attribute("href") for link in links]
    assert len(links) == int(found[1])
    assert documents == sorted(documents), "chapters come before what documents the library"
    assert 0 < sum(documents) < len(documents)
    assert [m["message"] for m in browser.get_log("browser") if m["level"] == "SEVERE"] == []


def test_a_page_says_where_its_numbers_come_from(site: Path, tmp_path: Path) -> None:
    """Read off the records themselves; and each figure's and table's caption leads there."""
    html = (site / "book" / "pages" / "s4_2_results.html").read_text("utf-8")
    captions = html.count("<figcaption>") + html.count("<caption>")
    assert captions >= 2
    assert html.count('href="#where-it-comes-from">source</a>') == captions
    note = BeautifulSoup(html, "html.parser").select_one("#where-it-comes-from")
    assert note is not None
    assert "notebooks/s4_2_results.py" in note.get_text()
    for seed in (0, 1, 2, 5):
        made = {"parameters": {"seed": seed}, "provenance": {"commit": "0123456789", "processor": "Some Chip (AVX)"}}
        (tmp_path / f"run{seed}.json").write_text(json.dumps(made))
    found = provenance.records(tmp_path.parent, tmp_path.name)
    assert found is not None
    assert (found.count, provenance.ranges(found.seeds)) == (4, "0 to 2, 5")
    assert (found.commits, found.processors) == (("0123456",), ("Some Chip",))
    assert provenance.records(tmp_path, "nothing") is None
