"""The record of a set of files on its way into place: what a crash in the middle leaves to the next writer."""

from __future__ import annotations

from dataclasses import dataclass, field

from exporter.files.reading import parse_json

FORWARD, BACK = ".forward", ".back"  # the record's file name is the direction: turning it needs no space
MOST_RECORD = 1 << 16  # bytes


@dataclass(frozen=True)
class Record:
    """What is to be put in place.

    new: the inode numbers of the new files by name, in the order in which they are moved, the manifest last.
    leaving: names of the old set that are removed with it. stage, folder: the inode numbers of the hidden folder and
    of its parent, so that a copy of the record elsewhere is not taken for one.
    """

    stage: int
    folder: int
    new: dict[str, int]
    leaving: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, text: bytes) -> Record | None:
        """From a record's text; None for anything that this class would not write."""
        try:
            data = parse_json(text)
        except ValueError:
            return None
        if not isinstance(data, dict) or set(data) != {"stage", "folder", "new", "leaving"}:
            return None
        new, leaving = data["new"], data["leaving"]
        numbers = [data["stage"], data["folder"], *(new.values() if isinstance(new, dict) else [None])]
        texts = leaving if isinstance(leaving, list) else [None]
        if not all(type(n) is int for n in numbers) or not all(type(t) is str for t in texts) or not new:
            return None
        return cls(**data)
