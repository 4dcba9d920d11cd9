"""A folder that is all a user needs: the model, its tokenizer, its configuration, its manifest and card.

Beside model.onnx and its manifest stand config.json and generation_config.json for Optimum, tokenizer.json,
genai_config.json for onnxruntime-genai where the model keeps a past, a model card, and run.py, which decodes
with onnxruntime, numpy and tokenizers alone. Everything that depends on the circuit is read from the ONNX
file, so that the folder cannot say another thing than the file does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import InputError
from exporter.files import OutputSet, surgery_name
from exporter.files.names import CARD, MANIFEST, MODEL, REPORT, REPORT_SUFFIX, RUNNER, SUFFIXES, TOKENIZER
from exporter.files.onnx_file import read_onnx
from exporter.graph.metadata import SURGERY_KEY, Origin
from exporter.loading.load import LanguageModel
from exporter.loading.sources.reading import check_reading
from exporter.loading.sources.tokenizer import save_tokenizer
from exporter.outputs.card import render_card
from exporter.outputs.folders import OutputFolder
from exporter.outputs.manifest import Manifest, hash_file
from exporter.outputs.report import is_report, render_report
from exporter.outputs.shape import BundleShape
from exporter.outputs.targets import TARGETS

Readings = Sequence[tuple[str, Sequence[int]]]
"""Prompts as text, each with its tokens."""


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle that we wrote, with nothing else in it."""
    try:
        files = Manifest.load(folder / MANIFEST).files
    except InputError:
        return False
    inside = list(folder.iterdir())
    ours_alone = {path.name for path in inside} <= {*files, MANIFEST, REPORT}
    return {MODEL, RUNNER} <= set(files) and ours_alone and not any(path.is_dir() for path in inside)


@dataclass(frozen=True)
class Outputs:
    """Where a job writes: a file with its manifest, a bundle, or both; with `report` a page beside each manifest."""

    files: OutputSet | None
    folder: OutputFolder | None
    report: bool = False

    @property
    def model_path(self) -> Path:
        """Where the ONNX file is to be written."""
        if self.files is not None:
            return self.files.path(".onnx")
        assert self.folder is not None
        return self.folder.folder / MODEL

    def write(self, manifest: Manifest, model: LanguageModel, *, example: str, readings: Readings = ()) -> Manifest:
        """Everything beside the ONNX file; returns the manifest, the bundle's where that is all there is."""
        if self.files is not None:
            self.files.path(".json").write_text(manifest.to_json(), encoding="utf-8")
            if self.report:
                self.files.path(REPORT_SUFFIX).write_text(render_report(manifest), encoding="utf-8")
        if self.folder is None:
            return manifest
        if self.files is not None:
            shutil.copyfile(self.model_path, self.folder.folder / MODEL)
            if (sha256 := Origin.read(self.model_path).surgery) is not None:
                beside = self.model_path.with_name(surgery_name(self.model_path.name, sha256))
                shutil.copyfile(beside, self.folder.folder / surgery_name(MODEL, sha256))
        complete = write_bundle(self.folder.folder, manifest, model, example=example, readings=readings)
        if self.report:
            (self.folder.folder / REPORT).write_text(render_report(complete), encoding="utf-8")
        return complete if self.files is None else manifest

    def commit(self) -> None:
        """Put everything in place; the weights and the report beside an older graph go with it."""
        if self.folder is not None:
            self.folder.commit()
        if self.files is not None:
            older = self.files.target(REPORT_SUFFIX)
            leaving = [older.name] if is_report(older) else []
            self.files.commit(leaving=[*leaving, *_find_weights(self.files.target(".onnx"))])


def _find_weights(graph: Path) -> list[str]:
    """Names of the files that an older graph, if there is one, has its weights and its surgery in."""
    try:
        file = read_onnx(graph)
    except InputError:
        return []
    surgery = file.metadata.get(SURGERY_KEY)
    return [path.name for path in file.weights] + ([] if surgery is None else [surgery_name(graph.name, surgery)])


@contextmanager
def open_outputs(out: Path | None, bundle: Path | None, *, force: bool, report: bool = False) -> Iterator[Outputs]:
    """Reserve both; what was there before stays until `commit`. Raises InputError when one cannot be written."""
    with ExitStack() as stack:
        files = None if out is None else stack.enter_context(make_output_set(out, force=force, report=report))
        folder = None
        if bundle is not None:
            folder = stack.enter_context(OutputFolder(bundle, is_replaceable=is_bundle, force=force))
        yield Outputs(files, folder, report)


def make_output_set(out: Path, *, force: bool, report: bool) -> OutputSet:
    """The files of `--out`; a report of an earlier job is theirs too, and leaves when they are replaced."""
    graph, manifest = SUFFIXES
    suffixes = (graph, REPORT_SUFFIX, manifest) if report else SUFFIXES
    return OutputSet(out, suffixes=suffixes, optional=(REPORT_SUFFIX,), force=force)


def write_bundle(
    folder: Path, manifest: Manifest, model: LanguageModel, *, example: str, readings: Readings = ()
) -> Manifest:
    """Complete a folder that holds model.onnx already; returns its manifest, which names every other file.

    `example` is a prompt for the model card, `readings` are prompts with the tokens that the search had of them.
    Raises InputError for a tokenizer that cannot be written as one tokenizer.json, or that is read from there in
    another way.
    """
    shape = BundleShape(folder / MODEL, manifest, model)
    write_tokenizer(model, folder, longest=shape.max_length)
    check_reading(folder / TOKENIZER, model.tokenizer, readings, shape.examples)
    for write in TARGETS.values():
        for name, content in write(shape).items():
            text = content if isinstance(content, str) else json.dumps(content, indent=1) + "\n"
            (folder / name).write_text(text, encoding="utf-8")
    card = render_card(manifest, shape.form, kv_heads=shape.kv_heads, max_length=shape.max_length, example=example)
    (folder / CARD).write_text(card, encoding="utf-8")
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: (name != MODEL, name))  # it comes first
    hashes = {name: hash_file(folder / name) for name in names}
    complete = manifest.model_copy(update={"files": hashes})
    (folder / MANIFEST).write_text(complete.to_json(), encoding="utf-8")
    return complete


def write_tokenizer(model: LanguageModel, folder: Path, *, longest: int) -> None:
    """tokenizer.json, which is the one reading of a text, and what else says how to use it. Raises InputError."""
    if model.tokenizer is None or getattr(model.tokenizer, "backend_tokenizer", None) is None:
        raise InputError(f"the tokenizer of {model.name} has no tokenizer.json; put one beside config.json")
    save_tokenizer(model.tokenizer, folder, longest=longest)
