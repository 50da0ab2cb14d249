"""Any file as the tokens of a published model, in windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import vocabulary
from experiments.data.types import Dataset, Split, content_hash
from experiments.data.windows import CALIBRATION_WINDOWS, HELDOUT_WINDOWS, TEST_WINDOWS, spread

SMALLEST = 8  # windows of either part
SPLIT_RULE = "contiguous: calibration from the first 40 %, the rest is tested on"


def load(
    path: Path, tokenizer: Path, length: int, known: int, tests: int = TEST_WINDOWS
) -> Dataset:
    """Windows ``int [N, length]`` of a UTF-8 text, which do not overlap, each with its next tokens.

    tokenizer: a tokenizer.json, or a GGUF file; no token is added (no beginning of a sequence).
    known: how many tokens the model has; tests: how many windows are tested on. ``train`` is what
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
    encoder = vocabulary.reader(tokenizer)
    cut = len(text) * 2 // 5
    cut = text.find("\n", cut) + 1 or cut  # a line stays whole
    parts = {"calibration": text[:cut], "test": text[cut:]}
    found: dict[str, Split] = {}
    for part, piece in parts.items():
        ids = np.asarray(encoder.encode(piece, add_special_tokens=False).ids, np.int32)
        if len(ids) and ids.max() >= known:
            raise ValueError(
                f"{tokenizer}: gives token {ids.max()}, but the model knows {known} tokens"
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
        test=spread(test, tests),
        heldout=spread(test, HELDOUT_WINDOWS),
        hash=content_hash(pool.inputs, pool.targets, test.inputs, test.targets),
        info=info | {"windows": {part: len(split) for part, split in found.items()}},
        pool=pool,
    )
