"""Names of layers: which of them a shell pattern means, and distinct short forms of them."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable

GAP = "…"


def fits(name: str, pattern: str) -> bool:
    """Whether a shell pattern means this layer.

    It may match the name, or what is before the number of one of several matrices: both
    ``experts`` and ``experts[3]`` mean ``experts[3]``. Brackets may be meant as they are, or as a
    choice of characters.
    """
    literal = pattern.replace("[", "[[]")
    names = {name, name.rpartition("[")[0] if name.endswith("]") else name}
    return any(fnmatch.fnmatchcase(n, p) for n in names for p in (pattern, literal))


def short_names(names: Iterable[str], width: int) -> dict[str, str]:
    """Distinct short forms of at most ``width`` characters, the same for the same names.

    Names that fit stay. Of the others, what leads to the last part is cut to as many letters as
    fit (``layer1.0.conv2`` is ``l1.0.conv2``), then the last part has a gap; numbers stay whole,
    they tell layers apart. Where that is not distinct, a number says which (``…up~2``). Raises
    ValueError for a width of less than 4, where nothing could be told.
    """
    if width < 4:
        raise ValueError(f"a width of {width} is too small for names: give at least 4")
    names = list(dict.fromkeys(names))
    longest = max(map(len, names), default=0)
    short = {n: n for n in names}
    if longest <= width:
        return short
    for letters in range(longest, 0, -1):
        short = {n: n if len(n) <= width else _initials(n, letters) for n in names}
        if all(len(s) <= width for s in short.values()) and len({*short.values()}) == len(names):
            return short
    short = {n: n if len(n) <= width else _gapped(_initials(n, 1), width) for n in names}
    return _distinct(short, width)


def _initials(name: str, letters: int) -> str:
    """``layer1.0.conv2`` as ``l1.0.conv2``: the words that lead to the last one, cut."""
    *lead, last = name.split(".")
    cut = (re.fullmatch(r"(.*?)(\d*(?:\[\d+\])?)", part) for part in lead)
    return ".".join([*(m[1][:letters] + m[2] for m in cut if m), last])


def _gapped(name: str, width: int) -> str:
    """At most ``width`` characters: a gap inside, cut where no number is, if that can be."""
    if len(name) <= width:
        return name
    tail = (width - 1) * 3 // 5
    while tail < width - 1 and name[-tail].isdigit() and name[-tail - 1].isdigit():
        tail += 1
    head = width - 1 - tail
    while head and name[head - 1].isdigit() and name[head].isdigit():
        head -= 1
    return f"{name[:head]}{GAP}{name[-tail:]}"


def _distinct(short: dict[str, str], width: int) -> dict[str, str]:
    """The same with a number behind those that are not the only ones."""
    often = Counter(short.values())
    taken = {s for s, k in often.items() if k == 1}
    for name, given in short.items():
        if often[given] == 1:
            continue
        number = 1
        while True:
            mark = f"~{number}"
            candidate = given[: width - len(mark)] + mark
            if candidate not in taken:
                break
            number += 1
        taken.add(candidate)
        short[name] = candidate
    return short
