"""A folder that is all a user needs: the model, its tokenizer, its configuration, its manifest and card.

Beside model.onnx and its manifest stand config.json and generation_config.json for Optimum, tokenizer.json,
genai_config.json for onnxruntime-genai where the model keeps a past, a model card, and run.py, which decodes
with onnxruntime, numpy and tokenizers alone. Everything that depends on the circuit is read from the ONNX
file, so that the folder cannot say another thing than the file does.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

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
from exporter.outputs.targets import fit_targets
from exporter.outputs.targets.contents import write_contents
from exporter.outputs.targets.graph_files import list_graphs, place_graphs
from exporter.tasks.template import Template

Readings = Sequence[tuple[str, Sequence[int]]]
"""Prompts as text, each with its tokens."""


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle that we wrote, with nothing else in it."""
    try:
        files = Manifest.load(folder / MANIFEST).files
    except InputError:
        return False
    ours = {*files, MANIFEST, REPORT}
    folders = {parent for name in ours for parent in PurePosixPath(name).parents}
    for path in folder.rglob("*"):  # which follows no links
        name = PurePosixPath(path.relative_to(folder).as_posix())
        if (name not in folders or path.is_symlink()) if path.is_dir() else str(name) not in ours:
            return False
    return {MODEL, RUNNER} <= set(files)


@dataclass(frozen=True)
class Outputs:
    """Where a job writes: a file with its manifest, a bundle, or both; with `report` a page beside each manifest.

    `targets` are the runtimes that the user named for the bundle.
    """

    files: OutputSet | None
    folder: OutputFolder | None
    report: bool = False
    targets: Sequence[str] = ()

    @property
    def model_path(self) -> Path:
        """Where the ONNX file is to be written."""
        if self.files is not None:
            return self.files.path(".onnx")
        assert self.folder is not None
        return self.folder.folder / MODEL

    def write(
        self, manifest: Manifest, model: LanguageModel, *, example: str, readings: Readings = (), strict: bool = True
    ) -> Manifest:
        """Everything beside the ONNX files; returns the manifest, the bundle's where that is all there is.

        Further ONNX files, `manifest.graphs`, are the bundle's; they stand where the job wrote them, beside its first.
        Raises InputError as `write_bundle` does.
        """
        if self.files is not None:
            alone = manifest.model_copy(update={"graphs": {}})
            self.files.path(".json").write_text(alone.to_json(), encoding="utf-8")
            if self.report:
                self.files.path(REPORT_SUFFIX).write_text(render_report(alone), encoding="utf-8")
        if self.folder is None:
            return manifest
        folder = self.folder.folder
        if self.files is not None:
            self._copy_graphs(folder, manifest)
        complete = write_bundle(
            folder, manifest, model, example=example, readings=readings, targets=self.targets, strict=strict
        )
        if self.report:
            (folder / REPORT).write_text(render_report(complete), encoding="utf-8")
        return complete if self.files is None else alone.model_copy(update={"notes": complete.notes})

    def _copy_graphs(self, folder: Path, manifest: Manifest) -> None:
        """The ONNX files out of the set of files into the bundle; those of the bundle alone are moved."""
        shutil.copyfile(self.model_path, folder / MODEL)
        if (sha256 := Origin.read(self.model_path).surgery) is not None:
            beside = self.model_path.with_name(surgery_name(self.model_path.name, sha256))
            shutil.copyfile(beside, folder / surgery_name(MODEL, sha256))
        for name in manifest.graphs:
            source = self.model_path.parent / name
            for path in (*read_onnx(source).weights, source):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path, (folder / name).with_name(path.name))

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
def open_outputs(
    out: Path | None, bundle: Path | None, *, force: bool, report: bool = False, targets: Sequence[str] = ()
) -> Iterator[Outputs]:
    """Reserve both; what was there before stays until `commit`. Raises InputError when one cannot be written."""
    with ExitStack() as stack:
        files = None if out is None else stack.enter_context(make_output_set(out, force=force, report=report))
        folder = None
        if bundle is not None:
            folder = stack.enter_context(OutputFolder(bundle, is_replaceable=is_bundle, force=force))
        yield Outputs(files, folder, report, targets)


def make_output_set(out: Path, *, force: bool, report: bool) -> OutputSet:
    """The files of `--out`; a report of an earlier job is theirs too, and leaves when they are replaced."""
    graph, manifest = SUFFIXES
    suffixes = (graph, REPORT_SUFFIX, manifest) if report else SUFFIXES
    return OutputSet(out, suffixes=suffixes, optional=(REPORT_SUFFIX,), force=force)


def write_bundle(
    folder: Path,
    manifest: Manifest,
    model: LanguageModel,
    *,
    example: str,
    readings: Readings = (),
    targets: Sequence[str] = (),
    strict: bool = True,
) -> Manifest:
    """Complete a folder that holds model.onnx already; returns its manifest, which names every other file.

    `example` is a prompt for the model card, `readings` are prompts with the tokens that the search had of them,
    `targets` the runtimes that the user named; the folder holds the other ONNX files that they need already, those of
    `manifest.graphs`. Raises InputError for a tokenizer that cannot be written as one tokenizer.json, or that is read
    from there in another way; and if `strict` for a target that does not take the model, which else is left out.
    """
    shape = BundleShape(folder / MODEL, manifest, model, example)
    template = manifest.export.template if manifest.export.labels else None
    if not write_tokenizer(shape, template=template, readings=readings):
        template = None
    check_reading(folder / TOKENIZER, model.tokenizer, readings, shape.examples, template=template)
    shape = replace(shape, framed=template is not None)
    chosen, notes = fit_targets(shape, targets, strict=strict)
    placed = place_graphs(folder / MODEL, manifest.export, list_graphs(chosen.values(), shape.name))
    named = [name for name in chosen if name in targets]
    changes = {"graphs": manifest.graphs | placed, "targets": named, "notes": [*manifest.notes, *notes]}
    manifest = manifest.model_copy(update=changes)
    shape = replace(shape, manifest=manifest)
    write_contents(folder, [target.write(shape) for target in chosen.values()])
    runtimes = [text for target in chosen.values() if (text := target.describe(shape))]
    card = render_card(manifest, max_length=shape.max_length, example=example, runtimes=runtimes, framed=shape.framed)
    (folder / CARD).write_text(card, encoding="utf-8")
    names = sorted(_list_files(folder), key=lambda name: (name != MODEL, name))  # it comes first
    complete = manifest.model_copy(update={"files": {name: hash_file(folder / name) for name in names}})
    (folder / MANIFEST).write_text(complete.to_json(), encoding="utf-8")
    return complete


def _list_files(folder: Path) -> list[str]:
    """The files in a folder and its folders, by name with `/`."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]


def write_tokenizer(shape: BundleShape, *, template: Template | None = None, readings: Readings = ()) -> bool:
    """tokenizer.json, which is the one reading of a text, and what else says how to use it. Raises InputError.

    Returns whether it puts the template around a text, which it does where `readings` are the same then.
    """
    tokenizer = shape.model.tokenizer
    if tokenizer is None or getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(f"the tokenizer of {shape.model.name} has no tokenizer.json; put one beside config.json")
    masked = shape.form != "plain"
    folder = shape.path.parent
    return save_tokenizer(
        tokenizer, folder, longest=shape.max_length, masked=masked, template=template, readings=readings
    )
