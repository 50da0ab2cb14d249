"""What a study is: models x plans of stages x policies x calibration draws x training seeds.

A study is declared in a small Python file that defines ``STUDY``; those of the package are in
``experiments/studies``. The grammar of its plans is that of :mod:`experiments.axes`.
"""

from __future__ import annotations

import dataclasses
import importlib
import numbers
import os
import pkgutil
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from experiments import studies
from experiments.axes import (
    Axis,
    Chain,
    Node,
    Plan,
    axis,
    chains,
    in_families,
    pairs,
    permutations,
    tree,
)
from experiments.data import fashion
from experiments.models.presets import PRESETS
from perturb import sources
from perturb.checkpoints import is_checkpoint
from perturb.cli import MAX_SEED
from perturb.policy import CHOICES, Policy

__all__ = [
    "Axis",
    "Checkpoint",
    "Conditions",
    "Own",
    "Policy",
    "Study",
    "axis",
    "find",
    "pairs",
    "permutations",
]


@dataclass(frozen=True)
class Own:
    """A model of one's own in a study: ``FILE.py:FUNCTION`` or ``PACKAGE.MODULE:FUNCTION``.

    The function takes ``seed`` (if it has such a parameter) and returns an
    :class:`experiments.task.Task`.
    """

    source: str

    def __post_init__(self) -> None:
        where, colon, function = str(self.source).rpartition(":")
        if not isinstance(self.source, str) or not (where and colon and function.isidentifier()):
            raise ValueError(
                f"Own({self.source!r}): it must be 'FILE.py:FUNCTION' or 'PACKAGE.MODULE:FUNCTION'"
            )

    def __str__(self) -> str:
        return self.source.rpartition("/")[2]


WINDOW = 128  # tokens


@dataclass(frozen=True)
class Checkpoint:
    """A published model in a study: a folder with config.json and safetensors, or a GGUF file.

    text, images: the file, or the folder of images (or "photographs": those in installed packages),
    that it is calibrated and compared on; window: how many tokens an example has, or the side of an
    image in pixels; tests: how many windows of a text it is compared on (None: as many as the data
    sets have); untied: a head that is the embeddings at once becomes a matrix of its own, as a
    rotation of the stream needs it (leave ``lm_head`` out of what is compressed). What else is None
    the command line says (--text, --images, --window). It was trained once: of a study's seeds it
    has the first, which then is that of the methods.
    """

    path: str
    text: str | None = None
    window: int | None = None
    images: str | None = None
    tests: int | None = None
    untied: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.untied, bool):
            raise ValueError(
                f"Checkpoint({self.path!r}): untied must be True or False, got {self.untied!r}"
            )
        if not isinstance(self.path, str) or not self.path:
            raise ValueError(f"Checkpoint({self.path!r}): it must be the path of a folder or file")
        for name in ("text", "images"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"Checkpoint({self.path!r}): {name} must be a path, got {value!r}")
        for name in ("window", "tests"):
            value = getattr(self, name)
            if value is None:
                continue
            try:
                _whole(2, MAX_SEED, value)
            except (TypeError, ValueError):
                raise ValueError(
                    f"Checkpoint({self.path!r}): {name} must be a whole number from 2, "
                    f"got {value!r}"
                ) from None

    def __str__(self) -> str:
        return Path(os.path.abspath(self.path)).name  # a link's own name

    def on(self, text: Path | None, window: int | None, images: Path | None = None) -> Checkpoint:
        """The checkpoint with what it does not say itself: of several kinds, each takes its own."""
        file, folder = (None if p is None else str(p) for p in (text, images))
        return replace(
            self,
            text=self.text or file,
            window=self.window or window,
            images=self.images or folder,
        )


Model = str | Own | Checkpoint


@dataclass(frozen=True)
class Conditions(Policy):
    """A policy, and what else a study may vary about the runs of one model.

    exclude: shell patterns of layers that stay dense, besides the study's; examples: how many of a
    draw's calibration examples stages see, at equal distances (None: all).
    Raises ValueError naming the field, its value and what would be right.
    """

    exclude: tuple[str, ...] = ()
    examples: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        patterns = self.exclude
        if not isinstance(patterns, tuple) or not all(isinstance(p, str) for p in patterns):
            raise ValueError(f"exclude must be a tuple of shell patterns; got {patterns!r}")
        if self.examples is not None:
            try:
                _whole(1, MAX_SEED, self.examples)
            except (TypeError, ValueError):
                raise ValueError(
                    f"examples must be a whole number from 1, or None; got {self.examples!r}"
                ) from None


