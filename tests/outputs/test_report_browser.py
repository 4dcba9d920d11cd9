"""The report in a real browser: no error, no request, no serious finding of axe-core, nothing wider than a phone.

Needs Chromium (`apt-get install chromium`, or a path in EXPORT_CIRCUIT_CHROMIUM) and the extra `browser`. With a folder
in EXPORT_CIRCUIT_SHOTS it leaves screenshots there, to be looked at.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from reports import HOSTILE, make_comparison, make_data

from exporter.outputs.manifest import Manifest
from exporter.outputs.report import render_report
from exporter.outputs.report.others import Comparison

pytestmark = pytest.mark.slow
WIDE, PHONE = 1180, 390


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "model.html"
    path.write_text(make_page(), encoding="utf-8")
    return path


def make_page(text: str = "") -> str:
    data = make_data(text=text)
    comparison = Comparison.model_validate(make_comparison(data, text))
    return render_report(Manifest.from_json(json.dumps(data)), comparison)


def open_page(browser: Any, path: Path, *, width: int = WIDE, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page, and what it complained of or asked for beside the file itself."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    seen: list[str] = []
    page.on("console", lambda message: seen.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    page.on("request", lambda request: seen.append(f"request: {request.url}"))
    page.set_default_timeout(120_000)
    page.goto(path.as_uri(), wait_until="load")
    assert seen.pop(0) == f"request: {path.as_uri()}"
    return page, seen


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_it_is_quiet_and_fits_and_axe_finds_nothing_serious(
    browser: Any, report: Path, width: int, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="needs the extra `browser`: axe is not installed")
    page, seen = open_page(browser, report, width=width, scheme=scheme)
    if folder := os.environ.get("EXPORT_CIRCUIT_SHOTS"):
        page.screenshot(path=Path(folder) / f"report-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    serious = [
        f"{rule['id']}: {rule['nodes'][0]['html'][:200]} {rule['nodes'][0]['failureSummary'][:300]}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
    ]
    assert (serious, seen) == ([], [])


def test_the_grid_is_read_with_the_keyboard(browser: Any, report: Path) -> None:
    page, seen = open_page(browser, report)
    cells = page.locator("#heads td[tabindex='0']")
    assert cells.count() == 1  # one stop of the Tab key
    cells.first.focus()
    first = page.inner_text("#heads-readout")
    assert first.startswith("Layer 29, head") and first.endswith("kept")
    page.keyboard.press("End")
    assert page.inner_text("#heads-readout") == "Layer 29, MLP: kept whole"
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#heads-readout").startswith("Layer 28, MLP: 1,120 hidden units of 1,536")
    page.locator("#heads tbody tr").nth(5).locator("td").first.hover()
    assert page.inner_text("#heads-readout").startswith("Layer 24, head 0")
    assert seen == []


def test_a_token_that_is_chosen_looks_back(browser: Any, report: Path) -> None:
    page, seen = open_page(browser, report)
    row = page.locator("#patterns tbody tr").first.locator("td")
    before = row.all_inner_texts()
    page.locator("#patterns button").nth(1).click()
    after = row.all_inner_texts()
    assert before != after and after[2:] == [""] * (len(after) - 2)  # nothing ahead of it
    assert page.locator("#patterns button[aria-pressed='true']").count() == 1
    page.locator("#patterns button").last.click()
    assert row.all_inner_texts() == before  # what the page was made with
    assert seen == []


def test_hostile_text_does_nothing(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(make_page(HOSTILE), encoding="utf-8")
    page, seen = open_page(browser, path, width=PHONE)
    assert page.locator("img, iframe, script[src], link").count() == 0
    assert page.locator("script").count() == 1
    assert page.title().endswith("circuit report")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE
    assert seen == []
