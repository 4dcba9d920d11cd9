"""The disk: what is written appears whole or not at all, what is read is not trusted. See docs/threat-model.md."""

from exporter.files.output_set import OutputSet, is_weights_name, surgery_name, weights_name
from exporter.files.reading import open_regular, parse_json, read_bounded, read_json, read_text, require_regular

__all__ = [
    "OutputSet",
    "is_weights_name",
    "open_regular",
    "parse_json",
    "read_bounded",
    "read_json",
    "read_text",
    "require_regular",
    "surgery_name",
    "weights_name",
]
