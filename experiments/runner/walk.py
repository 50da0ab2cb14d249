"""Walking the tree of plans: prefixes once, families together, cells one by one.

The methods alone come first: they are the first thing worth reading. Then every branch is walked
depth first (expand, measure, record, go on, drop), so that memory is depth x family, and that of
the methods alone; where these would take too much, a branch is walked as soon as it begins, the
quantizers' first. A branch with no missing cell is not walked: resuming a finished study computes
nothing. A resumed branch computes its families in the same shapes as before, so that its records
are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from experiments.axes import Chain, Node, chains, extended
from experiments.labels import stage_name
from experiments.runner.clock import drop_programs_if_many
from experiments.runner.job import Cell, Job
from experiments.runner.ownership import Weights, owned, quantized, quantizer_of
from perturb.backend import LARGE, give_back
from perturb.measure.layers import layer_measures
from perturb.stage import Reports, Versions, expand
from perturb.state import Parameters
from perturb.storage import BITS_DENSE, storages_of

WAITING = 1 << 30  # bytes of methods alone that may wait until all of them are there


def run_job(job: Job, after_alone: Callable[[], None] = lambda: None) -> None:
    """All missing cells of a job; ``after_alone``: called when every stage alone is recorded."""
    tree = job.shared.study.tree
    if not job.missing([(), *chains(tree)]):
        after_alone()
        return
    with job.shared.clock.phase("calibrate"):
        start = job.opened.context.start()
        job.record([_dense(job, start)])
    needed = {stage_name(q) for c in job.missing([*chains(tree)]) if (q := quantizer_of(c))}
    branches = [
        node
        for node in tree
        if job.missing(list(chains([node]))) or needed.intersection(node.axis.names)
    ]
    stages = [stage for node in branches for stage in node.axis.stages]
    waiting = len(stages) * _bytes(start) <= WAITING
    if not waiting:  # what the others' pairs need of the quantizers comes first
        branches.sort(key=lambda node: not needed.intersection(node.axis.names))
    rounded: dict[str, Weights] = {}
    alone: list[tuple[Node, Versions]] = []
    for node in branches:
        versions = _expanded(job, node, start, [()])
        if versions is not None:
            rounded |= quantized(node, versions, needed, job.opened.context.shapes)
            alone.append((node, versions))
        if not waiting:
            _walk(job, alone, rounded)
        del versions
    after_alone()
    _walk(job, alone, rounded)


def _walk(job: Job, branches: list[tuple[Node, Versions]], rounded: Mapping[str, Weights]) -> None:
    """What follows the first stages; a branch's versions go when it has been walked."""
    while branches:
        node, versions = branches.pop(0)
        _below(job, node, versions, extended([()], node.axis), rounded)


def _bytes(versions: Versions) -> int:
    """Of one version: weights and masks."""
    leaves = (leaf for m in versions.state.matrices.values() for leaf in (m.weight, m.mask))
    return sum(leaf.nbytes for leaf in leaves) // versions.size


def _below(
    job: Job,
    node: Node,
    versions: Versions,
    before: list[Chain],
    rounded: Mapping[str, Weights],
) -> None:
    for child in node.children:
        if not job.missing(list(chains([child], before))):
            continue
        done = _expanded(job, child, versions, before, rounded)
        if done is not None and child.children:
            _below(job, child, done, extended(before, child.axis), rounded)


def _expanded(
    job: Job,
    node: Node,
    before: Versions,
    chain: list[Chain],
    rounded: Mapping[str, Weights] = MappingProxyType({}),
) -> Versions | None:
    """The versions of a node, recorded; None if they could not be made, which is recorded, too.

    rounded: what the quantizers alone leave, for what a pair's layers own.
    """
    drop_programs_if_many()
    if _bytes(before) >= LARGE:
        give_back()
    context, clock = job.opened.context, job.shared.clock
    mine = extended(chain, node.axis)
    try:
        with clock.phase("calibrate"):
            _look(before, node)
        with clock.phase("compress"):
            done = expand(before, node.axis.stages, context, len(chain[0]))
            jax.block_until_ready(done.versions.state)
        if job.missing(mine):
            job.record(_cells(job, done.versions, done.reports, mine, rounded))
        return done.versions
    except Exception as error:
        job.fail(list(chains([node], chain)), error)
        return None


def _look(before: Versions, node: Node) -> None:
    """What the stages see, computed where its time belongs."""
    sequential = before.context.policy.calibrate == "sequential"
    if not sequential and any(s.needs_stats for s in node.axis.stages):
        jax.block_until_ready(before.moments)


def _dense(job: Job, start: Versions) -> Cell:
    """The model as it was given: its own norms, whatever the policy."""
    opened = job.opened
    shapes = opened.network.shapes
    weights = jax.device_get(opened.network.weights)
    layers = {
        n: {"pruned": 0.0, "zero": float(np.mean(w == 0)), "bits": float(BITS_DENSE)}
        for n, w in weights.items()
    }
    storage = storages_of(start.state, shapes, opened.coverage.parameters)[0]
    return Cell((), lambda: Parameters({}, {}), storage, layers)


def _cells(
    job: Job,
    versions: Versions,
    reports: Reports,
    mine: Sequence[Chain],
    rounded: Mapping[str, Weights],
) -> list[Cell]:
    opened = job.opened
    shapes = opened.network.shapes
    with job.shared.clock.phase("measure"):
        reference = versions.reference
        measured = layer_measures(
            versions.state, versions.size, shapes, reference.weights, reference.moments
        )
        stored = storages_of(versions.state, shapes, opened.coverage.parameters)
        told = jax.device_get(dict(reports))
        owns = owned(versions, mine, rounded)
    return [
        Cell(
            chain,
            partial(versions.parameters, i),
            stored[i],
            {
                n: {k: v[i] for k, v in m.items()}
                | ({"owned_rel": owns[i][n]} if n in owns[i] else {})
                for n, m in measured.items()
            },
            _solver(told, i),
        )
        for i, chain in enumerate(mine)
    ]


def _solver(reports: Mapping[str, Any], index: int) -> dict[str, dict[str, float]]:
    """Layers whose Hessian needed more damping than asked for, or had dead inputs."""
    found = {}
    for name, report in reports.items():
        own = {k: v[index].item() for k, v in report._asdict().items()}
        if own["retries"] or own["dead"]:
            found[name] = own
    return found
