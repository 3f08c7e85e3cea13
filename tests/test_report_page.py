"""The page on a model in a real browser: it sorts, fits a phone, has a dark side, asks for nothing, and complains of nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from _browser import CHROMIUM, Browser
from _inspected import X, float32_graph, fp8_graph

from fp8np.data import load_batches
from fp8np.inspection.facts import inspect_model
from fp8np.inspection.page import as_html
from fp8np.model import Model

pytestmark = pytest.mark.skipif(CHROMIUM is None or sys.platform == "win32", reason="no chromium on this machine")

LIGHT, DARK = "rgb(255, 255, 255)", "rgb(20, 24, 28)"
DESK, PHONE = 1300, 360
SHOWN = (
    """Array.from(document.querySelector("#layers").tBodies[0].rows).filter(r => r.dataset.name && !r.hidden).map(r => r.dataset.name)"""
)
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
# What reaches beyond the right edge, apart from what scrolls by itself.
TOO_WIDE = """Array.from(document.querySelectorAll("body *")).filter(e => e.getBoundingClientRect().right > innerWidth + 1
  && !e.closest(".scroll, thead")).map(e => e.outerHTML.slice(0, 200))"""
# Clicks each head twice: what the address, the head and the cells say then.
SORTED = """Array.from(document.querySelector("#layers").tHead.rows[0].cells).map((head, column) => [head.dataset.key, [0, 1].map(() => {
  head.querySelector("button").click();
  const rows = Array.from(document.querySelector("#layers").tBodies[0].rows).filter(row => row.dataset.name);
  const value = cell => cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
  return [location.hash, head.getAttribute("aria-sort"), rows.map(row => value(row.cells[column]))];
})])"""


def typed(selector: str, value: str, event: str) -> str:
    return f"const e = document.querySelector('{selector}'); e.value = '{value}'; e.dispatchEvent(new Event('{event}'));"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    model = Model(fp8_graph())
    facts = inspect_model(model, Model(float32_graph()), load_batches(X, inputs=model.inputs))
    file: Path = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(as_html(facts, "a model with a name that is long" * 3), encoding="utf-8")
    return file.as_uri()


def test_an_address_holds_the_order_and_an_open_layer(browser: Browser, page: str) -> None:
    browser.open(f"{page}#sort=-layer&open=first", width=DESK, height=900, dark=False)
    assert browser.evaluate(SHOWN) == ["second", "first"]
    assert browser.evaluate("Array.from(document.querySelectorAll('[aria-sort]'), e => e.dataset.key + e.ariaSort)") == ["layerdescending"]
    # The layer's two histograms, which stay with it.
    assert browser.evaluate("document.querySelector('[data-name=first]').nextElementSibling.querySelectorAll('figure svg').length") == 2
    assert browser.evaluate("document.querySelectorAll('.detail .bar').length") > 4
    browser.evaluate("location.hash = 'sort=layer'; new Promise(done => setTimeout(done, 50))")
    assert browser.evaluate(SHOWN) == ["first", "second"]
    assert browser.evaluate("document.querySelector('[data-name=first]').nextElementSibling.className") == "detail"


def test_every_column_sorts_both_ways_with_what_is_missing_at_the_end(browser: Browser, page: str) -> None:
    browser.open(page, width=DESK, height=900, dark=False)
    browser.evaluate(typed("#show", "all", "change"))
    columns = browser.evaluate(SORTED)
    assert len(columns) >= 14
    for key, clicks in columns:
        assert [said for _, said, _ in clicks] == ["ascending", "descending"]
        for address, said, values in clicks:
            up = said == "ascending"
            assert address == f"#sort={'' if up else '-'}{key}"
            assert len(values) == 3
            known = values if key in ("op", "weights", "activations") else [v for v in values if v != ""]
            assert values[: len(known)] == sorted(known, reverse=not up), key


def test_nodes_can_be_chosen_and_searched(browser: Browser, page: str) -> None:
    browser.open(page, width=DESK, height=900, dark=False)
    assert browser.evaluate(SHOWN) == ["first", "second"]
    browser.evaluate(f"{{ {typed('#show', 'all', 'change')} }}")
    assert browser.evaluate(SHOWN) == ["first", "middle", "second"]
    browser.evaluate(f"{{ {typed('#search', 'relu', 'input')} }}")
    assert browser.evaluate(SHOWN) == ["middle"]
    # A dot of the picture, and a name in the advice, open a layer, whatever was searched for.
    browser.evaluate("document.querySelector('[data-show=first]').click()")
    assert browser.evaluate("document.querySelectorAll('.detail').length") == 1
    browser.evaluate("document.querySelector('#depth circle').dispatchEvent(new Event('click'))")
    assert "output" in browser.evaluate("document.querySelector('#told').textContent")


@pytest.mark.parametrize(("width", "height", "dark"), [(DESK, 900, False), (DESK, 900, True), (PHONE, 740, False), (PHONE, 740, True)])
def test_it_fits_has_its_colours_asks_for_nothing_and_complains_of_nothing(
    browser: Browser, page: str, width: int, height: int, dark: bool
) -> None:
    address = f"{page}#open=first"
    browser.open(address, width=width, height=height, dark=dark)
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert browser.evaluate(TOO_WIDE) == []
    assert browser.evaluate("document.querySelectorAll('#depth circle').length") > 0
    assert browser.evaluate("getComputedStyle(document.querySelector('#layers thead')).position") == (
        "static" if width == DESK else "absolute"
    )
    assert browser.evaluate(BACKGROUND) == (DARK if dark else LIGHT)
    for expected in (LIGHT if dark else DARK, DARK if dark else LIGHT):
        browser.evaluate("document.querySelector('#theme').click()")
        assert browser.evaluate(BACKGROUND) == expected
    assert browser.requests == [address.partition("#")[0]]
    assert browser.problems == []
