"""What a study is: models x pruners x sparsities x quantizers x bits x both orders.

A study is declared in a small Python file that defines ``STUDY``; those of the package are in
``experiments/studies``.
"""

from __future__ import annotations

import dataclasses
import importlib
import numbers
import pkgutil
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from experiments import studies
from experiments.models.presets import PRESETS
from perturb import sources
from perturb.cli import MAX_SEED
from perturb.lift import CALIBRATE, Calibrate, Norms, Zeros
from perturb.masks import NofM
from perturb.registry import LEAVES, NORMS, ZEROS, known_number

WORDS = ("None", "True", "False", "nan", "inf")  # of values that are no text
CHOICES = {"calibrate": CALIBRATE, "norms": NORMS, "zeros": ZEROS}


@dataclass(frozen=True)
class Study:
    """A grid of cells.

    models: names of presets. pruners, quantizers: a method's class, or ``partial`` of it, called
    with each sparsity or bit width. seeds: training seeds, an axis of the study. calibrate: what
    inputs a stage sees (:func:`perturb.compress`). exclude: shell patterns of layers that stay
    dense, for each model they match in. norms: batch norms' statistics after a stage, measured
    again ("reestimate") or the dense model's ("keep"). zeros: those already in the weights are
    weights like others ("free") or count as pruned ("keep").

    Raises ValueError naming the field, its value and what would be right. Axes become tuples.
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
    norms: Norms = "reestimate"
    zeros: Zeros = "free"

    def __post_init__(self) -> None:
        name = self.name
        if not isinstance(name, str) or not re.fullmatch(r"[^./\\\s][^/\\\n]*", name):
            self._refuse("name", name, "a text that can name the folder of its records")
        if not isinstance(self.description, str):
            self._refuse("description", self.description, "a text")
        for field, (right, convert) in _AXES.items():
            made: list[Any] = []
            for i, value in enumerate(self._tuple(field, right)):
                try:
                    made.append(convert(value))
                except (TypeError, ValueError) as error:
                    if field == "models":
                        raise ValueError(
                            f"study {name!r}: unknown model {value!r}; known: {', '.join(PRESETS)}"
                        ) from error
                    self._refuse(f"{field}[{i}]", value, right)
                if made[-1] in made[:-1]:
                    raise ValueError(f"study {name!r}: {field} lists a value twice: {value!r}")
            if not made and field != "exclude":
                raise ValueError(f"study {name!r}: {field} is empty; each must be {right}")
            object.__setattr__(self, field, tuple(made))
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"study {name!r}: {field} must be one of {', '.join(choices)}, "
                    f"got {getattr(self, field)!r}"
                )
        self._check_methods("pruners", "sparsity", self.sparsities)
        self._check_methods("quantizers", "bits", self.bits)

    def _refuse(self, field: str, value: Any, right: str) -> NoReturn:
        raise ValueError(f"study {self.name!r}: {field} is {_shown(value)}; it must be {right}")

    def _tuple(self, field: str, right: str) -> tuple[Any, ...]:
        values = getattr(self, field)
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
            hint = f", as in {field}=({_shown(values)},)" if _is_one(field, values) else ""
            self._refuse(field, values, f"a tuple, each {right}{hint}")
        return tuple(values)

    def _check_methods(self, axis: str, amount: str, amounts: Sequence[Any]) -> None:
        """Every template gives a method of this role for every amount, no two the same."""
        right = _AXES[axis][0]
        seen: dict[str, str] = {}
        for i, template in enumerate(getattr(self, axis)):
            made: Any = template
            while isinstance(made, partial):
                made = made.func
            if dataclasses.is_dataclass(made) and _amounts(made) != {amount}:
                self._refuse(f"{axis}[{i}]", template, right)
            for x in amounts:
                where = f"study {self.name!r}: {axis}[{i}], {_shown(template)}, with {amount} {x}"
                try:
                    method = template(x)
                    fits = _amounts(method) == {amount}
                    name = _stage_name(method) if fits else ""
                except Exception as error:
                    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
                    raise ValueError(f"{where}: {kind}{error}") from error
                if not fits:
                    raise ValueError(f"{where} gives {_shown(method)}; it must be {right}")
                if name in seen:
                    raise ValueError(f"{where} is the same method as {seen[name]}: leave one out")
                seen[name] = f"{axis}[{i}]"

    @property
    def cells_per_run(self) -> int:
        """Records of one model and seed."""
        p = len(self.pruners) * len(self.sparsities)
        q = len(self.quantizers) * len(self.bits)
        return 1 + p + q + 2 * p * q

    def with_options(self, **changes: Any) -> Study:
        return dataclasses.replace(self, **{k: v for k, v in changes.items() if v is not None})


def _model(value: Any) -> str:
    if value not in PRESETS:
        raise ValueError
    return value


def _template(value: Any) -> Any:
    ready_made = dataclasses.is_dataclass(value) and not isinstance(value, type)
    if not callable(value) or ready_made:
        raise TypeError
    return value


def _sparsity(value: Any) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError
    if not 0 <= float(value) < 1:
        raise ValueError
    return float(value)


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


def _class_of(role: str, amount: str) -> str:
    return f"the class of a {role} or partial(CLASS, setting=...): the study gives the {amount}"


# field -> what each of its values must be, and what takes one or raises
_AXES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "models": (f"the name of a model: {', '.join(PRESETS)}", _model),
    "pruners": (_class_of("pruner", "sparsity"), _template),
    "sparsities": ("a number from 0 to below 1", _sparsity),
    "quantizers": (_class_of("quantizer", "bits"), _template),
    "bits": ("a whole number from 2 to 16", partial(_whole, 2, 16)),
    "seeds": (f"a whole number from 0 to {MAX_SEED}", partial(_whole, 0, MAX_SEED)),
    "exclude": ("a shell pattern of layers' names", _text),
}


def _is_one(field: str, value: Any) -> bool:
    """Whether the value alone stands where a tuple of one would be right."""
    try:
        _AXES[field][1](value)
    except (TypeError, ValueError):
        return False
    return True


def _shown(value: Any) -> str:
    if isinstance(value, partial):
        settings = [*map(repr, value.args), *(f"{k}={v!r}" for k, v in value.keywords.items())]
        return f"partial({', '.join([_shown(value.func), *settings])})"
    return value.__name__ if isinstance(value, type) else repr(value)[:100]


def _amounts(method: Any) -> set[str]:
    """Which of sparsity and bits a method (or its class) has: both, for a joint one."""
    if not dataclasses.is_dataclass(method):
        return set()
    return {f.name for f in dataclasses.fields(method)} & set(LEAVES)


# ------------------------------------------------------------------------------ names of cells


def label(method: Any) -> str:
    """A method's name with ALL settings that differ from its defaults, without its amount.

    Settings of a nested one, the grid's, stand beside the others: ``gptq[symmetric=False]``.
    Methods that differ have different labels. The amount of a joint method is its sparsity.
    """
    amount = "sparsity" if "sparsity" in _amounts(method) else "bits"
    settings = [s for s in _settings(method) if s[0] != (amount,)]
    names = Counter(path[-1] for path, _, _ in settings)
    told = [
        f"{path[-1] if names[path[-1]] == 1 else '.'.join(path)}={_setting(value, default)}"
        for path, value, default in settings
        if value != default
    ]
    return method.name + (f"[{','.join(told)}]" if told else "")


def _settings(owner: Any, usual: Any = None) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Path, value and default of every setting; nested ones by their own paths.

    usual: what holds the defaults, if not the fields of the class do.
    """
    for field in dataclasses.fields(owner):
        value = known_number(getattr(owner, field.name)) if field.name in LEAVES else None
        value = getattr(owner, field.name) if value is None else value
        if usual is not None:
            default = getattr(usual, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = field.default
        nested = dataclasses.is_dataclass(default) and not isinstance(value, NofM)
        if nested and type(value) is type(default):
            for path, inner, inner_default in _settings(value, default):
                yield (field.name, *path), inner, inner_default
        else:
            yield (field.name,), value, default


def _setting(value: Any, default: Any) -> str:
    """Different values have different texts; a plain word is its own."""
    if isinstance(value, NofM):
        return str(value)
    if isinstance(value, str):
        word = re.fullmatch(r"[A-Za-z_][\w.-]*", value) and value not in WORDS
        return value if word else repr(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return repr(value)
    if isinstance(value, numbers.Integral) and not isinstance(default, float):
        return str(int(value))
    return repr(float(value))


def _stage_name(method: Any) -> str:
    amount = method.sparsity if "sparsity" in _amounts(method) else method.bits
    value = float(amount)
    short = f"{value:g}"
    return f"{label(method)}-{short if float(short) == value else repr(value)}"


def cell_name(model: str, seed: int, order: str, p: Any, q: Any) -> str:
    """The id of a cell in the records. order: "dense" or stages, as in "PQ" (P first)."""
    stages = {"P": p, "Q": q}
    name = "dense" if order == "dense" else ">".join(_stage_name(stages[s]) for s in order)
    return f"{model}/s{seed}/{name}"


Cell = tuple[str, Any, Any]  # order, pruner or None, quantizer or None


def cells(study: Study) -> list[Cell]:
    """Every cell that a model and a seed have, each once."""
    ps = [template(s) for template in study.pruners for s in study.sparsities]
    qs = [template(b) for template in study.quantizers for b in study.bits]
    alone: list[Cell] = [("P", p, None) for p in ps] + [("Q", None, q) for q in qs]
    pairs = [(order, p, q) for p in ps for q in qs for order in ("PQ", "QP")]
    return [("dense", None, None), *alone, *pairs]


def cell_names(study: Study) -> set[str]:
    """The ids of all cells of a study, over its models and seeds."""
    return {
        cell_name(model, seed, *cell)
        for model in study.models
        for seed in study.seeds
        for cell in cells(study)
    }


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
