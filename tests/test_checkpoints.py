"""Checkpoints written here by hand: what is read is what was written, what is wrong is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from experiments.models.gpt2 import GPT2, GPT2Config
from experiments.models.llama import Llama, LlamaConfig
from experiments.published import FAMILIES, load
from experiments.published.task import abstract, data_of
from experiments.study import Checkpoint, Own, Study, axis
from perturb import RTN, Drop, RemoveBlocks, Rotate, SmoothQuant, Wanda, compress
from perturb.checkpoints import open_checkpoint, read_header

LLAMA = {
    "architectures": ["Qwen3ForCausalLM"],  # norms of heads and, here, biases
    "vocab_size": 256,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "max_position_embeddings": 64,
}
GPT2_KEYS = {
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 256,
    "n_embd": 16,
    "n_head": 4,
    "n_layer": 1,
    "n_positions": 64,
}


def weights(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Of a checkpoint of LLAMA or GPT2_KEYS."""
    shapes: dict[str, tuple[int, ...]] = {}
    if "n_embd" in config:
        n = config["n_embd"]
        shapes |= {"wte.weight": (256, n), "wpe.weight": (64, n), "ln_f.weight": (n,)}
        shapes |= {"ln_f.bias": (n,)}
        for at in ("h.0",):
            for name, size in (
                ("attn.c_attn", 3 * n),
                ("attn.c_proj", n),
                ("mlp.c_fc", 4 * n),
                ("mlp.c_proj", n),
            ):
                inner = 4 * n if name == "mlp.c_proj" else n
                shapes |= {f"{at}.{name}.weight": (inner, size), f"{at}.{name}.bias": (size,)}
            shapes |= {f"{at}.{x}.{y}": (n,) for x in ("ln_1", "ln_2") for y in ("weight", "bias")}
    else:
        h, d = config["hidden_size"], config["head_dim"]
        q, kv, m = 4 * d, 2 * d, config["intermediate_size"]
        shapes |= {"model.embed_tokens.weight": (256, h), "model.norm.weight": (h,)}
        shapes |= {"lm_head.weight": (256, h)}
        for at in ("model.layers.0",):
            for name, out, inner in (("q", q, h), ("k", kv, h), ("v", kv, h), ("o", h, q)):
                shapes[f"{at}.self_attn.{name}_proj.weight"] = (out, inner)
                shapes[f"{at}.self_attn.{name}_proj.bias"] = (out,)
            for name, out, inner in (("gate", m, h), ("up", m, h), ("down", h, m)):
                shapes[f"{at}.mlp.{name}_proj.weight"] = (out, inner)
            for name, size in (
                ("input_layernorm", h),
                ("post_attention_layernorm", h),
                ("self_attn.q_norm", d),
                ("self_attn.k_norm", d),
            ):
                shapes[f"{at}.{name}.weight"] = (size,)
    rng = np.random.default_rng(0)
    drawn = {n: rng.normal(size=s).astype(np.float32) * 0.3 for n, s in shapes.items()}
    return {n: a + ("norm" in n or "ln_" in n) * n.endswith("weight") for n, a in drawn.items()}


def written(
    folder: Path, config: dict[str, Any] | None = None, held: dict[str, Any] | None = None
) -> Path:
    config = LLAMA if config is None else config
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    held = weights(config) if held is None else held
    save_file({n: np.asarray(a, np.float32) for n, a in held.items()}, folder / "model.safetensors")
    return folder


@nnx.jit
def answer(model: Any, tokens: Any) -> Any:
    """One compilation instead of one an operation."""
    return model(tokens)


