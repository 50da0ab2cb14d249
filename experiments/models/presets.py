"""Every model this repository trains: its shapes, its data and how it is trained.

``expected`` says what came out, and how long it took, where it was measured (two CPU cores
unless it says otherwise). The architectures of published checkpoints are constants of their own
files: ``llama.LLAMA_3_2_1B``, ``vit.DEIT_BASE``, ``resnet.RESNET18``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from flax import nnx

from experiments.models.llama import LlamaConfig
from experiments.models.resnet import ResNetConfig
from experiments.models.vit import ViTConfig


@dataclass(frozen=True)
class Augment:
    """Training images are joined by ``copies`` distorted versions, drawn from the seed.

    Slant and aspect are what one writer's digits differ from another's in: with rotations
    and shifts alone the ViT stays at 95 % on hands it has not seen, with this it reaches 97 %.
    """

    copies: int
    spread: float  # deviation of the entries of a random linear map from the identity's
    shift: float  # moved by at most this many pixels an axis


@dataclass(frozen=True)
class Training:
    """AdamW with linear warm-up to ``learning_rate`` and a cosine down to zero."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int
    weight_decay: float = 0.1  # of matrices and kernels only
    clip: float = 1.0  # global norm of the gradient
    b2: float = 0.99
    augment: Augment | None = None
    # Every image of a batch is mirrored left to right with probability one half.
    flip: bool = field(default=False, metadata={"later": True})
    # Steps in one compiled lax.scan. XLA's CPU convolutions run 4 to 6 times slower inside a
    # loop (measured: 39 against 9 ms a step), so convolutional nets take one step a call.
    steps_per_call: int = 20


