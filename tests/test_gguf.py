"""GGUF files written here: weights are what naive loops over their blocks say, models are those of
the folder that the file was made from, what is wrong is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import brown, vocabulary
from experiments.models.llama import LlamaConfig, RopeScaling, rope_frequencies
from experiments.published import load
from experiments.published.task import task_of
from experiments.study import Checkpoint
from perturb.checkpoints import is_checkpoint, open_checkpoint
from perturb.checkpoints.gguf import FACTORS
from tests.test_checkpoints import answer, written

gguf = pytest.importorskip("gguf")
pytest.importorskip("tokenizers")

HIDDEN, INNER, HEADS, KV, SIZE = 64, 96, 4, 2, 16
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 256,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "max_position_embeddings": 64,
}
THEIRS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
BYTES = [chr(c) for c in range(256, 512)]  # a vocabulary that is only counted


def drawn() -> dict[str, np.ndarray]:
    """Tensors of a folder of CONFIG."""
    at = "model.layers.0."
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (256, HIDDEN),
        "model.norm": (HIDDEN,),
        f"{at}input_layernorm": (HIDDEN,),
        f"{at}post_attention_layernorm": (HIDDEN,),
        f"{at}self_attn.q_proj": (HEADS * SIZE, HIDDEN),
        f"{at}self_attn.k_proj": (KV * SIZE, HIDDEN),
        f"{at}self_attn.v_proj": (KV * SIZE, HIDDEN),
        f"{at}self_attn.o_proj": (HIDDEN, HEADS * SIZE),
        f"{at}mlp.gate_proj": (INNER, HIDDEN),
        f"{at}mlp.up_proj": (INNER, HIDDEN),
        f"{at}mlp.down_proj": (HIDDEN, INNER),
    }
    rng = np.random.default_rng(0)
    made = {f"{n}.weight": rng.normal(size=s).astype(np.float32) * 0.3 for n, s in shapes.items()}
    return {n: a + ("norm" in n) for n, a in made.items()}


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of rotary channels as GGUF has them: pair (i, i + D/2) of a head at (2 i, 2 i + 1)."""
    out = np.empty_like(rows)
    size = len(rows) // heads
    for h in range(heads):
        for i in range(size // 2):
            out[h * size + 2 * i] = rows[h * size + i]
            out[h * size + 2 * i + 1] = rows[h * size + size // 2 + i]
    return out


def file(
    path: Path,
    held: dict[str, np.ndarray],
    kind: str = "F32",
    change: dict[str, Any] | None = None,
    tokens: list[str] | None = None,
    merges: tuple[str, ...] = (),
) -> Path:
    """The folder's tensors as a GGUF file, matrices stored as ``kind``; change: keys, None: left
    out."""
    said = {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": HIDDEN,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "architecture": "llama",
        "pre": "smollm",
        **(change or {}),
    }
    arch = said.pop("architecture")
    writer = gguf.GGUFWriter(path, arch)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(said.pop("pre"))
    writer.add_token_list(tokens or BYTES)
    writer.add_token_merges(list(merges) or ["a b"])
    for key, value in said.items():
        if isinstance(value, float):
            writer.add_float32(f"{arch}.{key}", value)
        elif isinstance(value, str):
            writer.add_string(f"{arch}.{key}", value)
        elif value is not None:
            writer.add_uint32(f"{arch}.{key}", value)
    for name, array in held.items():
        inner = name.removeprefix("model.layers.0.").removesuffix(".weight")
        theirs = THEIRS.get(inner, inner)
        if "layers.0" in name:
            theirs = f"blk.0.{theirs}"
        for part, heads in (("q_proj", HEADS), ("k_proj", KV)):
            if part in name and arch == "llama":
                array = interleaved(array, heads)
        wanted = getattr(gguf.GGMLQuantizationType, kind if array.ndim > 1 else "F32")
        stored = gguf.quantize(array, wanted)
        end = "" if theirs == FACTORS else ".weight"
        writer.add_tensor(theirs + end, stored, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_is_the_model_of_the_folder_it_was_made_from(tmp_path: Path, tied: bool) -> None:
    held = drawn()
    if not tied:
        held["lm_head.weight"] = held["model.embed_tokens.weight"][::-1].copy()
    folder = written(tmp_path / "folder", CONFIG | {"tie_word_embeddings": tied}, held)
    path = file(tmp_path / "m.gguf", held)
    assert is_checkpoint(path)
    tokens = jnp.arange(20).reshape(2, 10) * 7 % 256
    ours, theirs = load(path), load(folder)
    np.testing.assert_array_equal(answer(ours.model, tokens), answer(theirs.model, tokens))
    assert ours.tokenizer == path
    assert "stored as F32" in ours.description


def test_a_family_without_interleaved_pairs(tmp_path: Path) -> None:
    held = drawn()
    held |= {
        f"model.layers.0.self_attn.{n}_proj.bias": np.arange(rows * SIZE, dtype=np.float32)
        for n, rows in (("q", HEADS), ("k", KV), ("v", KV))
    }
    folder = written(tmp_path / "folder", CONFIG | {"architectures": ["Qwen2ForCausalLM"]}, held)
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    for key, value in (
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", INNER),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV),
        ("vocab_size", 256),
    ):
        writer.add_uint32(f"qwen2.{key}", value)
    writer.add_float32("qwen2.attention.layer_norm_rms_epsilon", 1e-5)
    for name, array in held.items():
        stem, _, end = name.removeprefix("model.layers.0.").rpartition(".")
        at = "blk.0." if "layers.0" in name else ""
        writer.add_tensor(f"{at}{THEIRS[stem]}.{end}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokens = jnp.arange(20).reshape(2, 10) * 7 % 256
    np.testing.assert_array_equal(
        answer(load(path).model, tokens), answer(load(folder).model, tokens)
    )


def half(raw: bytes) -> float:
    return float(np.frombuffer(raw, np.float16)[0])


def q8_0(raw: bytes) -> list[float]:
    return [half(raw[:2]) * int(np.int8(b)) for b in np.frombuffer(raw[2:], np.int8)]


def q4_0(raw: bytes) -> list[float]:
    nibbles = [b & 15 for b in raw[2:]] + [b >> 4 for b in raw[2:]]
    return [half(raw[:2]) * (n - 8) for n in nibbles]


def q4_1(raw: bytes) -> list[float]:
    nibbles = [b & 15 for b in raw[4:]] + [b >> 4 for b in raw[4:]]
    return [half(raw[:2]) * n + half(raw[2:4]) for n in nibbles]


def q4_k(raw: bytes) -> list[float]:
    """256 weights: two halves, 12 bytes of eight scales and minima in 6 bits, nibbles."""
    d, low, s, out = half(raw[:2]), half(raw[2:4]), raw[4:16], []
    for j in range(8):
        if j < 4:
            scale, minimum = s[j] & 63, s[j + 4] & 63
        else:
            scale = (s[j + 4] & 15) | (s[j - 4] >> 6 << 4)
            minimum = (s[j + 4] >> 4) | (s[j] >> 6 << 4)
        part = raw[16 + 32 * (j // 2) : 16 + 32 * (j // 2) + 32]
        out += [d * scale * (b >> 4 if j % 2 else b & 15) - low * minimum for b in part]
    return out


def q6_k(raw: bytes) -> list[float]:
    """256 weights: 128 bytes of low nibbles, 64 of high pairs, 16 signed scales, a half."""
    low, high, scales, d = raw[:128], raw[128:192], np.frombuffer(raw[192:208], np.int8), None
    d = half(raw[208:210])
    out = []
    for k in range(256):
        block, at = divmod(k, 128)
        row, i = divmod(at, 32)  # four rows of 32
        nibble = low[64 * block + 32 * (row % 2) + i]
        nibble = nibble >> 4 if row >= 2 else nibble & 15
        pair = high[32 * block + i] >> (2 * row) & 3
        out.append(d * int(scales[k // 16]) * ((nibble | pair << 4) - 32))
    return out


@pytest.mark.parametrize("naive", [q8_0, q4_0, q4_1, q4_k, q6_k], ids=lambda f: f.__name__)
def test_blocks_are_what_loops_over_their_bytes_say(tmp_path: Path, naive: Any) -> None:
    kind = getattr(gguf.GGMLQuantizationType, naive.__name__.upper())
    count, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(1)
    rows, blocks = 3, 2
    raw = rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    scales = {"Q6_K": (208,), "Q4_1": (0, 2), "Q4_K": (0, 2)}.get(kind.name, (0,))
    for at in scales:  # halves that are numbers
        raw[..., at : at + 2] = rng.normal(size=(rows, blocks, 1)).astype(np.float16).view(np.uint8)
    held = drawn() | {"model.norm.weight": np.ones(HIDDEN, np.float32)}
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (("block_count", 1), ("context_length", 64), ("embedding_length", HIDDEN)):
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint32("llama.feed_forward_length", INNER)
    writer.add_uint32("llama.attention.head_count", HEADS)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tensor("blk.0.ffn_down.weight", raw.reshape(rows, -1), raw_dtype=kind)
    writer.add_tensor("output_norm.weight", held["model.norm.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = open_checkpoint(path).tensors["model.layers.0.mlp.down_proj.weight"]
    assert found.stored == kind.name
    assert found.shape == (rows, blocks * count)
    expected = [[v for b in row for v in naive(b.tobytes())] for row in raw]
    np.testing.assert_allclose(found.read(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_rotary_rows_return_to_their_places_whatever_they_are_stored_as(
    tmp_path: Path, kind: str
) -> None:
    held = drawn()
    tensors = open_checkpoint(file(tmp_path / "m.gguf", held, kind)).tensors
    bits = {"F16": 11, "BF16": 8, "Q8_0": 7, "Q4_0": 3, "Q4_1": 3}[kind]
    for name, array in held.items():
        found = tensors[name].read()
        step = np.abs(array).max() * 2.0**-bits
        assert np.abs(found - array).max() <= 2 * step, name


def test_the_scaling_of_llama_3_is_known_by_its_divisors(tmp_path: Path) -> None:
    scaling = RopeScaling(factor=32.0)
    plain, scaled = (rope_frequencies(SIZE, 10_000.0, s) for s in (None, scaling))
    held = drawn()
    path = file(
        tmp_path / "m.gguf",
        held | {FACTORS: (plain / scaled).astype(np.float32)},
        change={"context_length": 131_072},
    )
    folder = written(
        tmp_path / "folder",
        CONFIG
        | {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
        },
        held,
    )
    tokens = jnp.arange(120).reshape(2, 60) * 7 % 256
    np.testing.assert_allclose(
        answer(load(path).model, tokens), answer(load(folder).model, tokens), rtol=1e-5, atol=1e-5
    )
    odd = file(tmp_path / "odd.gguf", held | {FACTORS: np.arange(1.0, 9.0, dtype=np.float32)})
    with pytest.raises(ValueError, match="only Llama 3's scaling"):
        open_checkpoint(odd)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architecture": "mamba"}, "general.architecture = 'mamba': only llama, qwen2"),
        ({"attention.head_count": None}, "llama.attention.head_count is missing"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}, "'yarn'"),
        ({"rope.dimension_count": 8}, "partial_rotary_factor"),
        ({"attention.sliding_window": 32}, "llama.attention.sliding_window"),
        ({"block_count": 2}, "model.layers.1.input_layernorm.weight is missing"),
        ({"feed_forward_length": 80}, "it must be [64, 80]"),
    ],
)
def test_what_is_refused_by_name(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = file(tmp_path / "m.gguf", drawn(), change=change)
    with pytest.raises(ValueError) as error:
        load(path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_damaged_files_and_missing_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = file(tmp_path / "m.gguf", drawn())
    short = tmp_path / "short.gguf"
    for size in (10, 200, 20_000):
        short.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(ValueError, match=f"no whole GGUF file of {size} bytes"):
            load(short)
    with pytest.raises(ValueError, match=r"no such folder .* no such .gguf file"):
        load(tmp_path / "none.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    other = tmp_path / "other.gguf"
    other.write_bytes(whole.read_bytes())
    with pytest.raises(ValueError, match="pip install gguf"):
        load(other)


def letters() -> tuple[list[str], tuple[str, ...]]:
    """All bytes as byte-level encoders write them, and three merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = ("t h", "th e", "Ġ the")
    return [*sorted(ByteLevel.alphabet()), "th", "the", "Ġthe", "<end>"], merges


@pytest.mark.parametrize("cut", sorted(vocabulary.CUTS))
def test_a_vocabulary_encodes_and_gives_texts_back(tmp_path: Path, cut: str) -> None:
    tokens, merges = letters()
    path = file(tmp_path / "m.gguf", drawn(), change={"pre": cut}, tokens=tokens, merges=merges)
    made = vocabulary.reader(path)
    for text in ("the year 1984, then\n\n  déjà vu: the-the", "", " 12345 \t 日本"):
        found = made.encode(text, add_special_tokens=False)
        assert made.decode(found.ids) == text
    assert made.encode("the theme").tokens == ["the", "Ġthe", "m", "e"]
    assert made.encode("in 98").tokens[-2:] == ["9", "8"]


def test_vocabularies_that_cannot_be_built_ask_for_the_models_own(tmp_path: Path) -> None:
    path = file(tmp_path / "m.gguf", drawn(), change={"pre": "tekken"})
    with pytest.raises(ValueError, match=r"put the model's tokenizer.json beside it"):
        vocabulary.reader(path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert open_checkpoint(path).tokenizer == tmp_path / "tokenizer.json"


def test_a_study_of_a_file(tmp_path: Path) -> None:
    tokens, merges = letters()
    held = drawn()
    held["model.embed_tokens.weight"] = np.resize(held["model.embed_tokens.weight"], (260, HIDDEN))
    path = file(tmp_path / "m.gguf", held, tokens=tokens, merges=merges)
    text = tmp_path / "text.txt"
    text.write_text("the then there and the thing\n" * 60)
    task, told = task_of(Checkpoint(str(path), str(text), window=8, tests=12))
    assert len(task.test) == 12
    assert "12 test windows of 8 tokens" in told
    assert task.test.inputs.shape == (12, 8)


def test_tagged_words_become_print(tmp_path: Path) -> None:
    (tmp_path / "ca01").write_text(
        "\n\n\tHe/pps said/vbd ,/, ``/`` No/rb ''/'' ./.\n\nWhy/wrb (/( not/* )/) ?/. ?/.\n"
    )
    (tmp_path / "ca02").write_text("and/or/cc so/rb ./.\n")
    out = tmp_path / "brown.txt"
    assert brown.main([str(tmp_path), str(out)]) == 0
    assert out.read_text() == 'He said, "No".\nWhy (not)?\n\nand/or so.\n'
    assert brown.main([str(tmp_path / "none"), str(out)]) == 2
    assert brown.main([]) == 2


def test_shapes_of_the_config_are_those_of_the_folder(tmp_path: Path) -> None:
    from experiments.published import plan_of

    path = file(tmp_path / "m.gguf", drawn())
    config = plan_of(open_checkpoint(path)).config
    assert config == LlamaConfig(
        vocab_size=256,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_layers=1,
        num_heads=HEADS,
        num_kv_heads=KV,
        head_dim=SIZE,
        rms_norm_eps=np.float32(1e-5).item(),
    )