def policy_config(policy: Policy) -> dict[str, Any]:
    """What a record says of it: the policy's fields, and the conditions that are not the usual."""
    usual = asdict(Conditions())
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(policy).items()
        if key in CHOICES or value != usual[key]
    }


@dataclass(frozen=True)
class Study:
    """Everything that is varied, and what every cell shares.

    models: names of presets, :class:`Own` or :class:`Checkpoint` (a text that is a folder is one).
    plans: tuples of axes of stages. seeds: of training;
    calibrations: draws of calibration examples (0 is the data set's own); policies: how chains are
    run (:class:`Policy`, or :class:`Conditions`). All of these are axes: every combination is run.
    exclude, include: shell patterns of layers that stay dense, or that are compressed though they
    are embeddings, for each model they match in.

    Raises ValueError naming the field, its value and what would be right. Axes become tuples.
    """

    name: str
    description: str
    models: tuple[Model, ...]
    plans: tuple[Plan, ...]
    seeds: tuple[int, ...] = (0,)
    calibrations: tuple[int, ...] = (0,)
    policies: tuple[Policy, ...] = (Policy(),)
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        name = self.name
        if not isinstance(name, str) or not re.fullmatch(r"[^./\\\s][^/\\\n]*", name):
            self._refuse("name", name, "a text that can name the folder of its records")
        if not isinstance(self.description, str):
            self._refuse("description", self.description, "a text")
        plans = tuple(self.plans) if isinstance(self.plans, (tuple, list)) else ()
        if len(plans) > 1 and all(isinstance(plan, Axis) for plan in plans):
            right = "one plan, ((a, b),), or plans of one axis each, ((a,), (b,))"
            self._refuse("plans", plans, right)
        for field, (right, convert) in _AXES.items():
            made: list[Any] = []
            for i, value in enumerate(self._tuple(field, right)):
                try:
                    made.append(convert(value))
                except (TypeError, ValueError) as error:
                    if field == "models":
                        raise ValueError(
                            f"study {name!r}: unknown model {value!r}; known: {', '.join(PRESETS)}"
                            ", or Own('FILE.py:FUNCTION'), or a checkpoint, a folder or a GGUF file"
                        ) from error
                    self._refuse(f"{field}[{i}]", value, right)
                if made[-1] in made[:-1]:
                    raise ValueError(f"study {name!r}: {field} lists a value twice: {value!r}")
            if not made and field not in ("exclude", "include"):
                raise ValueError(f"study {name!r}: {field} is empty; each must be {right}")
            if field == "plans":
                made = [*dict.fromkeys(part for plan in made for part in in_families(plan))]
            object.__setattr__(self, field, tuple(made))
        if all(isinstance(model, Checkpoint) for model in self.models):
            object.__setattr__(self, "seeds", self.seeds[:1])  # what a run says of itself
        named = Counter(map(str, self.models))
        alike = next((x for x, count in named.items() if count > 1), None)
        if alike is not None:
            raise ValueError(
                f"study {name!r}: models has two that records would call {alike}: rename one's file"
            )

    def _refuse(self, field: str, value: Any, right: str) -> NoReturn:
        raise ValueError(f"study {self.name!r}: {field} is {_shown(value)}; it must be {right}")

    def _tuple(self, field: str, right: str) -> tuple[Any, ...]:
        values = getattr(self, field)
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
            hint = f", as in {field}=({_shown(values)},)" if _is_one(field, values) else ""
            self._refuse(field, values, f"a tuple, each {right}{hint}")
        return tuple(values)

    @property
    def tree(self) -> list[Node]:
        """The plans with common prefixes joined."""
        return tree(self.plans)

    def chains(self) -> list[Chain]:
        """Of every cell that a model, seed, draw and policy have; the dense model first."""
        return [(), *chains(self.tree)]

    @property
    def runs(self) -> int:
        """Combinations of model, seed, draw and policy."""
        return len(self.trainings) * len(self.calibrations) * len(self.policies)

    @property
    def trainings(self) -> list[tuple[Model, int]]:
        """Every model with every seed; a checkpoint was trained once."""
        return [
            (model, seed)
            for model in self.models
            for seed in (self.seeds[:1] if isinstance(model, Checkpoint) else self.seeds)
        ]

    @property
    def datasets(self) -> set[str]:
        """Names of the data sets that its presets are trained on."""
        return {PRESETS[model].dataset for model in self.models if isinstance(model, str)}

    def absent(self, images_dir: Path | None = None) -> str | None:
        """The first of what comes with no installation that is not where it should be: a
        checkpoint, or Fashion-MNIST where nobody says where it is."""
        for model in self.models:
            if isinstance(model, Checkpoint) and not is_checkpoint(model.path):
                return model.path
        if images_dir is None and "fashion" in self.datasets and not fashion.is_there():
            return f"Fashion-MNIST in {fashion.DEBIAN}"
        return None

    def with_options(self, **changes: Any) -> Study:
        return dataclasses.replace(self, **{k: v for k, v in changes.items() if v is not None})


