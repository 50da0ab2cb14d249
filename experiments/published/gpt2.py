"""GPT-2: matrices are stored [in, out], with or without the prefix ``transformer.``."""

from __future__ import annotations

from typing import Any

from experiments.models.gpt2 import GPT2Config
from experiments.published.fill import Plan, Source, source
from experiments.published.keys import Keys
from perturb.checkpoints import Folder

GELU: dict[str, Any] = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "exact"}


def plan(folder: Folder, keys: Keys, kind: str, dtype: str) -> Plan:
    """Raises ValueError for a config that we cannot compute."""
    for key, only in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
        ("tie_word_embeddings", True),
    ):
        keys.one_of(key, (only,), only)
    hidden = keys.whole("n_embd")
    try:
        config = GPT2Config(
            vocab_size=keys.whole("vocab_size"),
            num_positions=keys.whole("n_positions"),
            hidden_size=hidden,
            num_layers=keys.whole("n_layer"),
            num_heads=keys.whole("n_head"),
            mlp_size=keys.whole("n_inner", 4 * hidden),
            norm_eps=keys.number("layer_norm_epsilon", 1e-5),
            gelu=GELU[keys.one_of("activation_function", tuple(GELU), "gelu_new")],
            dtype=dtype,
        )
    except ValueError as error:
        raise keys.blamed(error) from error
    prefix = "" if "wte.weight" in folder.tensors else "transformer."
    return Plan(
        config,
        _sources(config, prefix),
        ignored=(f"{prefix}h.*.attn.bias", f"{prefix}h.*.attn.masked_bias"),  # the causal mask
        copies={"lm_head.weight": f"{prefix}wte.weight"},
    )


def _sources(config: GPT2Config, prefix: str) -> dict[str, Source]:
    found = {"wte.embedding": source(f"{prefix}wte.weight"), "wpe": source(f"{prefix}wpe.weight")}
    norms = ["ln_f"]
    for at in (f"h.{i}" for i in range(config.num_layers)):
        norms += [f"{at}.ln_1", f"{at}.ln_2"]
        for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            found[f"{at}.{layer}.kernel"] = source(f"{prefix}{at}.{layer}.weight")
            found[f"{at}.{layer}.bias"] = source(f"{prefix}{at}.{layer}.bias")
    for norm in norms:
        found[f"{norm}.scale"] = source(f"{prefix}{norm}.weight")
        found[f"{norm}.bias"] = source(f"{prefix}{norm}.bias")
    return found
