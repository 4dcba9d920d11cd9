"""A task as a classifier's: its answers are the classes, each one token with a name of its own."""

from __future__ import annotations

from collections import Counter

from exporter.errors import InputError
from exporter.tasks.task import TaskData
from exporter.tasks.tokenizer import Tokenizer


def name_classes(data: TaskData, tokenizer: Tokenizer) -> tuple[str, ...]:
    """A name for each of the task's answers, in the order of `answer_ids`: its word, without the space before it.

    A token that is white space alone, or whose word is another's too, keeps its spaces and is quoted, so that each
    name stands for one class. Raises InputError: an answer has several tokens, or there are fewer than two answers.
    """
    steps = max(dataset.n_steps for dataset in (data.patching, data.selection, data.test, *data.ood.values()))
    if steps > 1:
        raise InputError(
            f"--logits classes is for answers of one token, and those of {data.task} have up to {steps}; "
            "take --logits answers"
        )
    if len(data.answer_ids) < 2:
        raise InputError(f"--logits classes needs two answers or more, and {data.task} has one; take --logits answers")
    texts = [str(tokenizer.decode([token])) for token in data.answer_ids]
    words, exact = Counter(text.strip() for text in texts), Counter(texts)

    def name(token: int, text: str) -> str:
        word = text.strip()
        if word and words[word] == 1:
            return word
        return repr(text) if exact[text] == 1 else f"token {token}"  # parts of letters all decode to one mark

    return tuple(name(token, text) for token, text in zip(data.answer_ids, texts, strict=True))
