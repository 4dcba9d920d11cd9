"""From a line of a data file to token ids: what the model reads, and at which positions it answers with what.

An answer is tokenised behind its prompt, because that is where the model meets it: a prompt that ends in a space
merges with its answer into other tokens, and is refused. Its tokens must say what the user wrote: where a word sticks
to the prompt's last one, is unknown, or is another after the tokenizer's normalising, the line is refused, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from exporter.errors import refuse_panics
from exporter.tasks.blanks import check_blanks
from exporter.tasks.lines import LineError, show_text
from exporter.tasks.records import Record, Text
from exporter.tasks.task import Limits
from exporter.tasks.tokenizer import Tokenizer, encode_text, find_lead

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """One line as token ids. `prompt_ids` begin with the tokenizer's own special tokens, if it puts any.

    `steps` are the right tokens at each answer position; more than one alternative goes with one step only. A line
    without an answer has one position, and no right token there.
    """

    record: Record
    prompt_ids: Ids
    steps: tuple[Ids, ...]
    choice_ids: Ids = ()

    @property
    def is_labelled(self) -> bool:
        """Whether there is a right answer."""
        return self.steps != ((),)

    @property
    def input_ids(self) -> Ids:
        """The prompt, and all tokens of the answer but the last (teacher forcing)."""
        return self.prompt_ids + tuple(step[0] for step in self.steps[:-1])


@dataclass
class Doubts:
    """Lines that are read as they stand and likely not as they are meant, each kind with the first line's text."""

    double_lead: list[int] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)
    glued: list[int] = field(default_factory=list)
    first_glued: str = ""

    def describe(self, lead: str) -> list[str]:
        """A sentence for each kind; `lead` is what is put before each prompt."""
        sentences = []
        if lines := self.double_lead:
            sentences.append(
                f"{_count(lines, 'prompt begins', 'prompts begin')} with {show_text(lead)}, which is put before each "
                "prompt anyway, so that the model reads it twice; take it out of the prompts"
            )
        if lines := self.unknown:
            sentences.append(
                f"{_count(lines, 'prompt has', 'prompts have')} text that the tokenizer has no token for: the model "
                "reads its unknown token there"
            )
        if lines := self.glued:
            first = self.first_glued
            sentences.append(
                f"{_count(lines, 'answer sticks', 'answers stick')} to the prompt's last word, such as "
                f"{show_text(first)}; where a word of its own is meant, write {show_text(' ' + first)}"
            )
        return sentences


def _count(lines: Sequence[int], one: str, several: str) -> str:
    return f"line {lines[0]}: 1 {one}" if len(lines) == 1 else f"{len(lines)} {several} (the first on line {lines[0]})"


