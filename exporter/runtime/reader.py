"""How an exported model's prompts are read: a whole prompt, or a user's text with the task's template around it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import InputError
from exporter.loading.sources.framing import read_framed
from exporter.loading.sources.reading import read_prompt, read_tokenizer
from exporter.tasks.template import Template

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class PromptReader:
    """A tokenizer, and the text around a user's text in each prompt of the task, if it has one.

    framed: whether the tokenizer puts the template around each text itself; a prompt that has it already is read
    without it first, so that it is never there twice.
    """

    tokenizer: Tokenizer
    template: Template | None = None
    framed: bool = False

    def fill(self, text: str) -> str:
        """The prompt for a user's text. Raises InputError: the task's prompts are no template that is filled in."""
        if self.template is None:
            raise InputError("this model's prompts have no template to put around a text; give a whole prompt")
        return self.template.fill(text)

    def read(self, prompt: str) -> tuple[list[int], int]:
        """A prompt's tokens, and how many special ones are put before it. Raises InputError."""
        if not self.framed or self.template is None:
            return read_prompt(self.tokenizer, prompt)
        return read_prompt(self.tokenizer, self.template.cut(prompt))[0], 0


def open_reader(path: Path, template: Template | None) -> PromptReader:
    """The reader of a bundle's tokenizer.json, for the template in its ONNX file. Raises InputError."""
    if template is not None and (framed := read_framed(path)) is not None:
        return PromptReader(framed, template, framed=True)
    return PromptReader(read_tokenizer(path), template)
