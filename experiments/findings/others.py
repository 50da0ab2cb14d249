"""What others claim of order, each tried on what we can run."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from experiments.analysis.chains import Chain, Chains
from experiments.findings import lora, stages
from experiments.findings.names import parts, setting
from experiments.findings.types import (
    LOG,
    ON_THE_GRID,
    Finding,
    Row,
    chains,
    of_summary,
    row,
    summary,
)
from experiments.summary import Summary

CLAIMS = "claims"
JOINT = "joint"


def _all(held: Chains, *starts: str) -> list[tuple[str, ...]]:
    """Chains of these methods in this order of which every order was run."""

    def fits(chain: Chain) -> bool:
        return len(chain) == len(starts) and all(map(str.startswith, chain, starts))

    return [c for c in held.having(fits) if all(o in held.rows for o in stages.orders(c))]


def _distilled(held: Chains) -> list[tuple[str, ...]]:
    return [
        c
        for p in ("magnitude", "sparsegpt")
        for q in ("rtn", "gptq")
        for c in _all(held, p, "distill", q)
    ]


def between() -> Iterable[Row]:
    """Prune, distill, quantize against the best of the other five orders."""
    for held in chains(CLAIMS, LOG):
        for chain in _distilled(held):
            rest = [c for c in stages.orders(chain) if c != chain]
            more = held.rows[chain] - held.rows[lora.best(held, rest)]
            tested = "P→distill→Q less the best other order, nats"
            yield row(held, f"{chain[0]}, {chain[2]}", tested, more)


def early() -> Iterable[Row]:
    """Quantizing last against quantizing first, the mean over the orders of the rest."""
    for held in chains(CLAIMS, LOG):
        for p, d, q in _distilled(held):
            last = (held.rows[(p, d, q)] + held.rows[(d, p, q)]) / 2
            first = (held.rows[(q, p, d)] + held.rows[(q, d, p)]) / 2
            yield row(held, f"{p}, {q}", "quantizing last less first, nats", last - first)


def slim() -> Iterable[Row]:
    """Quantize, 2:4, LoRA against 2:4, quantize, LoRA."""
    for held in chains(lora.STUDY, LOG):
        for p, q, adapt in lora.triples(held):
            if "2:4" in p:
                more = held.advantage(q, p, after=(adapt,))
                yield row(held, f"{p}, {q}", "Q→2:4→LoRA less 2:4→Q→LoRA, nats", more)


def storage() -> Iterable[Row]:
    """Low rank, pruning and 8 bits against each of them alone, all at a quarter of the storage."""
    for held in chains(CLAIMS, LOG):
        for low, p, q in held.having(lambda c: len(c) == 3 and c[0].startswith("lowrank")):
            method, quantizer = parts(p)[0], parts(q)[0]
            for other in ((f"{quantizer}-4",), (f"{method}-0.75",), _low_alone(held)):
                if other in held.rows:
                    more = held.rows[(low, p, q)] - held.rows[other]
                    ours, theirs = held.ratio[(low, p, q)], held.ratio[other]
                    told = f"{p}, {q} against {other[0]} ({ours:.2f}× and {theirs:.2f}×)"
                    yield row(held, told, "three methods less one alone, nats", more)


def _low_alone(held: Chains) -> Chain:
    found = held.having(lambda c: len(c) == 1 and "ratio=0.75" in c[0])
    return found[0] if found else ("",)


def always() -> Iterable[Row]:
    """Pruning first, whatever the gap: the share of a run's won cells."""
    for name in ON_THE_GRID:
        found: Summary = summary(name)
        for total in found.totals:
            if total.model and total.scale == "log":
                share = next(r.right for r in total.rules if r.name == "prune first")
                tested = "won cells that pruning first wins"
                yield of_summary(found, total.model, "", tested, share, above=0.5)


def joint() -> Iterable[Row]:
    """Each joint method against the better order of SparseGPT and GPTQ, chosen on the mean."""
    for held in chains(JOINT, LOG):
        for chain in held.having(lambda c: bool(c) and c[-1].startswith(("obr", "joint"))):
            *start, method = chain
            pair = ("sparsegpt-0.5", f"gptq-{setting(method, 'bits') or 4}")
            both = [(*start, *order) for order in (pair, pair[::-1])]
            if all(c in held.rows for c in both):
                more = held.rows[chain] - held.rows[lora.best(held, both)]
                told = f"{method}{', rotated, 4-bit activations' if start else ''}"
                yield row(
                    held, told, "loss of the better order less that of both at once, nats", more
                )


def _finding(
    key: str,
    title: str,
    claim: str,
    source: str,
    reported: str,
    studies: tuple[str, ...],
    rows: Callable[[], Iterable[Row]],
) -> Finding:
    return Finding(key, title, claim, source, reported, studies, lambda: list(rows()))


FINDINGS = (
    _finding(
        "C-1",
        "Sparsify first",
        "Pruning before quantizing is better, in every case.",
        "Harma et al., ICLR 2025 (arXiv 2405.20935)",
        "LLaMA-2-7B, 2:4 and INT8: S→Q 9.37, Q→S 14.65",
        ("embedded", "larger", "fashion"),
        always,
    ),
    _finding(
        "C-2",
        "Distill between the two",
        "Prune, then distill, then quantize is the best order of the three.",
        "arXiv 2511.19495, Qwen2.5-3B",
        "the best of the orders",
        (CLAIMS,),
        between,
    ),
    _finding(
        "C-3",
        "Quantizing early is severe",
        "Orders that quantize first are worse than those that quantize last.",
        "arXiv 2511.19495, Qwen2.5-3B",
        "severe degradation",
        (CLAIMS,),
        early,
    ),
    _finding(
        "C-4",
        "Quantize, then 2:4, then LoRA",
        "With adapters behind, quantizing before pruning 2:4 is better.",
        "SLiM (arXiv 2410.09615)",
        "the order that SLiM takes",
        (lora.STUDY,),
        slim,
    ),
    _finding(
        "C-5",
        "Three methods beat one at equal storage",
        "A low rank, pruning and 8 bits together are better than each alone.",
        "arXiv 2602.18420",
        "better than each alone",
        (CLAIMS,),
        storage,
    ),
    _finding(
        "C-6",
        "Inserting a method keeps the order of a pair",
        "The better order of two methods stays so whatever stands before, between or behind them.",
        "arXiv 2403.17447",
        "pairwise orders are kept",
        (stages.STUDY,),
        stages.insertion,
    ),
    _finding(
        "C-7",
        "Both at once",
        "A joint method is better than either order of pruning and quantizing.",
        "Optimal Brain Restoration (arXiv 2509.11177); SparseGPT's joint mode (arXiv 2301.00774)",
        "LLaMA-2-7B, W4A4KV4 and 50 %: QuaRot with Wanda 5868, SparseGPT with GPTQ 12.94",
        (JOINT,),
        joint,
    ),
)