class Encoder:
    """Reads records with one tokenizer, for a model with these limits."""

    def __init__(self, tokenizer: Tokenizer, limits: Limits) -> None:
        self._tokenizer, self._limits = tokenizer, limits
        self.lead = find_lead(tokenizer)
        self.doubts = Doubts()
        self._unknown: Any = getattr(tokenizer, "unk_token_id", None)
        self._unknown_text = str(getattr(tokenizer, "unk_token", None))

    def encode(self, record: Record) -> Example:
        """Token ids of a record; raises LineError with what is wrong."""
        prompt = record.prompt if isinstance(record.prompt, tuple) else self._read(record.prompt)
        choices: tuple[Text, ...] = record.choices
        why = "choices" if choices else "several answers" if len(record.answers) > 1 else ""
        if record.distractors:
            choices, why = (*record.answers, *record.distractors), "distractors"
        answers = [self._encode_answer(record.prompt, prompt, answer, why) for answer in record.answers]
        choice_ids = tuple(self._encode_answer(record.prompt, prompt, text, why)[0] for text in choices)
        _check_distinct(choice_ids, choices)
        example = Example(
            record,
            prompt if isinstance(record.prompt, tuple) else self.lead + prompt,
            (tuple(ids[0] for ids in answers),) if why or not answers else tuple((token,) for token in answers[0]),
            choice_ids,
        )
        self._check_limits(example)
        self._doubt(record, prompt, answers)
        return example

    def describe_doubts(self) -> list[str]:
        """What there is to warn of in the lines so far."""
        return self.doubts.describe("".join(str(self._tokenizer.decode([token])) for token in self.lead))

    def _doubt(self, record: Record, prompt: Ids, answers: Sequence[Ids]) -> None:
        """Note what is read as it stands, but likely not meant."""
        if not isinstance(record.prompt, str):
            return
        if self.lead and prompt[: len(self.lead)] == self.lead:
            self.doubts.double_lead.append(record.line)
        if self._is_unknown(record.prompt, prompt):
            self.doubts.unknown.append(record.line)
        text = record.answers[0] if answers else ()
        if isinstance(text, tuple) or len(answers[0]) > 1 or len(text) < 2 or not text.isalpha():
            return
        if _is_glued(record.prompt, text) and len(self._read_behind(record.prompt, prompt, f" {text}")) == 1:
            self.doubts.first_glued = self.doubts.first_glued or text
            self.doubts.glued.append(record.line)

    def _read(self, text: str) -> Ids:
        """The tokens of a text, without special ones; raises LineError for one that the tokenizer cannot read."""
        try:
            with refuse_panics("the tokenizer cannot read it"):
                return encode_text(self._tokenizer, text)
        except Exception as error:  # the tokenizers library raises bare Exception
            message = " ".join(str(error).split())[:100]
            raise LineError(f"the tokenizer cannot read {show_text(text)} ({message}); write something else") from error

    def _read_behind(self, text: Text, prompt: Ids, answer: str) -> Ids:
        """The tokens of an answer behind its prompt, or alone where the two merge or the prompt is given as ids."""
        if isinstance(text, str):
            together = self._read(text + answer)
            if together[: len(prompt)] == prompt and len(together) > len(prompt):
                return together[len(prompt) :]
        return self._read(answer)

    def _encode_answer(self, text: Text, prompt: Ids, answer: Text, why: str) -> Ids:
        """The answer's tokens behind the prompt `text`.

        `why` is what limits the answer to one token (choices, several answers, distractors); empty where nothing does.
        """
        if isinstance(answer, tuple):
            if why and len(answer) > 1:
                raise LineError(f"the answer is {len(answer)} ids; with {why} each is one token, give one id")
            return answer
        ids = self._read(answer)
        if isinstance(text, str):
            together = self._read(text + answer)
            if together[: len(prompt)] != prompt or len(together) == len(prompt):
                raise LineError(self._describe_merge(text, answer, prompt, together))
            ids = together[len(prompt) :]
            check_blanks(self._tokenizer, text, answer, together)
        else:
            check_blanks(self._tokenizer, "", answer, ids)
        if not ids:
            raise LineError(f"the tokenizer makes no token of {show_text(answer)}; write something else")
        if len(ids) > 1:
            spaced = len(self._read_behind(text, prompt, f" {answer}"))
            if why or (spaced < len(ids) and _is_glued(text, answer)):
                self._refuse_several(answer, ids, why, spaced=spaced)
        self._check_kept(text, prompt, answer, ids)
        return ids

    def _is_unknown(self, text: str, ids: Ids) -> bool:
        return self._unknown is not None and self._unknown in ids and self._unknown_text not in text

    def _check_kept(self, text: Text, prompt: Ids, answer: str, ids: Ids) -> None:
        """Raise LineError where the answer's tokens say another thing than the answer."""
        if self._is_unknown(answer, ids):
            raise LineError(
                f"the tokenizer has no token for {show_text(answer)}: it becomes {show_text(self._unknown_text)}, as "
                "other texts do; choose another answer"
            )
        before, whole = self._decode(prompt), self._decode(prompt + ids)
        decoded = whole[len(before) :] if whole.startswith(before) else self._decode(ids)
        if decoded == answer:
            return
        # where decoding does not give back the prompt, nobody knows whose the white space is: it is not compared
        exact = isinstance(text, str) and text.strip() and before == text
        if exact or "".join(decoded.split()) != "".join(answer.split()):
            raise LineError(
                f"the tokenizer reads the answer {show_text(answer)} as {show_text(decoded)}; write that, if it is "
                "meant, or give answer_ids"
            )

    def _decode(self, ids: Ids) -> str:
        return str(self._tokenizer.decode(list(ids)))

    def _describe_merge(self, prompt: str, answer: str, before: Ids, together: Ids) -> str:
        same = next((i for i, (a, b) in enumerate(zip(before, together, strict=False)) if a != b), len(together))
        apart = self.show_tokens(before[same:] + self._read(answer))
        space = prompt[len(prompt.rstrip()) :]
        remedy = (
            "move the space from the prompt's end to the answer's start"
            if space and not space.endswith("\n")
            else "put the boundary where a word begins (the answer with its leading space), or give prompt_ids"
        )
        return f"prompt and answer merge: {apart} becomes {self.show_tokens(together[same : same + 6])}; {remedy}"

    def _refuse_several(self, answer: str, ids: Ids, why: str, *, spaced: int) -> None:
        better = spaced < len(ids) if not why else spaced == 1
        hint = (
            f"write {' ' + answer!r}, which is {'one' if spaced == 1 else spaced}"
            if better
            else "choose words that are one token, or give one answer alone and no choices"
        )
        needed = f"with {why} each must be one" if why else "and it sticks to the prompt's last word"
        raise LineError(f"{show_text(answer)} is {len(ids)} tokens, {self.show_tokens(ids)}; {needed}: {hint}")

    def show_tokens(self, ids: Ids) -> str:
        """Tokens with a bar between them, in quotes."""
        return show_text("|".join(str(self._tokenizer.decode([token])) for token in ids))

    def _check_limits(self, example: Example) -> None:
        n, most = len(example.input_ids), self._limits.max_length
        if most is not None and n > most:
            raise LineError(f"{n} tokens, the model takes {most}; shorten the prompt, or choose a longer context")
        vocabulary = self._limits.vocabulary
        given = (*example.prompt_ids, *(token for step in example.steps for token in step), *example.choice_ids)
        if vocabulary is not None and max(given) >= vocabulary:
            raise LineError(f"token id {max(given)} is out of range; the model knows 0 to {vocabulary - 1}")


def _is_glued(prompt: Text, answer: str) -> bool:
    """Whether a letter follows where a word or a sentence ends, which is a forgotten space."""
    return isinstance(prompt, str) and answer[0].isalpha() and (prompt[-1].isalnum() or prompt[-1] in ".,:;?!")


def _check_distinct(ids: Ids, texts: tuple[Text, ...]) -> None:
    seen: dict[int, Text] = {}
    for token, text in zip(ids, texts, strict=True):
        if token in seen:
            raise LineError(f"the choices {seen[token]!r} and {text!r} begin with the same token; change one of them")
        seen[token] = text
