"""The studies that a command line is about: the same in every process that has its arguments."""

from __future__ import annotations

import dataclasses
from argparse import Namespace

from experiments.sizes import sized
from experiments.study import Study, find, names
from perturb.policy import CHOICES

ALL = "all"  # studies


def choose(arguments: Namespace) -> tuple[list[Study], list[str]]:
    """The studies that are to run, and a line on each of ``all`` that is left out."""
    chosen, told = [], []
    for name in names() if arguments.study == ALL else [arguments.study]:
        study = sized(find(name), arguments.size).with_options(
            models=tuple(arguments.models) if arguments.models else None,
            seeds=tuple(range(arguments.seeds)) if arguments.seeds else None,
        )
        changed = {k: v for k in CHOICES if (v := getattr(arguments, k)) is not None}
        if changed:
            policies = (dataclasses.replace(p, **changed) for p in study.policies)
            study = study.with_options(policies=tuple(dict.fromkeys(policies)))
        if arguments.study == ALL and (absent := study.absent(arguments.images_dir)):
            told.append(f"{name} is left out, for there is no {absent} here")
            continue
        chosen.append(study)
    return chosen, told


def again(arguments: Namespace) -> list[Study]:
    """The studies alone, for a process that another one has started."""
    return choose(arguments)[0]
