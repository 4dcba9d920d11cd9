"""Folders with something planted in them, and what a folder is, to the byte."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

OWN = ("m.onnx", "m.json", "m-0123456789abcdef.onnx.data", "m.onnx.data", ".m.onnx.partial", "m.onnx.journal")
STAGE, JOURNAL = OWN[4:]


def hash_tree(folder: Path) -> dict[str, str]:
    """Every entry below the folder: its kind, mode, owner, second of change, and content or where it leads."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        what = ""
        if path.is_symlink():
            what = str(path.readlink())
        elif path.is_file():
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = f"{status.st_mode:o} {status.st_uid} {status.st_mtime_ns} {what}"
    return found


class Planter:
    """Puts random things at the names that a writer looks at; draws come from one seed."""

    def __init__(self, work: Path, outside: Path, seed: int) -> None:
        self.work = work
        self.outside = outside
        self.rng = random.Random(seed)

    def name(self) -> str:
        """A file name as a record could hold it: of the set, of a neighbour, or leading out."""
        out = os.path.relpath(self.outside, self.work)
        return self.rng.choice(
            ["m.onnx", "m.json", "m-0123456789abcdef.onnx.data", "notes.txt", f"{out}/profile", f"{out}/folder",
             str(self.outside / "profile"), "..", ".", "", "/", "m.onnx/../notes.txt", "a\0b", "link", JOURNAL,
             "m-../../x.onnx.data", "m-0123456789ABCDEF.onnx.data", "old-m.onnx", "m.onnx\n"]
        )  # fmt: skip

    def record(self, stage: Path) -> Any:
        """What a record could hold: today's form with right and wrong numbers, an older one's, or nonsense."""
        rng, names = self.rng, [self.name() for _ in range(self.rng.randint(0, 4))]
        stage_ino, folder_ino = stage.stat().st_ino, self.work.stat().st_ino
        number = rng.choice([stage_ino, folder_ino, 0, -1, True, "1", None, 2**70])
        numbers = {name: self.inode(stage / name if name and "\0" not in name else stage) for name in names}
        return rng.choice(
            [
                {"stage": stage_ino, "folder": folder_ino, "new": numbers, "leaving": [self.name()]},
                {"stage": stage_ino, "folder": number, "new": numbers, "leaving": []},
                {"stage": number, "folder": folder_ino, "new": numbers, "leaving": [self.name()]},
                {"stage": stage_ino, "folder": folder_ino, "new": dict.fromkeys(names, number), "leaving": names},
                {"stage": stage_ino, "folder": folder_ino, "new": names, "leaving": numbers},
                {"names": names, "existed": names},
                {"names": names, "existed": []},
                names, None, 1, "x", {}, [[]] * 3, {"stage": {}},
            ]
        )  # fmt: skip

    def inode(self, path: Path) -> int:
        try:
            return path.lstat().st_ino
        except OSError:
            return self.rng.randint(0, 1 << 30)

    def plant(self) -> None:
        """Something at the stage, at the lock in it, and at the journal; or nothing."""
        stage, rng = self.work / STAGE, self.rng
        kind = rng.choice(["none", "link", "dangling", "file", "pipe", *["folder"] * 8])
        self.put(stage, kind)
        if kind == "folder":
            for name in {self.name() for _ in range(rng.randint(0, 4))} - {"", "/", ".", ".."}:
                place = stage / name
                if "\0" not in name and place.parent == stage and place.name == name and not os.path.lexists(place):
                    self.put(place, rng.choice(["link", "dangling", "file", "folder", "hard"]))
            self.put(stage / ".lock", rng.choice(["none", "link", "dangling", "file", "pipe", "hard"]))
            for name in rng.sample([".forward", ".back", ".draft"], 2):
                self.put(stage / name, rng.choice(["none", "link", "dangling", "record", "record", "record", "folder"]))
        self.put(
            self.work / JOURNAL, rng.choice(["none", "link", "dangling", "file", "pipe", "folder", "hard", "line"])
        )
        for name in ("m.onnx", "m.json"):
            self.put(self.work / name, rng.choice(["none", "none", "file", "link", "hard"]))

    def put(self, place: Path, kind: str) -> None:
        """One entry of this kind."""
        target = self.rng.choice([self.outside / "profile", self.outside / "folder", self.work / "notes.txt"])
        match kind:
            case "link":
                place.symlink_to(target)
            case "dangling":
                place.symlink_to(self.outside / "new")
            case "hard":
                place.hardlink_to(self.outside / "profile")
            case "pipe":
                os.mkfifo(place)
            case "folder":
                place.mkdir()
            case "file":
                place.write_bytes(self.rng.choice([b"mine", b"{}", b"0123456789abcdef", b"0" * 16 + b' {"journal": 1']))
            case "record":
                place.write_text(json.dumps(self.record(place.parent)))
            case "line":
                text = self.rng.choice(['{"journal": 1, "key": {}}', "1", '{"journal": 9}', "[]"])
                place.write_text(f"{hashlib.sha256(text.encode()).hexdigest()[:16]} {text}\n")
