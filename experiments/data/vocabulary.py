"""Texts as a published model's tokens: tokenizer.json, or the vocabulary of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perturb.checkpoints import is_gguf
from perturb.checkpoints.gguf import metadata
from perturb.extras import how_to_install

# How a text is cut before pairs are merged, by the name that a GGUF file has for it: digits apart,
# and the pattern of words (None: GPT-2's own).
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS: dict[str, tuple[bool, str | None]] = {
    "gpt-2": (False, None),
    "smollm": (True, None),
    "llama-bpe": (False, WORDS % "{1,3}"),
    "qwen2": (False, WORDS % ""),
}
CONTROL, OWN = 3, 4  # types of tokens: never in a text, and added by the model's authors


def reader(path: Path) -> Any:
    """A ``tokenizers.Tokenizer``. Raises ValueError for a file that none can be read from."""
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            f"{path}: to read it takes the package tokenizers: "
            f"{how_to_install('tokenizers', 'hub')}"
        ) from error
    if is_gguf(path):
        return _built(path, metadata(path), tokenizers)
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"{path}: is no tokenizer that tokenizers can read ({error})") from error


def _built(path: Path, said: dict[str, Any], tokenizers: Any) -> Any:
    """Byte-level pair encoding from the tokens and merges of a file."""
    model, cut = said.get("tokenizer.ggml.model"), said.get("tokenizer.ggml.pre", "gpt-2")
    if model != "gpt2" or cut not in CUTS:
        raise ValueError(
            f"{path}: its vocabulary is {model!r}, cut by {cut!r}: only 'gpt2' by "
            f"{', '.join(map(repr, CUTS))} can be read; put the model's tokenizer.json beside it"
        )
    tokens, merges = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.merges"]
    digits, words = CUTS[cut]
    split = tokenizers.pre_tokenizers
    steps = [split.Digits(individual_digits=True)] if digits else []
    if words is not None:
        steps.append(split.Split(tokenizers.Regex(words), "isolated"))
    steps.append(split.ByteLevel(add_prefix_space=False, use_regex=words is None))
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {token: i for i, token in enumerate(tokens)},
            [(left, right) for left, _, right in (m.partition(" ") for m in merges)],
            ignore_merges=cut == "llama-bpe",
        )
    )
    made.pre_tokenizer = split.Sequence(steps)
    made.decoder = tokenizers.decoders.ByteLevel()
    if cut == "qwen2":
        made.normalizer = tokenizers.normalizers.NFC()
    kinds = said.get("tokenizer.ggml.token_type", [1] * len(tokens))
    for kind, add in ((CONTROL, made.add_special_tokens), (OWN, made.add_tokens)):
        add([token for token, its in zip(tokens, kinds, strict=True) if its == kind])
    return made
