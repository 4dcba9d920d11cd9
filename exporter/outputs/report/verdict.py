"""May the circuit be trusted? Plain sentences from the manifest's figures, the doubts first in each kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from exporter.evidence.controls import describe_controls
from exporter.evidence.figures import Evaluation
from exporter.evidence.guarded import describe_guard
from exporter.evidence.sentences import describe_unseen, is_below
from exporter.outputs.manifest import Manifest
from exporter.outputs.report.words import join_names, write_count, write_interval, write_p, write_points, write_share

Mark = Literal["good", "doubt", "note"]
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Sentence:
    """One thing to know: `doubt` speaks against the circuit, `good` for it, `note` is neither."""

    mark: Mark
    text: str


@dataclass(frozen=True)
class Discordant:
    """Prompts that only the dense model gets right (`lost`), and that only the circuit does (`gained`)."""

    lost: int
    gained: int

    @classmethod
    def of(cls, figures: Evaluation) -> Discordant | None:
        """From the mean metrics of a set; None in an older manifest, which lacks them."""
        same = figures.metrics.get("same_verdict")
        if same is None:
            return None
        apart = round(figures.n * (1 - same))
        fewer = round(figures.n * (figures.dense.accuracy - figures.circuit.accuracy))
        return cls(lost=(apart + fewer) // 2, gained=(apart - fewer) // 2)

    @property
    def p(self) -> float:
        """McNemar's exact test, two-sided: the probability of a split so uneven if both were as likely."""
        from scipy.stats import binomtest

        n = self.lost + self.gained
        return 1.0 if n == 0 else float(binomtest(self.lost, n, 0.5).pvalue)


def is_lower(figures: Evaluation) -> bool:
    """Whether the circuit is significantly worse: by McNemar's test, or by its interval where that is not known."""
    apart = Discordant.of(figures)
    if apart is None:
        return is_below(figures)
    return apart.lost > apart.gained and apart.p < SIGNIFICANT


def answer(manifest: Manifest) -> str:
    """The short answer to the question."""
    below = [name for name, figures in manifest.ood.items() if is_below(figures)]
    if is_lower(manifest.test):
        less = write_points(manifest.test.dense.accuracy - manifest.test.circuit.accuracy)
        return f"With care: it is {less} below the original even on prompts like those it was made for."
    if below:
        return f"On prompts like those it was made for, yes. Not on others: see {join_names(below)}."
    if manifest.ood:
        return "Yes, for this task: on no set of prompts does it lie measurably below the original."
    return "On prompts like those it was made for, yes. Others were not tried."


def write_sentences(manifest: Manifest) -> list[Sentence]:
    """Everything that speaks for and against it."""
    found = [_judge_test(manifest.test), *_judge_unseen(manifest.ood), _judge_likeness(manifest.test)]
    return [
        *found,
        _judge_weights(manifest),
        _judge_exactness(manifest),
        *_judge_precision(manifest),
        *_judge_controls(manifest),
        *_notes(manifest),
    ]


def _judge_test(test: Evaluation) -> Sentence:
    figures = (
        f"On {write_count(test.n)} held-out prompts it is right on {write_share(test.circuit.accuracy)} "
        f"(95 % interval {write_interval(test.circuit)}), the original on {write_share(test.dense.accuracy)}."
    )
    mark: Mark = "doubt" if is_lower(test) else "good"
    apart = Discordant.of(test)
    if apart is None:
        return Sentence(mark, figures)
    if apart.lost + apart.gained == 0:
        return Sentence(mark, f"{figures} They are right on the same prompts.")
    is_known = apart.p < SIGNIFICANT
    return Sentence(
        mark,
        f"{figures} It loses {write_count(apart.lost, 'prompt')} that the original gets right and gains "
        f"{apart.gained:,}: {'a' if is_known else 'no'} significant difference "
        f"(McNemar's exact test, {write_p(apart.p)}).",
    )


def _judge_unseen(sets: dict[str, Evaluation]) -> Iterator[Sentence]:
    for name, figures in sets.items():
        if (text := describe_unseen(name, figures)) is not None:
            yield Sentence("doubt", _end(text))
    fine = [name for name, figures in sets.items() if not is_below(figures)]
    if fine:
        names = f"{'set' if len(fine) == 1 else 'sets'} {join_names(fine)}"
        yield Sentence("good", f"On the unseen {names} it keeps up with the original, within its interval.")
    weak = [name for name, figures in sets.items() if figures.dense.accuracy < 0.5]
    if weak:
        yield Sentence("note", f"The original itself is right on less than half of the prompts of {join_names(weak)}.")


def _judge_likeness(test: Evaluation) -> Sentence:
    return Sentence(
        "note",
        f"It gives the original's answer, right or wrong, on {write_share(test.agreement)} of the held-out prompts; "
        f"its distributions are {test.kl:.3g} nats from the original's (KL).",
    )


def _judge_weights(manifest: Manifest) -> Sentence:
    record = manifest.get_record()
    if record.learning is None:
        return Sentence("good", "Its weights are the original's: it is a part of that model, and nothing was trained.")
    return Sentence(
        "note",
        f"Its weights are {record.weights}. So it is not a part of the original any more, and the original's behaviour "
        "away from such prompts says nothing of it.",
    )


def _judge_exactness(manifest: Manifest) -> Sentence:
    exact = manifest.exactness
    most = max(exact.hooked_vs_rewritten, exact.rewritten_vs_onnx)
    return Sentence(
        "good",
        f"The file computes this circuit: the original with hooks, the rebuilt model and the ONNX graph give the same "
        f"logits on {write_count(exact.prompts, 'prompt')}, to {most:.1e} (allowed: {exact.limit:.1e}).",
    )


def _judge_precision(manifest: Manifest) -> Iterator[Sentence]:
    export = manifest.export
    if export.precision != "fp32":
        yield Sentence(
            "note",
            f"In {export.precision} the file itself is right on {write_share(export.served.accuracy.accuracy)} of the "
            f"held-out prompts, and answers like the circuit in fp32 on {write_share(export.served.agreement)}.",
        )
    if export.vocabulary is not None:
        yield Sentence(
            "note", f"It knows {write_count(export.vocabulary)} tokens, and says so where a prompt has another one."
        )
    if manifest.guard is not None:
        yield Sentence("note", f"It says where a prompt is not of its task: {describe_guard(manifest.guard)}.")


def _notes(manifest: Manifest) -> Iterator[Sentence]:
    for note in manifest.notes:
        yield Sentence("note", _end(note))


def _judge_controls(manifest: Manifest) -> Iterator[Sentence]:
    if manifest.controls is not None:
        for text in describe_controls(manifest.controls, manifest.test.circuit):
            yield Sentence("note", _end(text))


def _end(text: str) -> str:
    """A clause as a sentence."""
    return f"{text[:1].upper()}{text[1:]}."
