"""One statement through all of it: proof, enumeration, sampling, attack, necessity, measurement.

The outcome is a dict: what the table, the report, the figures and the README are made from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax

from theory.engine import search, sweep
from theory.engine.statement import Family, Finding, Statement

Record = dict[str, Any]
THREADS = 2  # that compile


Compiled = tuple[list[sweep.Program], list[search.Slope | None]]


@contextmanager
def compiling(families: Sequence[Family]) -> Iterator[Callable[[], Compiled]]:
    """Inside, threads compile the programs and gradients of these families, which the value waits
    for: XLA compiles without Python's lock, which proofs hold. Only compiling happens there:
    programs are run by one thread."""
    with ThreadPoolExecutor(THREADS) as pool:
        programs = [pool.submit(sweep.compiled, f) for f in families]
        slopes = [pool.submit(search.slope, f) for f in families]
        try:
            yield lambda: ([f.result() for f in programs], [f.result() for f in slopes])
        finally:  # else Ctrl-C waits for what is to compile
            pool.shutdown(cancel_futures=True)


class Laps:
    """Seconds spent on each part: waiting for programs counts as compiling."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, part: str) -> None:
        now = time.perf_counter()
        self.laps[part], self._last = now - self._last, now


def verify(
    statement: Statement,
    instances: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Record:
    """Everything about one statement. ``holds`` is False as soon as one part of it fails."""
    key = jax.random.key(seed)
    families, spent = statement.families, Laps()
    with compiling(families) as wait:
        proof, exact = statement.prove(), statement.exact()
        spent("prove")
        compiled, slopes = wait()
    spent("compile")
    check = sweep.sweep(families, compiled, instances, jax.random.fold_in(key, 0), progress)
    spent("check")
    attack = search.search(families, compiled, slopes, jax.random.fold_in(key, 1), check)
    spent("attack")
    examples = statement.necessity()
    findings = statement.measure(jax.random.fold_in(key, 2))
    spent("measure")
    attacked = {c.claim: c for c in attack.claims}
    stated = {c.name: c for f in statement.families for c in f.claims}
    claims = [
        {
            "name": c.claim,
            "says": stated[c.claim].says,
            "relation": c.relation,
            "instances": c.instances,
            "failures": c.failures,
            "vacuous": c.vacuous,
            "telling": c.telling,
            "margin": extended(c.margin),
            "attacked": extended(attacked[c.claim].margin),
            "tightness": attacked[c.claim].tightness,
            "holds": c.holds and attacked[c.claim].holds,
            "where": c.where.instance,
            "attacked where": attacked[c.claim].where.instance,
            "histogram": c.histogram.tolist(),
        }
        for c in check.claims
    ]
    failures = [f"claim {c['name']!r}" for c in claims if not c["holds"]]
    failures += [f"claim {c.claim!r}: {c.telling} tell" for c in check.claims if not c.enough]
    failures += [
        f"bound {c.claim!r}: the attack reaches {c.tightness}"
        for c in attack.claims
        if stated[c.claim].tight and not (c.tightness or 0) >= stated[c.claim].tight
    ]
    failures += [f"step {s.says!r}" for s in proof.steps if not s.holds]
    failures += [] if exact is None or exact.holds else [f"enumeration: {exact.failure}"]
    failures += [f"no violation without {e.dropped!r}" for e in examples if not e.violates]
    failures += [f"{f.name}: {f.verdict}" for f in findings if f.required and f.verdict != "holds"]
    return {
        "name": statement.name,
        "title": statement.title,
        "source": statement.source,
        "assumptions": list(statement.assumptions),
        "claim": statement.claim,
        "latex": statement.latex,
        "families": [f"{f.name}: {f.says}" for f in statement.families],
        "proof": {
            "words": proof.words,
            "steps": [{"says": s.says, "holds": s.holds} for s in proof.steps],
            "beyond": proof.beyond,
        },
        "exact": None if exact is None else exact._asdict(),
        "claims": claims,
        "instances": check.instances,
        "margin": extended(check.margin),
        "attacked": extended(attack.margin),
        "tightness": tightness(claims),
        "evaluations": attack.evaluations,
        "necessity": [
            {
                "dropped": e.dropped,
                "instance": e.instance,
                "claim": f"{_number(e.left)} {e.relation} {_number(e.right)}",
                "violates": e.violates,
            }
            for e in examples
        ],
        "findings": [finding_record(f) for f in findings],
        "law": None
        if statement.law is None
        else statement.law.record(
            not failures, {e.dropped: e.violates for e in examples}, findings
        ),
        "failures": failures,
        "holds": not failures,
        "throughput": check.throughput,
        "seconds": spent.laps,
    }


def extended(margin: float) -> float | str:
    """A margin, infinite ones by name, which JSON has no number for and which say something here:
    "inf", that no instance was telling; "-inf", that one was not a number."""
    return margin if math.isfinite(margin) else str(margin)


def _number(x: object) -> str:
    return f"{x:.6g}" if isinstance(x, float) else str(x)


def finding_record(f: Finding) -> Record:
    return {
        "name": f.name,
        "verdict": f.verdict,
        "says": f.says,
        "numbers": dict(f.numbers),
        "columns": list(f.columns),
        "rows": [list(r) for r in f.rows],
    }


def tightness(claims: list[Record]) -> str:
    """How near the attacks came to the bounds, in words for a table."""
    ratios = [c["tightness"] or 0.0 for c in claims if c["relation"] == "<="]
    if not ratios:
        return "identity"
    attained = sum(r > 1 - 1e-6 for r in ratios)
    if attained == len(ratios):
        return "attained"
    rest = max((r for r in ratios if r <= 1 - 1e-6), default=0.0)
    near = f"{math.floor(1000 * rest) / 1000:.3f}"  # never rounded up to 1
    return f"{attained}/{len(ratios)} attained, else {near}" if attained else near
