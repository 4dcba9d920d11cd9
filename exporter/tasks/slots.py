"""Text with slots: `make-data` fills them from a table, and of a file's prompts one says where a user's text is."""

from __future__ import annotations

from string import Formatter

from exporter.errors import UsageError

Pieces = list[tuple[str, str | None]]
"""Text and the slot behind it, in turn; no slot behind the last."""


def parse_slots(template: str, option: str) -> Pieces:
    """The pieces of a text, in which a brace that is no slot stands twice. Raises UsageError that names the option."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise UsageError(
            f"{option} {template!r}: {error}; write a brace that is no slot twice, {{{{ or }}}}"
        ) from error
    for _, slot, spec, conversion in parsed:
        if slot is not None and (spec or conversion or not slot.replace(" ", "_").isidentifier()):
            raise UsageError(f"{option} has {{{slot}}}; a slot is a column's name and nothing else, such as {{noun}}")
    return [(text, slot) for text, slot, _, _ in parsed]