@dataclass(frozen=True)
class Preset:
    """A named model, its data set (a name of ``experiments.data.load``) and its training."""

    name: str
    config: LlamaConfig | ViTConfig | ResNetConfig
    dataset: str
    training: Training
    expected: str
    description: str
    window: int = 128  # bytes a text example has

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The untrained model."""
        return self.config.build(rngs)


_DIGITS_AUGMENT = Augment(copies=60, spread=0.15, shift=0.75)

_RESNET_DIGITS = Preset(
    name="resnet-digits",
    config=ResNetConfig(channels=1, num_classes=10, stage_blocks=(1, 1, 1), widths=(16, 32, 64)),
    dataset="digits",
    training=Training(
        steps=500,
        batch=128,
        learning_rate=4e-3,
        warmup=50,
        weight_decay=0.05,
        augment=_DIGITS_AUGMENT,
        steps_per_call=1,
    ),
    expected="98.5 % of 600 test digits (seeds 0-2: 98.2 to 98.8 %), 12 s",
    description="ResNet, one basic block a stage, on 8x8 digits",
)

_VIT_DIGITS = Preset(
    name="vit-digits",
    config=ViTConfig(
        image_size=8,
        patch_size=2,
        channels=1,
        num_classes=10,
        hidden_size=48,
        num_layers=4,
        num_heads=3,
        mlp_size=96,
    ),
    dataset="digits",
    training=Training(
        steps=2000,
        batch=64,
        learning_rate=2e-3,
        warmup=100,
        weight_decay=0.3,
        augment=_DIGITS_AUGMENT,
    ),
    expected="97.7 % of 600 test digits (seeds 0-2: 96.3 to 98.3 %), 27 s",
    description="ViT, four blocks of width 48, 16 patches of 2x2, on 8x8 digits",
)

_LLAMA_DOCS = Preset(
    name="llama-docs",
    config=LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=256,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
    ),
    dataset="docstrings",
    training=Training(steps=1000, batch=16, learning_rate=6e-3, warmup=100),
    expected="2.18 to 2.26 bits per byte (seeds 0-9), a byte trigram 2.98; 92 s",
    description="Llama, three layers of width 128, on the bytes of installed packages' docstrings",
)

_MINI = LlamaConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
)
_LLAMA_DOCS_MINI = replace(
    _LLAMA_DOCS,
    name="llama-docs-mini",
    config=_MINI,
    training=Training(steps=500, batch=16, learning_rate=8e-3, warmup=50),
    expected="2.89 to 3.07 bits per byte (seeds 0-9), a byte trigram 2.98: it knows little; 18 s",
    description="Llama, two layers of width 64, on the bytes of installed packages' docstrings",
)

_LLAMA_DOCS_2M = replace(
    _LLAMA_DOCS,
    name="llama-docs-2m",
    config=LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=512,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
    ),
    training=Training(steps=600, batch=16, learning_rate=4e-3, warmup=60),
    expected="2.35 to 2.46 bits per byte (seeds 0-4), a byte trigram 2.98; 300 s beside other work",
    description="Llama, three layers of width 256, on the bytes of installed packages' docstrings",
)

_LLAMA_DOCS_DEEP = replace(
    _LLAMA_DOCS,
    name="llama-docs-deep",
    config=replace(_MINI, num_layers=8),
    training=Training(steps=600, batch=16, learning_rate=4e-3, warmup=60),
    expected="2.62 to 2.71 bits per byte (seeds 0-4), a byte trigram 2.98; 262 s and more beside "
    "other work",
    description="Llama, eight layers of width 64, on the bytes of installed packages' docstrings",
)

_FASHION_RESNET = Preset(
    name="resnet-fashion",
    config=_RESNET_DIGITS.config,  # the same shapes: the net is convolutional
    dataset="fashion",
    training=Training(
        steps=4700,
        batch=64,
        learning_rate=4e-3,
        warmup=300,
        weight_decay=0.05,
        flip=True,
        steps_per_call=1,
    ),
    expected="91.6 to 92.1 % of the 10 000 test images (seeds 0-4); 16 minutes on one core",
    description="ResNet, one basic block a stage, on 28x28 Fashion-MNIST",
)

_FASHION_VIT = Preset(
    name="vit-fashion",
    config=ViTConfig(
        image_size=28,
        patch_size=7,
        channels=1,
        num_classes=10,
        hidden_size=96,
        num_layers=4,
        num_heads=4,
        mlp_size=192,
    ),
    dataset="fashion",
    training=Training(
        steps=9400, batch=64, learning_rate=1.5e-3, warmup=500, weight_decay=0.1, flip=True
    ),
    expected="87.8 to 88.6 % of the 10 000 test images (seeds 0-4); 14 minutes on one core",
    description="ViT, four blocks of width 96, 16 patches of 7x7, on Fashion-MNIST",
)

_ALL = (
    _RESNET_DIGITS,
    _VIT_DIGITS,
    _LLAMA_DOCS,
    _LLAMA_DOCS_MINI,
    _LLAMA_DOCS_2M,
    _LLAMA_DOCS_DEEP,
    replace(
        _LLAMA_DOCS,
        name="llama-text",
        dataset="text",
        expected="depends on the text; compare with the byte trigram printed beside it",
        description="the model of llama-docs on the bytes of a file of your own (--text FILE)",
    ),
    _FASHION_RESNET,
    _FASHION_VIT,
    Preset(
        name="llama-docs-10m",
        config=LlamaConfig(
            vocab_size=256,
            hidden_size=384,
            intermediate_size=1024,
            num_layers=6,
            num_heads=6,
            num_kv_heads=2,
            dtype="bfloat16",
        ),
        dataset="docstrings",
        training=Training(steps=3000, batch=64, learning_rate=2e-3, warmup=300),
        expected="not measured; sized for one GPU",
        description="Llama of 9.5 M parameters on docstrings, for a GPU",
        window=512,
    ),
    Preset(
        name="llama-docs-100m",
        config=LlamaConfig(
            vocab_size=256,
            hidden_size=768,
            intermediate_size=2048,
            num_layers=16,
            num_heads=12,
            num_kv_heads=4,
            dtype="bfloat16",
        ),
        dataset="docstrings",
        # Five passes over the text: a model of this size overfits it when trained for longer.
        training=Training(steps=2000, batch=64, learning_rate=6e-4, warmup=300),
        expected="not measured; sized for one GPU",
        description="Llama of 101 M parameters on docstrings, for a GPU",
        window=512,
    ),
    Preset(
        name="resnet18-fashion",
        config=ResNetConfig(channels=1, num_classes=10),
        dataset="fashion",
        training=Training(
            steps=8000,
            batch=256,
            learning_rate=2e-3,
            warmup=500,
            weight_decay=0.05,
        ),
        expected="not measured; sized for one GPU",
        description="ResNet-18 (11.2 M parameters, 3x3 stem) on Fashion-MNIST, for a GPU",
    ),
    Preset(
        name="deit-base-fashion",
        config=ViTConfig(
            image_size=28,
            patch_size=4,
            channels=1,
            num_classes=10,
            hidden_size=768,
            num_layers=12,
            num_heads=12,
            mlp_size=3072,
            dtype="bfloat16",
        ),
        dataset="fashion",
        training=Training(steps=8000, batch=256, learning_rate=5e-4, warmup=1000),
        expected="not measured; sized for one GPU",
        description="DeiT-base (85 M parameters, 4x4 patches) on Fashion-MNIST, for a GPU",
    ),
    Preset(
        name="tiny-resnet",
        config=ResNetConfig(channels=1, num_classes=10, stage_blocks=(1, 1), widths=(4, 8)),
        dataset="digits",
        training=Training(steps=20, batch=32, learning_rate=1e-2, warmup=5, steps_per_call=1),
        expected="nothing: for tests",
        description="a ResNet that trains in seconds and knows little, for tests",
    ),
    Preset(
        name="tiny-llama",
        config=LlamaConfig(
            vocab_size=256,
            hidden_size=32,
            intermediate_size=64,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
        ),
        dataset="text",
        training=Training(steps=40, batch=8, learning_rate=1e-2, warmup=5),
        expected="nothing: for tests",
        description="a Llama that trains in seconds and knows little, for tests (--text FILE)",
        window=32,
    ),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}


def find(name: str) -> Preset:
    """The preset of that name; ValueError lists them all."""
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
