"""What a study is: models x pruners x sparsities x quantizers x bits x both orders.

A study is declared in a small Python file that defines ``STUDY``; those of the package are in
``experiments/studies``.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import studies
from experiments.models.presets import PRESETS
from perturb.lift import CALIBRATE, Calibrate


@dataclass(frozen=True)
class Study:
    """A grid of cells.

    models: names of presets. pruners, quantizers: a method's class, or ``partial`` of it, called
    with each sparsity or bit width. seeds: training seeds, an axis of the study. calibrate: what
    inputs a stage sees (:func:`perturb.compress`). exclude: shell patterns of layers that stay
    dense, for each model they match in.
    """

    name: str
    description: str
    models: tuple[str, ...]
    pruners: tuple[Any, ...]
    sparsities: tuple[float, ...]
    quantizers: tuple[Any, ...]
    bits: tuple[int, ...]
    seeds: tuple[int, ...] = (0,)
    calibrate: Calibrate = "recalibrate"
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for axis in ("models", "pruners", "sparsities", "quantizers", "bits", "seeds"):
            values = getattr(self, axis)
            if not values:
                raise ValueError(f"study {self.name!r}: {axis} is empty")
            if len(set(map(repr, values))) != len(values):
                raise ValueError(f"study {self.name!r}: {axis} lists a value twice")
        for model in self.models:
            if model not in PRESETS:
                raise ValueError(
                    f"study {self.name!r}: unknown model {model!r}; known: {', '.join(PRESETS)}"
                )
        if self.calibrate not in CALIBRATE:
            raise ValueError(
                f"study {self.name!r}: calibrate must be one of {', '.join(CALIBRATE)}, "
                f"got {self.calibrate!r}"
            )
        for template, amounts in (
            *((p, self.sparsities) for p in self.pruners),
            *((q, self.bits) for q in self.quantizers),
        ):
            for amount in amounts:
                template(amount)  # raises ValueError for a value the method does not take

    @property
    def cells_per_run(self) -> int:
        """Records of one model and seed."""
        p = len(self.pruners) * len(self.sparsities)
        q = len(self.quantizers) * len(self.bits)
        return 1 + p + q + 2 * p * q

    def with_options(self, **changes: Any) -> Study:
        return dataclasses.replace(self, **{k: v for k, v in changes.items() if v is not None})


def label(method: Any) -> str:
    """A method's name with the settings that differ from its defaults, without its amount."""
    differs = []
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if field.name not in ("sparsity", "bits") and value != field.default:
            differs.append(f"{field.name}={value}")
    return method.name + (f"[{','.join(differs)}]" if differs else "")


def builtin() -> dict[str, str]:
    """Names of the studies of the package, with their first line."""
    found = {}
    for module in pkgutil.iter_modules(studies.__path__):
        study = importlib.import_module(f"{studies.__name__}.{module.name}").STUDY
        found[module.name] = study.description
    return found


def find(name: str) -> Study:
    """A study by name, or from a file that defines STUDY."""
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"there is no study file {name}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    elif name in builtin():
        module = importlib.import_module(f"{studies.__name__}.{name}")
    else:
        raise ValueError(
            f"unknown study {name!r}; known: {', '.join(builtin())}, or the path of a .py file"
        )
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study):
        raise ValueError(f"{name} defines no STUDY = experiments.study.Study(...)")
    return study
