"""ViT and the distilled DeiT: queries, keys and values are apart, images come as [C, H, W]."""

from __future__ import annotations

from experiments.models.vit import ViTConfig
from experiments.published.fill import CONV, KERNEL, Plan, Source, source
from experiments.published.keys import Keys
from perturb.checkpoints import Folder

DISTILLED = "DeiTForImageClassificationWithTeacher"


def plan(folder: Folder, keys: Keys, kind: str, dtype: str) -> Plan:
    """Raises ValueError for a config that we cannot compute."""
    keys.one_of("hidden_act", ("gelu",), "gelu")
    keys.one_of("qkv_bias", (True,), True)
    try:
        config = ViTConfig(
            image_size=keys.whole("image_size", 224),
            patch_size=keys.whole("patch_size", 16),
            channels=keys.whole("num_channels", 3),
            num_classes=keys.classes(),
            hidden_size=keys.whole("hidden_size", 768),
            num_layers=keys.whole("num_hidden_layers", 12),
            num_heads=keys.whole("num_attention_heads", 12),
            mlp_size=keys.whole("intermediate_size", 3072),
            distilled=kind == DISTILLED,
            norm_eps=keys.number("layer_norm_eps", 1e-12),
            dtype=dtype,
        )
    except ValueError as error:
        raise keys.blamed(error) from error
    root = "deit" if config.distilled else "vit"
    return Plan(config, _sources(config, root), ignored=(f"{root}.pooler.*",))


def _sources(config: ViTConfig, root: str) -> dict[str, Source]:
    there = f"{root}.embeddings"
    patches = f"{there}.patch_embeddings.projection"
    found = {
        "cls_token": source(f"{there}.cls_token"),
        "pos_embed": source(f"{there}.position_embeddings"),
        "patch_embed.proj.kernel": source(f"{patches}.weight", axes=CONV),
        "patch_embed.proj.bias": source(f"{patches}.bias"),
    }
    heads = {"head": "classifier"}
    if config.distilled:
        found["dist_token"] = source(f"{there}.distillation_token")
        heads = {"head": "cls_classifier", "head_dist": "distillation_classifier"}
    layers: dict[str, tuple[str, ...]] = {ours: (name,) for ours, name in heads.items()}
    norms = {"norm": f"{root}.layernorm"}
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}", f"{root}.encoder.layer.{i}"
        inner = f"{theirs}.attention.attention"
        layers[f"{ours}.attn.qkv"] = (f"{inner}.query", f"{inner}.key", f"{inner}.value")
        layers[f"{ours}.attn.proj"] = (f"{theirs}.attention.output.dense",)
        layers[f"{ours}.mlp.fc1"] = (f"{theirs}.intermediate.dense",)
        layers[f"{ours}.mlp.fc2"] = (f"{theirs}.output.dense",)
        norms[f"{ours}.norm1"] = f"{theirs}.layernorm_before"
        norms[f"{ours}.norm2"] = f"{theirs}.layernorm_after"
    for ours, parts in layers.items():
        found[f"{ours}.kernel"] = source(*(f"{p}.weight" for p in parts), axes=KERNEL)
        found[f"{ours}.bias"] = source(*(f"{p}.bias" for p in parts))
    for ours, norm in norms.items():
        found[f"{ours}.scale"] = source(f"{norm}.weight")
        found[f"{ours}.bias"] = source(f"{norm}.bias")
    return found