def told(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load(folder)
    text = str(caught.value)
    assert "\n" not in text
    return text


# -------------------------------------------------------------------------------- reading


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    held = weights(LLAMA)
    model, tokenizer, line = load(written(tmp_path))
    assert isinstance(model, Llama)
    assert tokenizer is None
    count = sum(a.size for a in held.values())
    assert f"Qwen3ForCausalLM, {count:,} parameters, stored as F32, computed in float32" in line
    attention = model.layers[0].self_attn
    name = "model.layers.0.self_attn"
    np.testing.assert_array_equal(attention.q_proj.kernel[...].T, held[f"{name}.q_proj.weight"])
    np.testing.assert_array_equal(attention.o_proj.bias[...], held[f"{name}.o_proj.bias"])
    np.testing.assert_array_equal(attention.k_norm.scale[...], held[f"{name}.k_norm.weight"])
    logits = answer(model, jnp.arange(8)[None])
    assert logits.shape == (1, 8, 256)
    assert bool(jnp.isfinite(logits).all())


def test_every_type_is_read_as_its_values(tmp_path: Path) -> None:
    """bfloat16 by its bits; the others against numpy."""
    path = tmp_path / "t.safetensors"
    values = np.array([[1.5, -2.25, 3e-40], [np.inf, 0.1, -0.0]], np.float32)
    half = np.asarray(jnp.asarray(values, jnp.bfloat16))
    save_file(
        {
            "bf16": half,
            "f16": values.astype(np.float16),
            "f64": values.astype(np.float64),
            "i64": np.arange(3),
            "empty": np.zeros((0, 4), np.float32),
        },
        path,
    )
    held = read_header(path)
    read = {name: t.read() for name, t in held.items()}
    np.testing.assert_array_equal(read["bf16"], half.astype(np.float32))
    np.testing.assert_array_equal(read["f16"], values.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(read["f64"], values)
    np.testing.assert_array_equal(read["i64"], np.arange(3))
    assert read["empty"].shape == (0, 4)
    assert {read[n].dtype for n in ("bf16", "f16", "f64", "empty")} == {np.dtype(np.float32)}


def shards(folder: Path) -> dict[str, str]:
    """The folder's one file as two and an index; which tensor is where."""
    held = weights(LLAMA)
    names = sorted(held)
    where = {n: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in set(where.values()):
        save_file({n: held[n] for n in names if where[n] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return where


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    tokens = jnp.arange(8)[None]
    whole = answer(load(written(tmp_path)).model, tokens)
    where = shards(tmp_path)
    np.testing.assert_array_equal(answer(load(tmp_path).model, tokens), whole)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where | {"more": where["lm_head.weight"]}}))
    assert "more is missing, which model.safetensors.index.json says is here" in told(tmp_path)
    index.write_text(json.dumps({"weight_map": where | {"lm_head.weight": "../x.safetensors"}}))
    assert "'../x.safetensors' is no safetensors file of this folder" in told(tmp_path)
    left = {n: f for n, f in where.items() if n != "lm_head.weight"}
    index.write_text(json.dumps({"weight_map": left}))
    assert "lm_head.weight is not in model.safetensors.index.json" in told(tmp_path)
    index.write_text(json.dumps({"weight_map": where}))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "the shard model-00002-of-00002.safetensors is missing" in told(tmp_path)


def test_a_tied_head_may_be_stored_twice(tmp_path: Path) -> None:
    config, held = LLAMA | {"tie_word_embeddings": True}, weights(LLAMA)
    held["lm_head.weight"] = held["model.embed_tokens.weight"]
    model = load(written(tmp_path, config, held)).model
    assert not hasattr(model, "lm_head")
    held["lm_head.weight"] = held["lm_head.weight"] + 1
    assert "says that lm_head.weight is tied to" in told(written(tmp_path, config, held))


def test_buffers_of_old_files_are_passed_over(tmp_path: Path) -> None:
    held = weights(GPT2_KEYS) | {"h.0.attn.bias": np.ones((1, 1, 64, 64))}
    plain = load(written(tmp_path / "plain", GPT2_KEYS)).model
    again = load(written(tmp_path / "old", GPT2_KEYS, held)).model
    named = {f"transformer.{n}": a for n, a in weights(GPT2_KEYS).items()}
    prefixed = load(written(tmp_path / "new", GPT2_KEYS, named)).model
    tokens = jnp.arange(8)[None]
    np.testing.assert_array_equal(answer(again, tokens), answer(plain, tokens))
    np.testing.assert_array_equal(answer(prefixed, tokens), answer(plain, tokens))


# ------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architectures": ["BertModel"]}, "architectures = 'BertModel' is not supported: only"),
        ({"architectures": None}, "architectures = '' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu': only 'silu' is supported"),
        ({"use_sliding_window": True}, "use_sliding_window = true: only false is supported"),
        ({"layer_types": ["sliding_attention"]}, "layer_types = ['sliding_attention']: only"),
        ({"mlp_bias": True}, "mlp_bias = true: only false is supported"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling: rope_type = 'yarn': only"),
        ({"rope_scaling": {"type": "dynamic"}}, "rope_scaling: type = 'dynamic': only 'default'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters: factor is missing"),
        ({"rope_scaling": 3}, "rope_scaling = 3: it must be an object"),
        ({"hidden_size": None}, "hidden_size is missing: it must be a whole number above 0"),
        ({"vocab_size": 0}, "vocab_size = 0: it must be a whole number above 0"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps = '1e-5': it must be a number above 0"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1: it must be true or false"),
        ({"num_key_value_heads": 3}, "config.json: num_heads = 4 is not a multiple"),
        ({"head_dim": 5}, "config.json: head size 5 is odd"),
        ({"quantization_config": {"bits": 4}}, "the checkpoint is quantized already"),
    ],
)
def test_configs_that_are_not_computed(tmp_path: Path, change: Any, says: str) -> None:
    assert f"{tmp_path / 'config.json'}" in (
        text := told(written(tmp_path, LLAMA | change, weights(LLAMA)))
    )
    assert says in text


def drop(held: dict[str, Any]) -> None:
    del held["model.layers.0.self_attn.k_norm.weight"]


def add(held: dict[str, Any]) -> None:
    held["model.layers.1.input_layernorm.weight"] = np.ones(16)


def reshape(held: dict[str, Any]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    held[name] = held[name].T


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop, "the tensor model.layers.0.self_attn.k_norm.weight is missing"),
        (add, "model.layers.1.input_layernorm.weight has no place in a model of this config.json"),
        (reshape, "up_proj.weight has shape [16, 24]; by config.json it must be [24, 16]"),
    ],
)
def test_tensors_that_do_not_fit(
    tmp_path: Path, change: Callable[[Any], None], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = weights(LLAMA)
    change(held)
    folder = written(tmp_path, LLAMA, held)
    monkeypatch.setattr(np, "memmap", None)  # no weight may be read
    assert says in told(folder)


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    folder, held = written(tmp_path), weights(LLAMA)
    held["lm_head.weight"] = np.zeros((256, 16), np.int8)
    save_file(held, folder / "model.safetensors")
    assert "lm_head.weight is stored as I8: only weights in F16" in told(folder)


def test_files_that_are_damaged(tmp_path: Path) -> None:
    folder = written(tmp_path)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    last = max(read_header(path).values(), key=lambda t: t.start).name
    path.write_bytes(whole[:-4])
    assert f"{last} is cut off: it ends at byte {len(whole)} of a file of {len(whole) - 4}" in told(
        folder
    )
    path.write_bytes(whole[:40])
    assert "40 bytes without a whole header" in told(folder)
    path.write_bytes(b"")
    assert "0 bytes without a whole header" in told(folder)
    path.write_bytes((4).to_bytes(8, "little") + b"oops")
    assert "its header is no safetensors header" in told(folder)
    for entry, says in (
        ({"shape": [3], "data_offsets": [0, 8]}, "a of shape [3] in F32 takes 12 bytes"),
        ({"shape": [2], "data_offsets": [8, 0]}, "a has a place that cannot be, bytes 8 to 0"),
    ):
        text = json.dumps({"a": {"dtype": "F32", **entry}}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
        assert says in told(folder)


def test_folders_that_are_none(tmp_path: Path) -> None:
    assert "there is no such folder" in told(tmp_path / "none")
    assert "has no config.json" in told(tmp_path)
    folder = written(tmp_path)
    (folder / "model.safetensors").unlink()
    assert "has neither model.safetensors nor model.safetensors.index.json" in told(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    assert "pytorch_model.bin is a pickle" in told(folder)
    assert "convert it to safetensors" in told(folder)
    (folder / "config.json").write_text("{")
    assert "is no JSON" in told(folder)
    with pytest.raises(ValueError, match="dtype must be one of float32"):
        load(written(tmp_path), dtype="int8")


# ---------------------------------------------------------------------------- architectures


def llama() -> Llama:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        tie_word_embeddings=False,
        qkv_bias=True,
        out_bias=True,
        qk_norm=True,
        window=5,
    )
    return drawn(config)


def gpt2() -> GPT2:
    config = GPT2Config(32, 16, 16, 1, 4, 24)
    model = drawn(config).untied()
    model.lm_head.bias = nnx.Param(jnp.linspace(-1, 1, 32))
    return model


def drawn(config: Any) -> Any:
    """No bias is 0, no scale 1: what is not folded, moved or dropped would not be seen."""
    graph, state = nnx.split(nnx.eval_shape(lambda: config.build(nnx.Rngs(0))))
    rng = np.random.default_rng(1)
    for path, leaf in nnx.to_flat_state(state):
        noise = rng.normal(size=leaf.shape) * 0.3
        leaf.set_value(jnp.asarray((path[-1] == "scale") + noise, leaf.dtype))
    model = nnx.merge(graph, state)
    model.eval()
    return model


TOKENS = jnp.asarray(np.random.default_rng(2).integers(0, 32, (4, 12)))


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("stage", [Rotate(), SmoothQuant()])
def test_reparametrisations_keep_the_outputs(make: Callable[[], Any], stage: Any) -> None:
    model = make()
    done = compress(model, stage, TOKENS)
    np.testing.assert_allclose(answer(done.model, TOKENS), answer(model, TOKENS), atol=2e-4)
    kernels = [n for n, _ in nnx.to_flat_state(nnx.state(model)) if n[-1] == "kernel"]
    before, after = (dict(nnx.to_flat_state(nnx.state(m))) for m in (model, done.model))
    moved = [n for n in kernels if not np.allclose(before[n][...], after[n][...])]
    assert moved, "nothing was done"


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("stage", [Drop(), RemoveBlocks(1)])
def test_a_smaller_model_is_the_simulation(make: Callable[[], Any], stage: Any) -> None:
    done = compress(make(), stage, TOKENS)
    small = done.smaller()
    np.testing.assert_allclose(answer(small, TOKENS), answer(done.model, TOKENS), atol=1e-4)
    sizes = [sum(p[...].size for _, p in nnx.to_flat_state(nnx.state(m))) for m in (small, make())]
    assert sizes[0] < sizes[1]


def test_a_window_is_what_a_token_sees() -> None:
    model = llama()
    one = drawn(replace(model.config, num_layers=1))
    changed = TOKENS.at[:, 3].add(1) % 32
    before, after = answer(one, TOKENS), answer(one, changed)
    same = np.isclose(before, after, atol=1e-6).all((0, 2))
    assert same.tolist() == [True] * 3 + [False] * 5 + [True] * 4  # 3 and the four after it


def test_untied_gpt2_is_the_same_function() -> None:
    tied = drawn(GPT2Config(32, 16, 16, 1, 4, 24))
    np.testing.assert_allclose(answer(tied.untied(), TOKENS), answer(tied, TOKENS), atol=1e-5)
    with pytest.raises(ValueError, match="17 tokens are too many: the model knows 16 positions"):
        tied(jnp.zeros((1, 17), int))


# ------------------------------------------------------------------------------- commands


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer whose tokens are bytes, in place of the package."""

    class Tokenizer:
        @staticmethod
        def from_file(path: str) -> Tokenizer:
            assert Path(path).name == "tokenizer.json"
            return Tokenizer()

        def encode(self, text: str, add_special_tokens: bool) -> Any:
            assert not add_special_tokens
            return SimpleNamespace(ids=list(text.encode()))

    monkeypatch.setitem(sys.modules, "tokenizers", SimpleNamespace(Tokenizer=Tokenizer))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = written(tmp_path / "mine")
    (made / "tokenizer.json").write_text("{}")
    (tmp_path / "text.txt").write_text("some words and a line\n" * 50)
    return made


@pytest.mark.usefixtures("letters")
def test_a_study_of_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    from experiments.records import latest
    from experiments.records import load as records
    from experiments.runner import run_study

    text = tmp_path / "text.txt"
    one = Checkpoint(str(folder), window=8)
    study = Study("c", "", (one,), ((axis(Wanda, sparsity=0.5),),), seeds=(3, 4))
    assert (study.runs, study.seeds) == (1, (3,))  # it was trained once
    path = run_study(study, tmp_path / "out", text=text)
    held = list(latest(records(path)).values())
    assert [r["status"] for r in held] == ["ok", "ok"]
    assert {r["model"] for r in held} == {"mine"}
    assert held[0]["data"]["name"] == "text.txt"
    assert held[0]["metrics"]["perplexity"] > 1
    assert held[1]["metrics"]["kl"] > 0


@pytest.mark.usefixtures("letters")
def test_a_tied_checkpoint_is_rotated_once_it_is_untied(folder: Path, tmp_path: Path) -> None:
    from experiments.records import latest
    from experiments.records import load as records
    from experiments.runner import run_study
    from experiments.runner.running import check_models
    from perturb.cli import BadInput

    text = tmp_path / "text.txt"
    held = {n: a for n, a in weights(LLAMA).items() if n != "lm_head.weight"}
    tied = written(tmp_path / "tied", LLAMA | {"tie_word_embeddings": True}, held)
    (tied / "tokenizer.json").write_text("{}")
    plan, free = ((axis(Rotate),),), Checkpoint(str(tied), window=8, untied=True)
    fixed = Study("c", "", (replace(free, untied=False),), plan)
    with pytest.raises(BadInput, match="untie them first"):
        check_models(fixed, text=text)
    path = run_study(Study("c", "", (free,), plan, exclude=("lm_head",)), tmp_path / "b", text=text)
    dense, turned = latest(records(path)).values()
    assert [dense["status"], turned["status"]] == ["ok", "ok"]
    check_models(Study("c", "", (free,), plan, exclude=("lm_head",)), text=text)
    assert abs(turned["metrics"]["kl"]) < 1e-4
    assert turned["metrics"]["nll"] == pytest.approx(dense["metrics"]["nll"], abs=1e-3)
    assert "lm_head" not in turned["layers"]
    images = Checkpoint(str(tmp_path / "images"), untied=True)
    (tmp_path / "images").mkdir()
    config = {"architectures": ["ViTForImageClassification"]}
    (tmp_path / "images" / "config.json").write_text(json.dumps(config))
    save_file({"a": np.zeros(1)}, tmp_path / "images" / "model.safetensors")
    for refuses in (data_of, abstract):
        with pytest.raises(ValueError, match="only a model of text can be untied"):
            refuses(images)


@pytest.mark.usefixtures("letters")
def test_what_a_study_refuses_before_any_weight(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.__main__ import run
    from perturb.cli import BadInput

    text = str(tmp_path / "text.txt")
    command = ["run", "start", "--out", str(tmp_path / "out"), "--models", str(folder)]
    monkeypatch.setattr(np, "memmap", None)
    for more, says in (
        ([], "on which text? say --text FILE"),
        (["--text", text, "--window", "1"], "--window 1: must be at least 2 tokens"),
        (["--text", text, "--window", "65"], "knows 64 positions (max_position_embeddings)"),
        (["--text", text, "--window", "64"], "too few for 8 windows of 65"),
        (["--text", str(tmp_path / "no.txt"), "--window", "8"], "no.txt: No such file"),
        (["--text", text, "--window", "8", "--images-dir", text], "no model of the study takes it"),
    ):
        with pytest.raises(BadInput) as caught:
            run([*command, *more])
        assert says in str(caught.value)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match="has no tokenizer"):
        run([*command, "--text", text])
    with pytest.raises(BadInput, match="--window 8: no model of the study takes it"):
        run(["run", "start", "--window", "8"])


def test_the_package_that_reads_texts_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"takes the package tokenizers: .*'.\[hub\]'"):
        data_of(Checkpoint(str(folder), str(tmp_path / "text.txt"), 8))


@pytest.mark.usefixtures("letters")
def test_a_folder_is_a_model_of_the_other_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from experiments import entry
    from perturb import sources
    from perturb.__main__ import main

    real = sources.entry_points
    point = SimpleNamespace(load=lambda: entry.folder)
    points = lambda group: [point] if group == sources.FOLDERS else real(group=group)  # noqa: E731
    monkeypatch.setattr(sources, "entry_points", points)
    data = {"text": tmp_path / "text.txt", "window": 8}
    loaded = sources.load(str(folder), sources.loader(str(folder), data), 0)
    assert isinstance(loaded.model, Llama)
    assert [b.shape for b in loaded.calibration] == [(51, 8)]
    assert loaded.heldout is not None
    assert "Qwen3ForCausalLM" in capsys.readouterr().err
    stages = ["--stage", "wanda:0.5", "--stage", "rtn:4"]
    text = ["--text", str(tmp_path / "text.txt"), "--window", "8"]
    assert main([str(folder), *stages]) == 2
    assert "on which text? say --text FILE" in capsys.readouterr().err
    assert main(["resnet-digits", *stages, *text]) == 2
    assert "only a checkpoint takes it" in capsys.readouterr().err


def test_a_tokenizer_of_the_package_itself(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from experiments.data import tokens

    words = {w: i for i, w in enumerate(["[UNK]", "some", "words", "and", "a", "line"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("some words and a line\n" * 60)
    paths = (tmp_path / "text.txt", tmp_path / "tokenizer.json")
    data = tokens.load(*paths, 9, 6)
    np.testing.assert_array_equal(data.test.inputs[0], [1, 2, 3, 4, 5, 1, 2, 3, 4])
    np.testing.assert_array_equal(data.test.targets[0], [2, 3, 4, 5, 1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="gives token 5, but the model knows 5 tokens"):
        tokens.load(*paths, 9, 5)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is no tokenizer that tokenizers can read"):
        tokens.load(*paths, 9, 6)


def test_models_of_a_study_that_are_folders(tmp_path: Path) -> None:
    plan = ((axis(RTN, bits=4),),)
    study = Study("s", "", (str(tmp_path), "tiny-resnet", Own("m.py:f")), plan, seeds=(0, 1))
    assert study.models[0] == Checkpoint(str(tmp_path))
    assert study.runs == 1 + 2 + 2
    (tmp_path / "link").symlink_to(tmp_path)
    assert str(Checkpoint(str(tmp_path / "link"))) == "link"
    assert str(Checkpoint(str(tmp_path / "link" / ".."))) == tmp_path.name
    amiss = ({"window": 1}, {"text": 3}, {"untied": 1})
    for wrong in ({"path": ""}, *({"path": "a"} | one for one in amiss)):
        with pytest.raises(ValueError, match="Checkpoint"):
            Checkpoint(**wrong)


def test_models_of_images_take_no_text(tmp_path: Path) -> None:
    config = {"architectures": ["ViTForImageClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"a": np.zeros(1)}, tmp_path / "model.safetensors")
    assert "ResNetForImageClassification" in FAMILIES
    assert open_checkpoint(tmp_path).tensors["a"].shape == (1,)
    with pytest.raises(ValueError, match="is a model of images: say --images"):
        data_of(Checkpoint(str(tmp_path), "text.txt"))
    with pytest.raises(ValueError, match="is a model of text: say --text"):
        data_of(Checkpoint(str(written(tmp_path)), images="photographs"))


def test_settings_that_came_later_leave_the_names_of_trained_models() -> None:
    """A trained model's file is named by a hash of its config."""
    from dataclasses import asdict

    from experiments.models.presets import PRESETS
    from experiments.train import _told

    config = PRESETS["llama-docs"].config
    assert isinstance(config, LlamaConfig)
    later = {"qkv_bias", "out_bias", "qk_norm", "window"}
    told = _told(config)
    assert asdict(config).keys() - told.keys() == later
    assert list(told) == [n for n in asdict(config) if n not in later]
    assert _told(replace(config, window=7)) == told | {"window": 7}
