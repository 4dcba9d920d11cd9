"""The report: what it says, that it is escaped, and that it can be made again."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from manifests import DATA
from reports import HOSTILE, make_comparison, make_data

from exporter.errors import InputError
from exporter.evidence.figures import Evaluation
from exporter.metrics.statistics import Accuracy
from exporter.outputs.bundle import make_output_set, open_outputs
from exporter.outputs.manifest import Manifest
from exporter.outputs.report import SECTIONS, is_report, render_report
from exporter.outputs.report.chart import Chart, choose_powers, choose_ticks
from exporter.outputs.report.grid import draw_grid
from exporter.outputs.report.others import Comparison
from exporter.outputs.report.verdict import Discordant, answer, write_sentences
from exporter.outputs.report.words import write_bytes, write_points, write_share, write_short, write_time

MOST_BYTES = 1_500_000
VOID = {"meta", "path", "line", "circle"}


def load(data: dict[str, Any]) -> Manifest:
    return Manifest.from_json(json.dumps(data))


class Outline(HTMLParser):
    """The tags that are open, the text, and everything that a page could fetch or run."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.headings: list[str] = []
        self.text: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append(tag)
        for name, value in attrs:
            self.fetched += [f"{tag} {name}={value}"] if name in ("src", "srcset", "data", "action") else []
            self.fetched += [f"{tag} {value}"] if name == "href" and not str(value).startswith("#") else []
            self.fetched += [f"{tag} {name}"] if name.startswith("on") else []
            self.ids += [str(value)] if name == "id" else []

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def read(page: str) -> Outline:
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    return outline


def test_it_says_what_the_manifest_says() -> None:
    page = render_report(load(make_data()))
    outline = read(page)
    text = " ".join(" ".join(outline.text).split())
    for said in (
        "agreement.jsonl from smollm2", "4.1 %", "14.6 ×", "98.2 %", "131 MB", "28 of 270 attention heads",
        "On two-nouns 22 points below the original (71.0% against 93.0%): put such prompts into the selection set.",
        "On 500 held-out prompts it is right on 98.2 %", "It loses 6 prompts that the original gets right and gains 3",
        "healed, not the original's: distil from dense on 2,872 prompts, 640 steps",
        "Layer 28, MLP: 1,120 hidden units of 1,536 (72.9 %) kept", "export-circuit --task agreement.jsonl",
        "The keys to the old cabinet", "1 of 900", "61.2 ms", "1.31 s", "596 MB",
    ):  # fmt: skip
        assert said in text, said
    assert outline.headings[:2] == ["h1", "h2"] and outline.headings.count("h1") == 1
    assert set(SECTIONS) - {"others"} <= set(outline.ids) and len(set(outline.ids)) == len(outline.ids)
    assert len(page.encode()) < MOST_BYTES


def test_a_page_of_the_largest_prompts_and_heads_is_small() -> None:
    data = make_data(layers=96, heads=96)
    data["prompts"] = [prompt | {"tokens": [" incomprehensibilities"] * 400} for prompt in data["prompts"]]
    tokens = [" incomprehensibilities"] * 48
    rows = ["-" * (query + 1) for query in range(48)]
    heads = [{"layer": 95, "index": index, "written": 1.0, "rows": rows} for index in range(24)]
    data["attention"] = {"tokens": tokens, "n_heads": 9216, "heads": heads}
    assert len(render_report(load(data)).encode()) < MOST_BYTES


def test_text_from_outside_is_only_text() -> None:
    data = make_data(text=HOSTILE)
    comparison = Comparison.model_validate(make_comparison(data, HOSTILE))
    page = render_report(load(data), comparison)
    outline = read(page)
    assert outline.fetched == []
    assert page.count("<script") == 1 and "<img" not in page
    assert not {"\x1b", "\u202e", "\u2028"} & set(page)
    assert "\\x1b[31m" in "".join(outline.text)  # and it is shown


@pytest.mark.parametrize("name", ["model.json"])
def test_an_older_manifest_makes_a_shorter_page(name: str) -> None:
    outline = read(render_report(Manifest.load(Path(__file__).parent.parent / "data" / name)))
    assert {"grid", "quality", "making"} <= set(outline.ids)
    assert not {"prompts", "attention", "path"} & set(outline.ids)


