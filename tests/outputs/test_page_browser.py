"""The page of a bundle for Transformers.js, in Chromium: what it answers is the model's, and nothing else is loaded.

Needs Chromium, the extra `browser` and npm's packages (`make node-modules`). With a folder in EXPORT_CIRCUIT_SHOTS it
leaves screenshots there, to be looked at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import Bundle, decode, make_bundle, make_dense, to_text
from node import require_modules
from reports import HOSTILE
from sites import serve_folder

from exporter.graph.options import Form, GraphOptions
from exporter.outputs.targets.page import RUNTIME

pytestmark = pytest.mark.slow
WIDE, PHONE = 1180, 390
PROMPT = [3, 1, 4, 1, 5, 9]
LABELS = ("seven", "<b>three</b>", "five")
TIMEOUT = 120_000
_RUN = """async ({ address, names, text }) => {
  const { env, pipeline } = await import(`${address}js/transformers.mjs`);
  Object.assign(env, { allowLocalModels: true, allowRemoteModels: false, useBrowserCache: false });
  env.localModelPath = "/";
  const [mjs, wasm] = names.map((name) => `${address}js/${name}`);
  env.backends.onnx.wasm.wasmPaths = { mjs, wasm };
  const run = await pipeline("text-generation", "b");
  return { given: await run(text, { max_new_tokens: 3 }), dtype: run.model.sessions.model.config.dtype };
}"""


def find_runtime() -> dict[str, Path]:
    """The page's runtime out of npm's packages, where a user puts it."""
    modules = require_modules()
    files = [modules / path.replace("@1.30.0", "").replace("@0.2.0", "") for path in RUNTIME]
    return {f"/vendor/{file.name}": file for file in files}


def make_page(folder: Path, form: Form = "plain", **options: Any) -> Bundle:
    return make_bundle(folder, form=form, targets=("transformers-js",), **options)


@contextmanager
def open_page(
    browser: Any, folder: Path, *, beside: dict[str, Path] | None = None, width: int = WIDE, scheme: str = "light"
) -> Iterator[tuple[Any, list[str]]]:
    """The page when it is ready or says why it is not; what it complained of; what it asked other servers for fails."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    seen: list[str] = []
    with serve_folder(folder, find_runtime() if beside is None else beside) as address:
        context.route(
            lambda url: not url.startswith(address), lambda route: (seen.append(route.request.url), route.abort())
        )
        page = context.new_page()
        page.on("console", lambda message: seen.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.set_default_timeout(TIMEOUT)
        page.goto(f"{address}index.html")
        page.wait_for_selector('#status:not(:has-text("Loading"))')
        yield page, seen
        context.close()


def ask(page: Any, text: str) -> None:
    """Type a prompt and press Enter; waits for what it says."""
    page.evaluate("document.getElementById('result').hidden = true")
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    page.wait_for_selector("#result:not([hidden])")


def read_shares(bundle: Bundle, prompt: list[int]) -> torch.Tensor:
    return bundle.rewritten.next_token_logits(torch.tensor([prompt]))[0].softmax(-1)


@pytest.mark.parametrize("form", ["plain", "masked", "past"])
def test_it_answers_a_typed_prompt_as_the_model_does(browser: Any, form: Form, tmp_path: Path) -> None:
    bundle = make_page(
        tmp_path / "b", form, graph=GraphOptions(form=form, logits="last", external_data=form == "masked")
    )
    data = json.loads((bundle.folder / "index.html").read_text().split('id="model">')[1].split("</script>")[0])
    with open_page(browser, bundle.folder) as (page, seen):
        assert page.inner_text("#status") == f"Ready: {data['size']} of model."
        assert "vendor/ on this server" in page.inner_text("#runtime")
        for prompt in (PROMPT, [2, 6, 5]):
            ask(page, to_text(prompt))
            shares = read_shares(bundle, prompt)
            shown = int(page.inner_text("#answer")[1:])
            assert shares[shown] >= shares.max() - 0.01  # of int8
            assert abs(float(page.inner_text("#probability").strip("<> %")) - 100 * shares[shown]) < 1
            assert float(page.inner_text("#time").removesuffix(" ms")) > 0
            assert page.locator("#rows tr").count() == 5
            assert page.is_visible("#more") == (form == "past")
        if form == "past":
            assert len(page.inner_text("#text").split()) <= 20
            assert page.inner_text("#text").split()[0] == page.inner_text("#answer")
        ask(page, to_text(range(30)))
        assert page.inner_text("#refusal") == "The prompt has 30 tokens, and the model takes 1 to 24."
        assert page.is_hidden("#found")
        assert seen == []


def test_it_continues_as_the_exact_file_does(browser: Any, tmp_path: Path) -> None:
    bundle = make_page(tmp_path / "b", "past")
    folder = bundle.folder
    (folder / "onnx/model_quantized.onnx").unlink()
    (folder / "onnx/model_quantized.onnx").write_bytes((folder / "onnx/model.onnx").read_bytes())
    with open_page(browser, folder) as (page, _):
        ask(page, to_text(PROMPT))
        expected = decode(bundle.rewritten, PROMPT, 19)
        expected = expected[: expected.index(0) + 1] if 0 in expected else expected
        assert [int(word[1:]) for word in page.inner_text("#text").split()] == [token for token in expected if token]


def test_a_classifier_shows_its_classes_and_no_html_of_theirs(browser: Any, tmp_path: Path) -> None:
    graph = GraphOptions(logits="classes", answer_ids=(7, 3, 5), labels=LABELS, vocabulary=tuple(range(30)))
    bundle = make_page(tmp_path / "b", graph=graph)
    with open_page(browser, bundle.folder) as (page, seen):
        ask(page, to_text(PROMPT))
        logits = bundle.rewritten.next_token_logits(torch.tensor([PROMPT]))[0, [7, 3, 5]]
        order = logits.argsort(descending=True).tolist()
        assert page.locator("#rows td:first-child").all_inner_texts() == [LABELS[i] for i in order]
        assert page.locator("b b").count() == 0
        ask(page, "w3 w1 w35")
        assert "this model does not know all tokens of the text" in page.inner_text("#refusal")
        assert page.is_hidden("#found")
        ask(page, to_text(PROMPT))
        assert page.is_hidden("#refusal") and page.is_visible("#found")
        assert seen == []


def test_it_fits_and_axe_finds_nothing_serious(browser: Any, tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="needs the extra `browser`: axe is not installed")
    bundle = make_page(tmp_path / "b", "past")
    with open_page(browser, bundle.folder) as (page, seen):
        ask(page, to_text(PROMPT))
        page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
        for width, scheme in product((WIDE, PHONE), ("light", "dark")):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            if folder := os.environ.get("EXPORT_CIRCUIT_SHOTS"):
                page.screenshot(path=Path(folder) / f"page-{width}-{scheme}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
            serious = [
                f"{rule['id']}: {rule['nodes'][0]['html'][:200]} {rule['nodes'][0]['failureSummary'][:300]}"
                for rule in found["violations"]
                if rule["impact"] in ("serious", "critical")
            ]
            assert (serious, seen) == ([], [])


def test_transformers_js_runs_the_bundle_in_a_browser(browser: Any, tmp_path: Path) -> None:
    """Its pipeline, as in Node, with WebAssembly's default file."""
    bundle = make_page(tmp_path / "b", "past")
    modules = require_modules() / "@huggingface/transformers"
    wasm = modules / "node_modules/onnxruntime-web/dist"
    names = [f"ort-wasm-simd-threaded.asyncify.{kind}" for kind in ("mjs", "wasm")]
    beside = {"/js/transformers.mjs": modules / "dist/transformers.min.js", "/b/empty.html": tmp_path / "empty.html"}
    beside |= {f"/js/{name}": wasm / name for name in names}
    (tmp_path / "empty.html").write_text("<title>empty</title>")
    with serve_folder(tmp_path, beside) as address:
        page = browser.new_page()
        page.set_default_timeout(TIMEOUT)
        page.goto(f"{address}empty.html")
        found = page.evaluate(_RUN, {"address": address, "names": names, "text": to_text(PROMPT)})
        page.close()
    assert found["dtype"] == "q8"
    tokens = [int(word[1:]) for word in found["given"][0]["generated_text"].split()]
    assert tokens[: len(PROMPT)] == PROMPT
    shares = read_shares(bundle, PROMPT)
    assert shares[tokens[len(PROMPT)]] >= shares.max() - 0.01  # of int8


def test_a_runtime_that_is_another_one_or_missing_is_not_run(browser: Any, tmp_path: Path) -> None:
    bundle = make_page(tmp_path / "b")
    other = tmp_path / "other.mjs"
    other.write_text("document.title = 'run'")
    name = next(iter(find_runtime()))
    for beside in ({**find_runtime(), name: other}, {}):
        with open_page(browser, bundle.folder, beside=beside) as (page, seen):
            assert page.inner_text("#status").startswith("It cannot run: the runtime's ")
            assert page.title() != "run" and page.is_disabled("#run")
            assert any(url.startswith("https://cdn.jsdelivr.net/npm/") for url in seen)


def test_hostile_names_do_nothing(browser: Any, tmp_path: Path) -> None:
    model = replace(make_dense(), name=HOSTILE)
    bundle = make_page(tmp_path / "b", model=model)
    with open_page(browser, bundle.folder, width=PHONE) as (page, seen):
        assert page.locator("img, iframe, script[src], link").count() == 0
        assert page.locator("script").count() == 2
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE
        assert page.inner_text("#status").startswith("Ready")
        assert seen == []
