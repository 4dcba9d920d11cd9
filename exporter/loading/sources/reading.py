"""One reading of a text: what is put before it, its tokens, and nothing behind them.

A checkpoint can say in several places what its tokenizer does: in tokenizer.json, in settings beside it that
transformers' classes act on, in a post-processor that appends an end of text, in what is meant for training. A
prompt that is read in two ways is two prompts. So a tokenizer is settled once, when it is loaded: what transformers
puts before a text stays, what it puts behind goes, and from then on the plain `encode(text).ids` of one
`tokenizers.Tokenizer` is the reading. Neither torch nor transformers is needed here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import InputError, refuse_panics
from exporter.files import parse_json, read_text
from exporter.files.names import TOKENIZER
from exporter.loading.sources.tokenizer_bounds import LARGEST_FILE, check_bounds
from exporter.tasks.template import Template

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PROBES = ("a", "b c", "1.", "z")
_MORE_PROBES = 64  # texts of single tokens, for vocabularies that know none of those above


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json that stands for itself, settled. Raises InputError."""
    from tokenizers import Tokenizer

    data = read_tokenizer_json(path)
    try:
        with refuse_panics(f"{path} cannot be read"):
            return settle_backend(Tokenizer.from_str(json.dumps(data)), path.parent)
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())[:100]}); get it again") from error


def read_prompt(backend: Tokenizer, text: str) -> tuple[list[int], int]:
    """The tokens of a prompt, and how many of them are put before it. Raises InputError."""
    try:
        with refuse_panics("the tokenizer cannot read this prompt"):
            read = backend.encode(text)
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(f"the tokenizer cannot read this prompt ({' '.join(str(error).split())[:100]})") from error
    mask = read.special_tokens_mask
    return read.ids, mask.index(0) if 0 in mask else len(mask)


def read_tokenizer_json(path: Path) -> dict[str, Any]:
    """A tokenizer.json that reads each text in one way only: nothing random, nothing cut off or padded.

    Raises InputError for one that is none, or that makes more of a text than any tokenizer needs to.
    """
    try:
        data = parse_json(read_text(path, most=LARGEST_FILE))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())[:100]}); get it again") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} must be a JSON object, not {type(data).__name__}; get it again")
    check_bounds(data, path)
    data |= {"truncation": None, "padding": None}
    model = data["model"]
    if model.get("dropout") is not None:
        model["dropout"] = None  # for training: it leaves out merges at random
    for name in ("alpha", "nbest_size"):  # Unigram's sampling
        model.pop(name, None)
    return data


def settle_backend(backend: Tokenizer, source: Path | str) -> Tokenizer:
    """Keep the special tokens before a text, drop those behind it, and turn off cutting, padding and random merges.

    Returns the same object, changed. Raises InputError where special tokens stand elsewhere.
    """
    backend.encode_special_tokens = False
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None  # BPE's own
    write_frame(backend, find_lead(backend, source))
    return backend


def find_lead(backend: Tokenizer, source: Path | str) -> tuple[int, ...]:
    """The special tokens that a tokenizer puts before each text. Raises InputError where texts get different ones."""
    leads: set[tuple[int, ...]] = set()
    for text in read_probes(backend, source):
        ids, full = backend.encode(text, add_special_tokens=False).ids, backend.encode(text)
        n_lead = full.special_tokens_mask.index(0)
        if full.ids[n_lead : n_lead + len(ids)] != ids or not all(full.special_tokens_mask[n_lead + len(ids) :]):
            raise InputError(f"the tokenizer in {source} puts special tokens into a text, not before it; give another")
        leads.add(tuple(full.ids[:n_lead]))
    if len(leads) > 1:
        raise InputError(f"the tokenizer in {source} puts other special tokens before other texts; give another")
    return leads.pop() if leads else ()


def read_probes(backend: Tokenizer, source: Path | str) -> list[str]:
    """A few short texts that the tokenizer has tokens for. Raises InputError where it panics."""
    probes: list[str] = []
    for text in (*_PROBES, *(backend.decode([token]) for token in range(_MORE_PROBES))):
        if len(probes) == len(_PROBES):
            break
        try:
            with refuse_panics(f"the tokenizer in {source} cannot read a text"):
                if 0 in backend.encode(text).special_tokens_mask:
                    probes.append(text)
        except InputError:
            raise
        except Exception:  # a vocabulary of whole words, without a token for others, has none for this text
            continue
    return probes


def write_frame(backend: Tokenizer, lead: Sequence[int], behind: Sequence[int] = ()) -> None:
    """Make a tokenizer put these tokens before each text, and these behind it, and no others."""
    from tokenizers import processors

    around = [*lead, *behind]
    names = [backend.id_to_token(token) for token in around]
    marks = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
    first, last = marks[: len(lead)], marks[len(lead) :]
    text, second = ({"Sequence": {"id": name, "type_id": kind}} for name, kind in (("A", 0), ("B", 1)))
    special = {name: {"id": name, "ids": [token], "tokens": [name]} for name, token in zip(names, around, strict=True)}
    state = {
        "type": "TemplateProcessing",
        "single": [*first, text, *last],
        "pair": [*first, text, *last, second],
        "special_tokens": special,
    }
    processor = processors.TemplateProcessing(single="$A")
    processor.__setstate__(json.dumps(state).encode())  # its own arguments cannot name a token with a colon or a space
    backend.post_processor = processor


def check_reading(
    path: Path,
    searched: Any,
    readings: Sequence[tuple[str, Sequence[int]]],
    examples: Sequence[Sequence[int]],
    *,
    template: Template | None = None,
) -> None:
    """Raise InputError unless the tokenizer.json at `path`, as it lies there, reads prompts as the search did.

    template: what the file puts around each text itself; it is then given the texts within it.

    searched: the tokenizer of the search. readings: prompts as text, with the search's tokens. examples: tokens alone;
    their text is what they are decoded to, which in some tokenizers, and for prompts given as ids, is another prompt's.
    """
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(path))  # nothing of ours between: as the bundle's script reads it
    lead = list(find_lead(searched.backend_tokenizer, path.parent))
    bodies = [list(ids[len(lead) :] if list(ids[: len(lead)]) == lead else ids) for ids in examples]
    texts = [text for body in bodies if body and (text := str(searched.decode(body)))]
    if template is not None:  # others are none of its prompts
        texts, readings = list(filter(template.fits, texts)), [one for one in readings if template.fits(one[0])]
    for text, ids in [*readings, *((text, searched.encode(text)) for text in texts)]:
        if (found := plain.encode(text if template is None else template.cut(text)).ids) != list(ids):
            raise InputError(
                f"the bundle's {TOKENIZER} would read the prompt {text[:60]!r} as {len(found)} tokens "
                f"({_show(found)}), but the search read {len(ids)} ({_show(ids)}); save the model's tokenizer again "
                "with save_pretrained, or leave out --bundle"
            )


def _show(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:6])) + (", ..." if len(ids) > 6 else "")
