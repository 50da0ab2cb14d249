"""Any file as the tokens of a published model, in windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.types import Dataset, Split, content_hash
from experiments.data.windows import CALIBRATION_WINDOWS, HELDOUT_WINDOWS, TEST_WINDOWS, spread

SMALLEST = 8  # windows of either part
SPLIT_RULE = "contiguous: calibration from the first 40 %, the rest is tested on"


def load(path: Path, tokenizer: Path, length: int, vocabulary: int) -> Dataset:
    """Windows ``int [N, length]`` of a UTF-8 text, which do not overlap, each with its next tokens.

    tokenizer: a tokenizer.json; no token is added (no beginning of a sequence). ``train`` is what
    calibration draws are taken from: the model was trained elsewhere. Raises ValueError for a text
    that cannot be read or is too short, and for a tokenizer that has more tokens than the model.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ValueError(f"text file {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"text file {path}: is no UTF-8 text ({error})") from error
    reader = _reader(tokenizer)
    cut = len(text) * 2 // 5
    cut = text.find("\n", cut) + 1 or cut  # a line stays whole
    parts = {"calibration": text[:cut], "test": text[cut:]}
    found: dict[str, Split] = {}
    for part, piece in parts.items():
        ids = np.asarray(reader.encode(piece, add_special_tokens=False).ids, np.int32)
        if len(ids) and ids.max() >= vocabulary:
            raise ValueError(
                f"{tokenizer}: gives token {ids.max()}, but the model knows {vocabulary} tokens"
            )
        if len(ids) < SMALLEST * (length + 1):
            raise ValueError(
                f"text file {path}: its part for {part} has {len(ids)} tokens, too few for "
                f"{SMALLEST} windows of {length + 1}: give a longer text, or a smaller --window"
            )
        rows = ids[: len(ids) // (length + 1) * (length + 1)].reshape(-1, length + 1)
        found[part] = Split(rows[:, :-1], rows[:, 1:], np.arange(len(rows), dtype=np.int32))
    pool, test = found["calibration"], found["test"]
    info: dict[str, Any] = {"source": path.name, "split": SPLIT_RULE, "window": length}
    return Dataset(
        name=path.name,
        kind="text",
        train=pool,
        calibration=spread(pool, CALIBRATION_WINDOWS),
        test=spread(test, TEST_WINDOWS),
        heldout=spread(test, HELDOUT_WINDOWS),
        hash=content_hash(pool.inputs, pool.targets, test.inputs, test.targets),
        info=info | {"windows": {part: len(split) for part, split in found.items()}},
        pool=pool,
    )


def _reader(tokenizer: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ValueError(
            f"{tokenizer}: to read it takes the package tokenizers: pip install tokenizers, or "
            "install this package with its extra, '.[hub]'"
        ) from error
    try:
        return Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the library raises Exception itself
        raise ValueError(
            f"{tokenizer}: is no tokenizer that tokenizers can read ({error})"
        ) from error