def test_a_greedy_search_is_drawn_by_its_trace() -> None:
    data = copy.deepcopy(DATA)
    trace = [("a1.h0", 0.0, 0.01, True), ("a1.h1", 0.01, 0.5, False), ("m1", 0.01, 0.02, True)]
    names = ("component", "kl_before", "kl_without", "removed")
    data["circuit"] |= {
        "alpha": 0.02,
        "order": "paper",
        "trace": [dict(zip(names, step, strict=True)) for step in trace],
    }
    text = " ".join(read(render_report(load(data))).text)
    assert "3 candidates tried, 2 removed" in text
    assert "Layer 1, head 1: removed; without it KL rises by 0.49 nats" in text


def test_the_grid_tells_what_stays() -> None:
    data = copy.deepcopy(DATA)
    data["circuit"] = {"heads": [[0, 1]], "mlps": [1], "neurons": {"0": [3, 5]}}
    grid = draw_grid(load(data))
    assert [(row.layer, [cell.kept for cell in row.heads], row.mlp.share) for row in grid.rows] == [
        (1, [False, False], 1.0),
        (0, [False, True], 0.25),
    ]
    assert (grid.kept_heads, grid.of_heads, grid.kept_units, grid.of_units) == (1, 4, 10, 16)


def figures(dense: int, circuit: int, *, n: int = 100, apart: int | None = None) -> Evaluation:
    metrics = {} if apart is None else {"same_verdict": 1 - apart / n}
    return Evaluation(n, Accuracy.of(dense, n), Accuracy.of(circuit, n), kl=0.1, agreement=0.9, metrics=metrics)


def test_prompts_lost_and_gained_are_told_from_the_means() -> None:
    apart = Discordant.of(figures(90, 82, apart=10))
    assert apart == Discordant(lost=9, gained=1)
    assert apart.p == pytest.approx(2 * (1 + 10) / 2**10)  # both tails of a binomial of 10: none, and one
    assert Discordant(0, 0).p == 1
    assert Discordant.of(figures(90, 82)) is None


@pytest.mark.parametrize(
    ("test", "unseen", "short", "doubts"),
    [
        (figures(98, 97, apart=1), figures(96, 95), "Yes, for this task", 0),
        (figures(98, 97, apart=1), figures(96, 60), "see far.", 1),
        (figures(98, 80, apart=18), figures(96, 95), "With care: it is 18 points below", 1),
        (figures(98, 80), figures(96, 60), "With care", 2),
    ],
)
def test_doubts_are_said(test: Evaluation, unseen: Evaluation, short: str, doubts: int) -> None:
    manifest = load(DATA).model_copy(update={"test": test, "ood": {"far": unseen}})
    assert short in answer(manifest)
    marks = [sentence.mark for sentence in write_sentences(manifest)]
    assert marks.count("doubt") == doubts


def test_numbers_are_written_for_readers() -> None:
    assert [write_share(share) for share in (0, 0.0004, 0.5, 0.99960, 1)] == [
        "0.0 %", "< 0.1 %", "50.0 %", "> 99.9 %", "100.0 %"
    ]  # fmt: skip
    assert [write_points(points) for points in (0.004, -0.01, 0.2249)] == ["0.4 points", "1.0 points", "22 points"]
    assert [write_time(seconds) for seconds in (0, 4.18e-4, 0.0612, 1.31)] == ["0 ms", "0.418 ms", "61.2 ms", "1.31 s"]
    assert [write_short(n) for n in (12, 155_531, 106_200_000)] == ["12", "156 k", "106 M"]
    assert [write_bytes(n) for n in (2_500, 52_140_000, 1.31e9)] == ["2.50 kB", "52.1 MB", "1.31 GB"]


