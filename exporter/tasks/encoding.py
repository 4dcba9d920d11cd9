"""From a line of a data file to token ids: what the model reads, and at which positions it answers with what.

An answer is tokenised behind its prompt, because that is where the model meets it: a prompt that ends in a space
merges with its answer into other tokens, and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from exporter.tasks.lines import LineError, show_text
from exporter.tasks.records import Record, Text
from exporter.tasks.task import Limits, Tokenizer, encode_text

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """One line as token ids. `prompt_ids` begin with the tokenizer's own special tokens, if it puts any.

    `steps` are the right tokens at each answer position; more than one alternative goes with one step only.
    """

    record: Record
    prompt_ids: Ids
    steps: tuple[Ids, ...]
    choice_ids: Ids = ()

    @property
    def input_ids(self) -> Ids:
        """The prompt, and all tokens of the answer but the last (teacher forcing)."""
        return self.prompt_ids + tuple(step[0] for step in self.steps[:-1])


class Encoder:
    """Reads records with one tokenizer, for a model with these limits."""

    def __init__(self, tokenizer: Tokenizer, limits: Limits) -> None:
        self._tokenizer, self._limits = tokenizer, limits
        self.lead = find_lead(tokenizer)

    def encode(self, record: Record) -> Example:
        """Token ids of a record; raises LineError with what is wrong."""
        prompt = record.prompt if isinstance(record.prompt, tuple) else encode_text(self._tokenizer, record.prompt)
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
            (tuple(ids[0] for ids in answers),) if why else tuple((token,) for token in answers[0]),
            choice_ids,
        )
        self._check_limits(example)
        return example

    def _encode_answer(self, text: Text, prompt: Ids, answer: Text, why: str) -> Ids:
        """The answer's tokens behind the prompt `text`; with `why` it must be one."""
        if isinstance(answer, tuple):
            if why and len(answer) > 1:
                raise LineError(f"the answer is {len(answer)} ids; with {why} each is one token, give one id")
            return answer
        ids = encode_text(self._tokenizer, answer)
        if isinstance(text, str):
            together = encode_text(self._tokenizer, text + answer)
            if together[: len(prompt)] != prompt or len(together) == len(prompt):
                raise LineError(self._describe_merge(text, answer, prompt, together))
            ids = together[len(prompt) :]
        if len(ids) > 1:
            spaced = len(encode_text(self._tokenizer, f" {answer}")) == 1
            if why or (spaced and _is_glued(text, answer)):
                self._refuse_several(answer, ids, why, spaced=spaced)
        return ids

    def _describe_merge(self, prompt: str, answer: str, before: Ids, together: Ids) -> str:
        same = next((i for i, (a, b) in enumerate(zip(before, together, strict=False)) if a != b), len(together))
        apart = self.show_tokens(before[same:] + encode_text(self._tokenizer, answer))
        space = prompt[len(prompt.rstrip()) :]
        remedy = (
            "move the space from the prompt's end to the answer's start"
            if space and not space.endswith("\n")
            else "put the boundary where a word begins (the answer with its leading space), or give prompt_ids"
        )
        return f"prompt and answer merge: {apart} becomes {self.show_tokens(together[same : same + 6])}; {remedy}"

    def _refuse_several(self, answer: str, ids: Ids, why: str, *, spaced: bool) -> None:
        hint = (
            f"write {' ' + answer!r}, which is one"
            if spaced
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


def find_lead(tokenizer: Tokenizer) -> Ids:
    """The special tokens that the tokenizer puts before a text of its own accord."""
    plain = encode_text(tokenizer, "a")
    ids = tuple(tokenizer.encode("a", add_special_tokens=True))
    places = [i for i in range(len(ids)) if ids[i : i + len(plain)] == plain]
    return ids[: places[0]] if places else ()


def _is_glued(prompt: Text, answer: str) -> bool:
    """Whether a letter follows where a word or a sentence ends, which is a forgotten space."""
    return isinstance(prompt, str) and answer[0].isalpha() and (prompt[-1].isalnum() or prompt[-1] in ".,:;?!")


def _check_distinct(ids: Ids, texts: tuple[Text, ...]) -> None:
    seen: dict[int, Text] = {}
    for token, text in zip(ids, texts, strict=True):
        if token in seen:
            raise LineError(f"the choices {seen[token]!r} and {text!r} begin with the same token; change one of them")
        seen[token] = text
