"""The text around a user's text: a task's prompts are often one form, filled in, and its user has what is filled in.

The user of `Review: ...\\nSentiment:` has a review. What all prompts share at both ends is found here, so that it can
travel with the exported model. Where it cannot be told from the prompts, the task's user declares it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from exporter.errors import UsageError
from exporter.tasks.lines import show_text
from exporter.tasks.slots import parse_slots

_SENTENCE_ENDS = ".!?"
_LAST_SIGN = re.compile(r".*(?:[^\w\s]|\n)\s*", re.DOTALL)


@dataclass(frozen=True)
class Template:
    """The text before and after a user's text in every prompt of a task; where it was found there is some after it."""

    prefix: str
    suffix: str

    @classmethod
    def declare(cls, text: str) -> Template:
        """From a prompt with a slot for the user's text, `Review: {text}\\nSentiment:`, as `make-data` takes it.

        Raises UsageError: there is not one slot, or nothing around it.
        """
        pieces = parse_slots(text, "--template")
        slots = [slot for _, slot in pieces if slot is not None]
        if len(slots) != 1:
            raise UsageError(
                f"--template {show_text(text)} has {len(slots)} slots; write one, where the user's text is: {{text}}"
            )
        place = next(place for place, (_, slot) in enumerate(pieces) if slot is not None)
        before, behind = ("".join(text for text, _ in part) for part in (pieces[: place + 1], pieces[place + 1 :]))
        if not before and not behind:
            raise UsageError(f"--template {text!r} has nothing around its slot; leave it out")
        return cls(before, behind)

    def fill(self, text: str) -> str:
        """The prompt for a text."""
        return f"{self.prefix}{text}{self.suffix}"

    def fits(self, prompt: str) -> bool:
        """Whether a prompt is this template, filled in."""
        long_enough = len(prompt) > len(self.prefix) + len(self.suffix)
        return long_enough and prompt.startswith(self.prefix) and prompt.endswith(self.suffix)

    def describe_misfit(self, prompt: str) -> str | None:
        """What a prompt lacks of this template; None for one that fits."""
        if not prompt.startswith(self.prefix):
            return f"does not begin with {show_text(self.prefix)}"
        if not prompt.endswith(self.suffix):
            return f"does not end with {show_text(self.suffix)}"
        return None if self.fits(prompt) else "has no text within it"

    def cut(self, prompt: str) -> str:
        """The user's text in a prompt; what is no prompt of this template is returned as it is."""
        return prompt[len(self.prefix) : len(prompt) - len(self.suffix)] if self.fits(prompt) else prompt


def find_template(patching: Sequence[str], others: Collection[str]) -> Template | None:
    """What all patching prompts begin and end with, if there is a template: `others` must fit it, too.

    Texts can be alike by chance, so what they share is not the template's: words after its last sign or line break,
    such as the `The` of `Review: The`; words before the line break that ends them; a full stop, `!` or `?` that ends
    them all. None where this cannot be told (words without a sign before the texts), and where no words follow the
    texts: what follows a mere prefix may be the rest of a sentence, as in `The keys`, which nobody would leave out.
    """
    if len(set(patching)) < 2:
        return None
    prefix, suffix = _take_shared(patching), _take_shared([prompt[::-1] for prompt in patching])[::-1]
    sign = _LAST_SIGN.match(prefix)
    if sign is None and any(letter.isalnum() for letter in prefix):
        return None
    suffix = _start_suffix(suffix)
    found = Template("" if sign is None else sign[0], suffix)
    if not any(letter.isalnum() for letter in suffix):
        return None
    texts = [found.cut(prompt) for prompt in patching]
    if not all(map(found.fits, [*patching, *others])) or any(text != text.strip() for text in texts):
        return None
    return found


def _start_suffix(suffix: str) -> str:
    """What all texts are followed by, from the end of the texts' own words on."""
    while suffix and (suffix[0].isalnum() or suffix[0] in _SENTENCE_ENDS):
        suffix = suffix[1:]
    line, broken, rest = suffix.partition("\n")
    return broken + rest if broken and any(letter.isalnum() for letter in line) else suffix


def _take_shared(texts: Sequence[str]) -> str:
    """What all texts begin with: what the first and the last in alphabetical order do."""
    first, last = min(texts), max(texts)
    n_same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:n_same]
