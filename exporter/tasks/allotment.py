"""Share out groups that are not to be parted among sets of wanted sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

Group = Sequence[int]


def allot_groups(
    groups: Sequence[Group], wanted: Mapping[str, int], fewest: Mapping[str, int], *, level: bool
) -> dict[str, list[int]]:
    """The rows of each set: a quarter for patching, a quarter for selection, the rest for test, none above `wanted`.

    No group is in two sets. Groups of several go first, the largest before the others, each to the set with the most
    room, or with `level` to the set that is furthest below its `fewest`; single rows then fill the sets up, in the
    order in which they come. A set may have more than its share, but not more than is wanted: the rows of a group
    beyond that are in no set.
    """
    names = tuple(wanted)
    targets = _share_out(sum(map(len, groups)), wanted)
    enough = _count_enough(groups, sum(targets.values()))
    chosen = groups[:enough]
    sets: dict[str, list[int]] = {name: [] for name in names}

    def room(name: str) -> int:
        return targets[name] - len(sets[name])

    def need(name: str) -> tuple[int, int]:
        return (max(0, fewest[name] - len(sets[name])) if level else 0), room(name)

    for group in sorted((group for group in chosen if len(group) > 1), key=len, reverse=True):
        name = max(names, key=need)
        sets[name] += group[: max(0, wanted[name] - len(sets[name]))]
    singles = [group[0] for group in chosen if len(group) == 1]
    rooms = [max(0, room(name)) for name in names]
    n, total = len(singles), sum(rooms)
    ends = [0, *(end if n >= total else round(n * end / total) for end in accumulate(rooms))]
    for name, start, end in zip(names, ends[:-1], ends[1:], strict=True):
        sets[name] += singles[start:end]
    for group in [*([row] for row in singles[ends[-1] :]), *groups[enough:]]:
        name = max(names, key=room)
        if room(name) <= 0:
            break
        sets[name] += group[: room(name)]
    return sets


def _share_out(n: int, wanted: Mapping[str, int]) -> dict[str, int]:
    """How many of n rows each set is to have."""
    patching, selection = (min(wanted[name], n // 4) for name in ("patching", "selection"))
    return {"patching": patching, "selection": selection, "test": min(wanted["test"], n - patching - selection)}


def _count_enough(groups: Sequence[Group], rows: int) -> int:
    """How many of the first groups hold this many rows."""
    ends = accumulate(map(len, groups))
    return next((number for number, end in enumerate(ends, start=1) if end >= rows), len(groups))