def test_axes_name_round_values() -> None:
    assert choose_ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert choose_ticks(0.6, 1.0, most=6) == [0.6, 0.7, 0.8, 0.9, 1.0]
    assert choose_ticks(3, 3) == [3]
    assert choose_powers(4, 30) == [5, 10, 20]
    chart = Chart.of([1e3, 1e6], [0, 0.9], write_x=str, write_y=str, log_x=True, y_from=0, flip=True)
    (dense, top), (small, bottom) = chart.place(1e6, 1.0), chart.place(1e3, 0.0)
    assert chart.left < dense < small < chart.right and top == chart.top and bottom == chart.bottom


def test_attention_that_does_not_fit_its_tokens_is_refused() -> None:
    data = make_data()
    data["attention"]["heads"][0]["rows"][1] = "\u00e9"
    with pytest.raises(InputError, match="attention of head"):
        load(data)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "model.json"
    path.write_text(load(make_data()).to_json(), encoding="utf-8")
    return path


def test_the_command_makes_it_again_byte_for_byte(manifest: Path, tmp_path: Path) -> None:
    run = Run()
    assert "model.html" in run.succeeds("report", manifest)
    first = (tmp_path / "model.html").read_bytes()
    run.succeeds("report", manifest)  # over the report that stands there
    run.succeeds("report", manifest, "--out", tmp_path / "other.html")
    assert (tmp_path / "model.html").read_bytes() == (tmp_path / "other.html").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.html", "model.json", "other.html"]


def test_a_comparison_beside_the_manifest_is_drawn(manifest: Path, tmp_path: Path) -> None:
    beside = tmp_path / "model.compare.json"
    data = make_comparison(make_data())
    beside.write_text(json.dumps(data))
    Run().succeeds("report", manifest)
    outline = read((tmp_path / "model.html").read_text(encoding="utf-8"))
    text = " ".join(outline.text)
    assert "others" in outline.ids and "No baseline is as accurate as ours" in text
    assert "TF-IDF, logistic regression: 80.4 % in 0.0400 ms" in text
    beside.write_text(json.dumps(data | {"key": data["key"] | {"weights": "other"}}))
    Run().fails(3, "compares on another weights", "report", manifest)
    beside.write_text("{}")
    Run().fails(3, "no comparison", "report", manifest)
    beside.write_text(json.dumps(data | {"contestants": {}}))
    Run().succeeds("report", manifest)
    assert "others" not in read((tmp_path / "model.html").read_text(encoding="utf-8")).ids


def test_somebody_elses_page_stays(manifest: Path, tmp_path: Path) -> None:
    page = tmp_path / "model.html"
    page.write_text("mine")
    Run().fails(3, "exists; give --force", "report", manifest)
    assert page.read_text() == "mine"
    Run().succeeds("report", manifest, "--force")
    assert is_report(page)


def test_figures_that_make_no_page_are_told(manifest: Path) -> None:
    data = make_data()
    data["latency"][0]["circuit"] = float("inf")
    manifest.write_text(json.dumps(data))
    Run().fails(3, "cannot be drawn", "report", manifest)


def write_set(folder: Path, *, report: bool) -> None:
    """A job's files without a job."""
    manifest = load(DATA)
    with open_outputs(folder / "m.onnx", None, force=True, report=report) as outputs:
        outputs.model_path.write_bytes(b"graph")
        outputs.write(manifest, None, example="")  # type: ignore[arg-type]  # the model is for bundles
        outputs.commit()


def test_a_report_comes_and_goes_with_its_set(tmp_path: Path) -> None:
    write_set(tmp_path, report=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.html", "m.json", "m.onnx"]
    assert (tmp_path / "m.html").read_text(encoding="utf-8") == render_report(Manifest.load(tmp_path / "m.json"))
    write_set(tmp_path, report=False)  # the old page would tell of another model
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "m.onnx"]
    (tmp_path / "m.html").write_text("mine")
    write_set(tmp_path, report=False)
    assert (tmp_path / "m.html").read_text() == "mine"


def test_a_report_is_not_written_over_without_force(tmp_path: Path) -> None:
    (tmp_path / "m.html").write_text("mine")
    with pytest.raises(InputError, match=r"m\.html exists"):
        make_output_set(tmp_path / "m.onnx", force=False, report=True).check()
    make_output_set(tmp_path / "m.onnx", force=False, report=False).check()
