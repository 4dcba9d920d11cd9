"""Text from outside, made harmless where it is shown: names of files, models, tasks, tokens, notes.

Whoever names a file or writes a model's metadata must not be able to move the cursor, colour or hide words, turn
their direction round, add lines of their own, or end a table, a code block or a quoted value.
"""

from __future__ import annotations

import json
import re
import shlex
import unicodedata

# control, format (direction marks, invisible ones), half of a pair, line and paragraph separators
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # which letters of some scripts, and emoji, are joined by
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+!|~$&])")
_MOST = 1500


def escape_controls(text: object, *, keep: str = "") -> str:
    r"""The text with every character that is not shown as itself written like `\x1b`, but for those in `keep`."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        c if c in keep or c in _JOINERS or unicodedata.category(c) not in _HIDDEN else ascii(c)[1:-1] for c in text
    )


def shorten(text: str, most: int = _MOST) -> str:
    """The text, without its middle where it is long."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]} ... {text[-most // 3 :]}"


def escape_markdown(text: object) -> str:
    """The text as words of a paragraph, a heading or a table's cell, on one line."""
    return _MARKDOWN.sub(r"\\\1", escape_controls(text))


def quote_code(text: object) -> str:
    """The text as code in a line of Markdown: between more backticks than stand in it side by side."""
    shown = escape_controls(text)
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    space = " " if not shown or "`" in (shown[0], shown[-1]) or shown != shown.strip() else ""
    return f"{fence}{space}{shown}{space}{fence}"


def quote_shell(text: object) -> str:
    r"""The text as one word of a bash or zsh command, on one line: with a line break or the like as `$'a\nb'`."""
    text = str(text)
    if escape_controls(text, keep="\t") == text:
        return shlex.quote(text)

    def show(c: str) -> str:
        if c in "\\'":
            return f"\\{c}"
        return c if escape_controls(c) == c else f"\\u{ord(c):04x}" if "\x80" <= c <= "\xff" else escape_controls(c)

    return f"$'{''.join(map(show, text))}'"


def quote_yaml(text: object) -> str:
    """The text as a YAML value: a JSON string, which YAML reads as the same."""
    return json.dumps(str(text))
