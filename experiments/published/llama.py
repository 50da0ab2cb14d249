"""Llama, Mistral, Qwen2 and Qwen3 (and what is one of them by another name, as SmolLM2)."""

from __future__ import annotations

from experiments.models.llama import LinearScaling, LlamaConfig, RopeScaling
from experiments.published.fill import KERNEL, Plan, Source, source
from experiments.published.keys import Keys
from perturb.checkpoints import Folder

# What a config means where a key is absent: the classes that wrote it differ in this.
KV_HEADS = {"MistralForCausalLM": 8, "Qwen2ForCausalLM": 32, "Qwen3ForCausalLM": 32}
HEAD_DIM = {"Qwen3ForCausalLM": 128}


def plan(folder: Folder, keys: Keys, kind: str, dtype: str) -> Plan:
    """kind: the class of the checkpoint. Raises ValueError for a config that we cannot compute."""
    keys.one_of("hidden_act", ("silu",), "silu")
    keys.one_of("mlp_bias", (False,), False)
    keys.one_of("partial_rotary_factor", (1, 1.0), 1)
    heads, hidden = keys.whole("num_attention_heads"), keys.whole("hidden_size")
    kv_heads = keys.whole("num_key_value_heads", KV_HEADS.get(kind, heads))
    head_dim = keys.get("head_dim", HEAD_DIM.get(kind))
    attention_bias = kind in ("LlamaForCausalLM", "Qwen3ForCausalLM") and keys.flag(
        "attention_bias", False
    )
    theta, scaling = _rope(keys)
    try:
        config = LlamaConfig(
            vocab_size=keys.whole("vocab_size"),
            hidden_size=hidden,
            intermediate_size=keys.whole("intermediate_size"),
            num_layers=keys.whole("num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=None if head_dim is None else keys.whole("head_dim", head_dim),
            rope_theta=theta,
            rope_scaling=scaling,
            rms_norm_eps=keys.number("rms_norm_eps", 1e-6),
            tie_word_embeddings=keys.flag("tie_word_embeddings", False),
            dtype=dtype,
            qkv_bias=attention_bias or kind == "Qwen2ForCausalLM",
            out_bias=attention_bias,
            qk_norm=kind == "Qwen3ForCausalLM",
            window=_window(keys, kind),
        )
    except ValueError as error:
        raise keys.blamed(error) from error
    seen = "" if config.window is None else f"a token sees {config.window} positions"
    copies = {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_word_embeddings else {}
    return Plan(
        config,
        _sources(config),
        ignored=("*.rotary_emb.inv_freq",),  # computed from the config
        copies=copies,
        notes=(seen,) if seen else (),
    )


def _window(keys: Keys, kind: str) -> int | None:
    """Of Mistral, in all layers; Qwen's would be in some only."""
    if kind == "MistralForCausalLM":
        absent = "sliding_window" not in keys.values
        return 4096 if absent else keys.get("sliding_window") and keys.whole("sliding_window")
    if kind in ("Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        keys.one_of("use_sliding_window", (False,), False)
        if set(keys.get("layer_types", ())) - {"full_attention"}:
            keys.refuse("layer_types", "only 'full_attention' is supported")
    return None


def _rope(keys: Keys) -> tuple[float, RopeScaling | LinearScaling | None]:
    """theta and the scaling: keys of their own once, an object ``rope_parameters`` now."""
    name = "rope_parameters" if keys.get("rope_parameters") else "rope_scaling"
    inner = keys.inside(name)
    theta = inner.number("rope_theta", keys.get("rope_theta", 10_000.0))
    inner.one_of("partial_rotary_factor", (1, 1.0), 1)
    key = "rope_type" if inner.get("rope_type") else "type"
    match inner.one_of(key, ("default", "linear", "llama3"), "default"):
        case "linear":
            return theta, LinearScaling(inner.number("factor"))
        case "llama3":
            scaling = RopeScaling(
                inner.number("factor"),
                inner.number("low_freq_factor"),
                inner.number("high_freq_factor"),
                inner.whole("original_max_position_embeddings"),
            )
            if scaling.high_freq_factor <= scaling.low_freq_factor:
                inner.refuse("high_freq_factor", "it must be above low_freq_factor")
            return theta, scaling
    return theta, None


def _sources(config: LlamaConfig) -> dict[str, Source]:
    found = {
        "embed_tokens.embedding": source("model.embed_tokens.weight"),
        "norm.scale": source("model.norm.weight"),
    }
    if not config.tie_word_embeddings:
        found["lm_head.kernel"] = source("lm_head.weight", axes=KERNEL)
    biased = [*("qkv" if config.qkv_bias else ""), *("o" if config.out_bias else "")]
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += [f"self_attn.{n}_norm" for n in "qk" if config.qk_norm]
    matrices = [f"self_attn.{n}_proj" for n in "qkvo"]
    matrices += [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
    for at in (f"layers.{i}" for i in range(config.num_layers)):
        found |= {f"{at}.{n}.scale": source(f"model.{at}.{n}.weight") for n in norms}
        found |= {
            f"{at}.{n}.kernel": source(f"model.{at}.{n}.weight", axes=KERNEL) for n in matrices
        }
        for n in biased:
            name = f"{at}.self_attn.{n}_proj.bias"
            found[name] = source(f"model.{name}")
    return found
