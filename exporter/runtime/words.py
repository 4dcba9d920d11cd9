"""The words that an exported file knows of its task: the names of its classes, the text around a user's text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.errors import InputError
from exporter.files import parse_json
from exporter.graph.metadata import LABELS_KEY, TEMPLATE_KEY
from exporter.tasks.template import Template

if TYPE_CHECKING:
    import onnxruntime


def read_labels(session: onnxruntime.InferenceSession) -> tuple[str, ...] | None:
    """The names of a classifier's classes, in the order of its logits; None for a language model.

    Raises InputError: the file's metadata is damaged.
    """
    text = session.get_modelmeta().custom_metadata_map.get(LABELS_KEY)
    if text is None:
        return None
    try:
        labels = parse_json(text)
    except (ValueError, RecursionError):
        labels = None
    n_classes = next(value for value in session.get_outputs() if value.name == "logits").shape[-1]
    if not isinstance(labels, list) or [type(label) for label in labels] != [str] * n_classes:
        raise InputError("the file's labels are damaged; export it again")
    return tuple(labels)


def read_template(session: onnxruntime.InferenceSession) -> Template | None:
    """The text around a user's text in each prompt of the file's task; None without one.

    Raises InputError: the file's metadata is damaged.
    """
    text = session.get_modelmeta().custom_metadata_map.get(TEMPLATE_KEY)
    if text is None:
        return None
    try:
        found = parse_json(text)
        template = Template(found["prefix"], found["suffix"])
    except (ValueError, TypeError, KeyError, RecursionError):
        template = None
    if template is None or not all(isinstance(part, str) for part in (template.prefix, template.suffix)):
        raise InputError("the file's template is damaged; export it again")
    return template
