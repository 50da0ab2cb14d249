"""The closed forms of normal weights against the table of THEORY.md, digit by digit."""

from __future__ import annotations

from jax import Array

from theory.engine.statement import Finding
from theory.maths.gaussian import prune_snr_db
from theory.maths.grids import grid_snr_db

# dB as THEORY.md prints them: text, because the number of digits is part of the claim.
PRUNE_SNR = {
    0.05: "41.8",
    0.10: "32.8",
    0.25: "20.8",
    0.40: "14.5",
    0.50: "11.5",
    0.75: "5.58",
    0.875: "3.03",
}
GRID_SNR = {2: "8.26", 3: "13.9", 4: "19.26", 5: "24.5", 6: "29.8", 8: "40.6"}


def reproduces(value: float, printed: str) -> bool:
    """Whether a value rounds to a printed number, digit by digit."""
    return f"{value:.{len(printed.partition('.')[2])}f}" == printed


def measure(key: Array) -> tuple[Finding, ...]:
    pruned = {c: prune_snr_db(c) for c in PRUNE_SNR}
    rounded = {b: grid_snr_db(b) for b in GRID_SNR}
    rows = [
        (f"prune {c:.1%}", f"{pruned[c]:.6f}", printed, reproduces(pruned[c], printed))
        for c, printed in PRUNE_SNR.items()
    ] + [
        (f"{b}-bit grid", f"{rounded[b]:.6f}", printed, reproduces(rounded[b], printed))
        for b, printed in GRID_SNR.items()
    ]
    same = sum(bool(r[3]) for r in rows)
    return (
        Finding(
            "closed-form SNR table of THEORY.md",
            "holds" if same == len(rows) else "false",
            f"{same} of {len(rows)} entries to the last digit printed. Kuzmin et al. give 5.6 dB "
            f"for 75 % (here {prune_snr_db(0.75):.2f}) and 19.1 dB for INT4 (here "
            f"{grid_snr_db(4):.2f}, the optimum)",
            {"entries": float(len(rows)), "same digits": float(same)},
            ("weights N(0, 1)", "SNR, dB", "printed", "same digits"),
            tuple((a, b, c, "yes" if d else "NO") for a, b, c, d in rows),
            required=True,
        ),
    )