def _model(value: Any) -> Model:
    if isinstance(value, (Own, Checkpoint)):
        return value
    if value in PRESETS:
        return str(value)
    if not isinstance(value, str) or not is_checkpoint(value):
        raise ValueError
    return Checkpoint(value)


def _plan(value: Any) -> Plan:
    if isinstance(value, Axis):
        return (value,)
    if not isinstance(value, (tuple, list)) or not value:
        raise TypeError
    if not all(isinstance(part, Axis) for part in value):
        raise TypeError
    return tuple(value)


def _policy(value: Any) -> Policy:
    if not isinstance(value, Policy):
        raise TypeError
    return value


def _whole(low: int, high: int, value: Any) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError
    if not low <= int(value) <= high:
        raise ValueError
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


_SEED = f"a whole number from 0 to {MAX_SEED}"
_PATTERN = "a shell pattern of layers' names"
# field -> what each of its values must be, and what takes one or raises
_AXES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "models": (f"the name of a model ({', '.join(PRESETS)}) or Own('FILE.py:FUNCTION')", _model),
    "plans": ("a tuple of axes: pairs(...), permutations(...) or (axis(...), ...)", _plan),
    "seeds": (_SEED, partial(_whole, 0, MAX_SEED)),
    "calibrations": (_SEED, partial(_whole, 0, MAX_SEED)),
    "policies": ("a Policy(calibrate=..., norms=..., zeros=...) or Conditions(...)", _policy),
    "exclude": (_PATTERN, _text),
    "include": (_PATTERN, _text),
}


def _is_one(field: str, value: Any) -> bool:
    """Whether the value alone stands where a tuple of one would be right."""
    try:
        _AXES[field][1](value)
    except (TypeError, ValueError):
        return False
    return True


def _shown(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)[:100]


# ------------------------------------------------------------------------------------- finding


def names() -> list[str]:
    """Of the studies of the package, which are not imported for it."""
    return [module.name for module in pkgutil.iter_modules(studies.__path__)]


def builtin() -> dict[str, str]:
    """Names of the studies of the package, with their first line."""
    return {
        name: importlib.import_module(f"{studies.__name__}.{name}").STUDY.description
        for name in names()
    }


def find(name: str) -> Study:
    """A study by name, or from a file that defines STUDY.

    Raises :class:`perturb.cli.BadInput` for a file that does not run, ValueError for what is
    no study.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"there is no study file {name}")
        module = sources.from_file(f"study file {name}", path)
    elif name in names():
        module = importlib.import_module(f"{studies.__name__}.{name}")
    else:
        raise ValueError(
            f"unknown study {name!r}; known: {', '.join(names())}, or the path of a .py file"
        )
    study = getattr(module, "STUDY", None)
    if isinstance(study, Study):
        return study
    got = "" if study is None else f", got {_shown(study)}"
    raise ValueError(f"{name} defines no STUDY = experiments.study.Study(...){got}")
