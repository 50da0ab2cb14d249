"""The record of a verification as Markdown: the whole report, and the tables that the README shows.

Reads the plain record that :mod:`theory.engine.verify` makes (or its JSON); computes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

Record = dict[str, Any]
VERDICTS = {
    "holds": "holds",
    "narrower": "**narrower**",
    "false": "**false**",
    "measured": "measured",
}


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table; bars in cells are escaped."""

    def line(cells: Iterable[object]) -> str:
        return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"

    return [line(columns), "|" + "---|" * len(columns), *(line(r) for r in rows)]


def summary_rows(record: Record) -> list[list[str]]:
    """One row a statement, by :data:`COLUMNS`."""
    rows = []
    for s in record["statements"]:
        exact = s["exact"]
        violated = sum(e["violates"] for e in s["necessity"])
        rows.append(
            [
                s["name"] if s["holds"] else f"**{s['name']}: FAILS**",
                s["proof"]["words"],
                f"{exact['cases']:,}" if exact else "–",
                f"{s['instances']:,}",
                margin(s["margin"]),
                margin(s["attacked"]),
                s["tightness"],
                f"{violated}/{len(s['necessity'])}",
            ]
        )
    return rows


COLUMNS = (
    "statement",
    "sympy proof",
    "cases enumerated",
    "instances",
    "smallest margin",
    "attacked",
    "tightness",
    "necessity",
)


def share(part: int, whole: int) -> str:
    """Never 0 % or 100 % of what is some or not all."""
    if part in (0, whole):
        return f"{part / whole:.0%}"
    return f"{min(max(part / whole, 0.001), 0.999):.1%}"


def margin(value: float | str) -> str:
    return f"{float(value) + 0.0:.1e}" if float(value) else "0"


def findings(record: Record) -> list[Record]:
    """All findings, those of the phase diagrams last."""
    return [f for s in record["statements"] for f in s["findings"]] + record["phase"]["findings"]


def verdict_table(record: Record) -> list[str]:
    """What became of each claim of the literature."""
    judged = [f for f in findings(record) if f["verdict"] != "measured"]
    return table(
        ("claim", "verdict", "numbers"),
        [(f["name"], VERDICTS[f["verdict"]], f["says"]) for f in judged],
    )


LAWS = ("law", "which order wins", "verdict", "tightness")


def laws_rows(record: Record) -> list[list[str]]:
    """The laws that decide: a sentence each, what became of it, and how near attacks came."""
    return [
        [s["name"], s["law"]["says"], s["law"]["verdict"], s["tightness"]]
        for s in record["statements"]
        if s.get("law")
    ]


def laws_table(record: Record) -> list[str]:
    return table(LAWS, laws_rows(record))


def models_table(record: Record) -> list[str]:
    """How far models keep the assumptions, from the record of ``python -m theory models``."""
    found = [(*f["name"].partition(": "), f) for f in record["findings"]]
    return table(
        ("model", "assumption", "verdict", "numbers"),
        [(m, what, VERDICTS[f["verdict"]], f["says"]) for m, _, what, f in found],
    )


def summary_table(record: Record) -> list[str]:
    return table(COLUMNS, summary_rows(record))


def setting(record: Record) -> str:
    """How the record came about, in a sentence."""
    speed = [s["throughput"] for s in record["statements"]]
    return (
        f"{record['settings']['instances']:,} instances asked for, seed "
        f"{record['settings']['seed']}, float64, jax {record['versions']['jax']} on "
        f"{record['device']}; {min(speed):,.0f} to {max(speed):,.0f} instances a second, compiled; "
        f"{record['seconds']:.0f} s in all."
    )


def _statement(s: Record) -> list[str]:
    lines = [f"## {s['title']}", "", f"Source: {s['source']}.", "", "Assumptions:", ""]
    lines += [f"- {a}" for a in s["assumptions"]]
    lines += ["", f"Claim: {s['claim']}.", "", f"$${s['latex']}$$", ""]
    lines += [
        "**" + ("Holds." if s["holds"] else "DOES NOT HOLD: " + "; ".join(s["failures"])) + "**"
    ]
    lines += ["", f"Proof ({s['proof']['words']}):", ""]
    lines += [f"- {'✓' if p['holds'] else '✗'} {p['says']}" for p in s["proof"]["steps"]]
    if s["proof"]["beyond"]:
        lines.append(f"- in words: {s['proof']['beyond']}")
    if s["exact"]:
        outcome = "all hold" if s["exact"]["failure"] is None else s["exact"]["failure"]
        lines += [
            "",
            f"In rational arithmetic: {s['exact']['says']}; {s['exact']['cases']:,} cases, "
            f"{outcome}.",
        ]
    lines += ["", "Sampled and attacked:", ""]
    lines += [f"- {f}" for f in s["families"]]
    lines.append("")
    lines += table(
        (
            "claim",
            "says",
            "instances",
            "fail",
            "vacuous",
            "telling",
            "smallest margin",
            "attacked",
            "left/right",
        ),
        [
            (
                c["name"],
                c["says"],
                f"{c['instances']:,}",
                c["failures"],
                share(c["vacuous"], c["instances"]),
                share(c["telling"], c["instances"]),
                margin(c["margin"]),
                margin(c["attacked"]),
                "–" if c["tightness"] is None else f"{c['tightness']:.6f}",
            )
            for c in s["claims"]
        ],
    )
    lines += ["", "Without an assumption the claim fails:", ""]
    lines += table(
        ("dropped", "instance", "what would have to hold"),
        [(e["dropped"], e["instance"], e["claim"]) for e in s["necessity"]],
    )
    lines += _findings(s["findings"])
    return [*lines, ""]


def _findings(found: list[Record]) -> list[str]:
    lines: list[str] = []
    for f in found:
        lines += ["", f"**{f['name']}: {f['verdict']}.** {f['says']}."]
        if f["rows"]:
            lines += ["", *table(f["columns"], f["rows"])]
    return lines


def markdown(record: Record, figures: Sequence[str]) -> str:
    """The report; figures: paths relative to it, drawn from the same record."""
    pictures = [
        f"![{re.sub(r'[-_]', ' ', name.rpartition('/')[2][:-4])}]({name})" for name in figures
    ]
    lines = [
        "# The laws that decide the order",
        "",
        *laws_table(record),
        "",
        *[p for p in pictures if p.endswith("laws.png)")],
        "",
        "*Proved*: derived, enumerated, sampled and attacked below, without a failure; *narrower*: "
        "so is what is said here, the law as it was first put is contradicted by a counterexample. "
        "*Tightness*: the part of its bounds that attacks reach.",
        "",
        "# Statements: proved, sampled, attacked",
        "",
        "Made by `python -m theory verify`. " + setting(record),
        "",
        "A margin is (right − left)/scale of a bound, −|left − right|/scale of an identity; a "
        "claim holds on an instance with a margin of at least −1e-12. Sampling and attacks check "
        "claims; they prove none. *Tightness*: how near the attack came to the bounds. "
        "*Necessity*: assumptions without which a counterexample violates the claim.",
        "",
        *summary_table(record),
        "",
        "## What became of the claims",
        "",
        *verdict_table(record),
        "",
        *[p for p in pictures if not p.endswith("laws.png)")],
        "",
    ]
    for s in record["statements"]:
        lines += _statement(s)
    lines += ["## Phase diagrams", *_findings(record["phase"]["findings"])]
    return "\n".join(lines) + "\n"
