"""Which stages a command line asks for, and the list of those that it can."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
import textwrap
from typing import Any

from perturb import naming, registry
from perturb.cli import BadInput
from perturb.scoring.orders import lettered


def _kind(method: Any) -> str:
    if hasattr(method, "on_state"):
        return "stage"
    fields = dataclasses.fields(method) if dataclasses.is_dataclass(method) else ()
    has = {f.name for f in fields}
    return {(True, False): "pruner", (False, True): "quantizer"}.get(
        ("sparsity" in has, "bits" in has), "method"
    )


def stages_of(arguments: argparse.Namespace) -> dict[str, tuple[str, Any]]:
    """By letter what was written and what it stands for. Raises :class:`BadInput`."""
    if not arguments.stage:
        texts = {"P": arguments.prune, "Q": arguments.quantize}
        roles = {"P": ("--prune", "pruner"), "Q": ("--quantize", "quantizer")}
        if not any(texts.values()):
            raise BadInput(
                "no stages: give --prune and --quantize, or two to four --stage METHOD, as in "
                "--prune wanda:0.5 --quantize gptq:4"
            )
        return {k: (texts[k], _of_role(*roles[k], texts[k])) for k in texts}
    for option in ("prune", "quantize"):
        if getattr(arguments, option) is not None:
            raise BadInput(f"--{option} and --stage: name every stage by --stage")
    made = [(text, _parsed("--stage", text)) for text in arguments.stage]
    try:
        letters = lettered([stage for _, stage in made])
    except ValueError as error:
        raise BadInput(f"--stage: {error}") from error
    of = {id(stage): text for text, stage in made}
    return {k: (of[id(stage)], stage) for k, stage in letters.items()}


def _of_role(option: str, role: str, text: str | None) -> Any:
    known = sorted(n for n, cls in registry.methods().items() if _kind(cls) == role)
    usual = "0.5" if role == "pruner" else "4"
    example = f"{'wanda' if role == 'pruner' else 'gptq'}:{usual}"
    if text is None:
        raise BadInput(f"{option} is missing: name a {role} ({', '.join(known)}), as in {example}")
    name, _, amount = text.split(",")[0].partition(":")
    if name in known:
        given = {s.partition("=")[0] for s in text.split(",")[1:]}
        if not amount and not given & {"bits", "sparsity", "scope"}:
            what = "sparsity" if role == "pruner" else "number of bits"
            raise BadInput(f"{option} {text}: the {what} is missing, as in {name}:{usual}")
    elif ".py" not in name and "." not in name:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        if hint or name in naming.known():
            raise BadInput(
                f"{option} {text}: {name!r} is no {role}; there are {', '.join(known)}{hint}"
            )
    made = _parsed(option, text)
    if _kind(made) != role:
        raise BadInput(f"{option} {text}: {made.name} is no {role}: name it by --stage")
    return made


def _parsed(option: str, text: str) -> Any:
    try:
        return naming.parse(text)
    except (ValueError, BadInput) as error:
        raise BadInput(f"{option} {text}: {error}") from error


def methods_text() -> str:
    """All that can be named, with the settings and their defaults."""
    lines = []
    known = naming.known()
    ours = {n: cls for n, cls in known.items() if isinstance(cls, type)}
    for name, cls in sorted(ours.items(), key=lambda item: (_kind(item[1]), item[0])):
        doc = (sys.modules[cls.__module__].__doc__ or cls.__doc__ or "").strip().splitlines()[0]
        defaults = [
            f"{f.name}={str(f.default).lower() if isinstance(f.default, bool) else f.default}"
            for f in dataclasses.fields(cls)
            if f.name not in (*registry.LEAVES, "grid")
        ]
        lines += textwrap.wrap(f"{name:<17} {_kind(cls):<14}{doc}", 100, subsequent_indent=" " * 32)
        indent = " " * 32
        lines += textwrap.wrap(
            ", ".join(defaults), 100, initial_indent=indent, subsequent_indent=indent
        )
    lines += [f"{n:<17} installed, {p.value}" for n, p in known.items() if n not in ours]
    return "\n".join([*lines, "", "Write them as name:amount,setting=value; --help has examples."])
