"""``python -m experiments.published.convert X.pth FOLDER``: a PyTorch state dict as a checkpoint.

A .pth is a pickle, which can run code when it is read, and must be read whole. So it is opened
once, here, by ``torch.load(weights_only=True)``, which makes tensors and nothing else (torch is
needed for this alone), and written as safetensors with a config.json and, for images, a
preprocessor_config.json: a folder like any other, memory-mapped and checked tensor by tensor.
Tensors keep their names and types. What a state dict is of, its names and shapes say:
EfficientNet-lite0 to -lite4 (names ``_conv_stem.weight``, ``_blocks.0._depthwise_conv.weight``).

exit codes: 0 done, 2 bad input (one line on stderr).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from experiments.models.mobilenet import LITE, efficientnet_lite
from experiments.published.mobilenet import LITE_NAME
from perturb import cli
from perturb.checkpoints.hf import CONFIG, WEIGHTS
from perturb.cli import BadInput
from perturb.extras import how_to_install
from perturb.files import write_atomic

PREPROCESSOR = "preprocessor_config.json"
STEM, FC = "_conv_stem.weight", "_fc.weight"


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict. Raises ValueError for what is none, and without torch."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path}: to read it takes the package torch, once: {how_to_install('torch', 'torch')}"
        ) from error
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file") from error
    except Exception as error:  # a pickle of anything else, a damaged file: many classes
        told = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{path}: is no file of tensors alone ({told})") from error
    if isinstance(held, dict) and isinstance(held.get("state_dict"), dict):
        held = held["state_dict"]
    if not isinstance(held, dict) or not held:
        raise ValueError(f"{path}: must hold a state dict, got {type(held).__name__}")
    odd = next((n for n, t in held.items() if not isinstance(t, torch.Tensor)), None)
    if odd is not None:
        raise ValueError(f"{path}: {odd!r} is no tensor: give the state dict alone")
    return {n: (t.float() if t.is_floating_point() else t).numpy() for n, t in held.items()}


def configs(tensors: dict[str, np.ndarray], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and preprocessor_config.json. Raises ValueError for what is not known."""
    if STEM not in tensors or FC not in tensors:
        raise ValueError(
            f"{where}: has no {STEM} and {FC}: only EfficientNet-lite can be converted; for others "
            "save_pretrained of transformers writes a folder"
        )
    depthwise = [a.shape for n, a in tensors.items() if n.endswith("._depthwise_conv.weight")]
    for variant in LITE:
        config = efficientnet_lite(variant)
        inputs, wanted = config.stem, []
        for block in config.blocks:
            wanted.append((block.expanded or inputs, 1, block.kernel, block.kernel))
            inputs = block.width
        if sorted(wanted) == sorted(depthwise):
            break
    else:
        raise ValueError(
            f"{where}: its {len(depthwise)} depthwise convolutions are not those of any of "
            f"EfficientNet-{', -'.join(LITE)}"
        )
    classes, channels = tensors[FC].shape[0], tensors[STEM].shape[1]
    return (
        {
            "architectures": [LITE_NAME],
            "variant": variant,
            "num_labels": classes,
            "num_channels": channels,
            "image_size": LITE[variant][2],
        },
        # (x - 127) / 128 of bytes, as TensorFlow's models were trained; the central crop is 7/8
        {
            "image_mean": [127 / 255] * channels,
            "image_std": [128 / 255] * channels,
            "crop_pct": 0.875,
            "crop_size": LITE[variant][2],
        },
    )


def convert(path: Path, folder: Path) -> str:
    """Write the folder; a line that says what was written. Raises ValueError."""
    cli.check_folder("FOLDER", folder)
    tensors = read(path)
    config, preprocessor = configs(tensors, str(path))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / WEIGHTS, save({n: np.ascontiguousarray(a) for n, a in tensors.items()}))
    write_atomic(folder / PREPROCESSOR, json.dumps(preprocessor, indent=1) + "\n")
    write_atomic(folder / CONFIG, json.dumps(config, indent=1) + "\n")
    count = sum(a.size for a in tensors.values())
    return (
        f"{folder}: EfficientNet-{config['variant']}, {count:,} numbers in {len(tensors)} tensors"
    )


def run(argv: list[str]) -> None:
    parser = cli.Parser(
        prog="python -m experiments.published.convert",
        description="A PyTorch state dict of EfficientNet-lite as a folder of safetensors.",
    )
    parser.add_argument("source", type=Path, metavar="X.pth")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    arguments = parser.parse_args(argv)
    try:
        print(convert(arguments.source, arguments.folder))
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error


if __name__ == "__main__":
    sys.exit(cli.call(run, None))
