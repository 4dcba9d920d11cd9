"""The answers of a model as words, in the order of its logits: what a table beside the graph says of each."""

from __future__ import annotations

from exporter.escaping import escape_controls
from exporter.outputs.shape import BundleShape


def name_answers(shape: BundleShape) -> list[str]:
    """One word for each logit, on one line each; none where logits cover the whole vocabulary.

    The labels of the classes where the graph has some; else the text of each answer's token without the white space
    around it, or with it where two answers would be one word otherwise.
    """
    export = shape.manifest.export
    labels = list(export.labels)
    if not labels and export.answer_ids:
        assert shape.model.tokenizer is not None  # `write_tokenizer` refuses a model without one
        labels = [str(shape.model.tokenizer.decode([token])) for token in export.answer_ids]
    bare = [label.strip() for label in labels]
    chosen = bare if all(bare) and len(set(bare)) == len(bare) else labels
    return [escape_controls(label) for label in chosen]
