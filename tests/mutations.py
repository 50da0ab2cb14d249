"""Mistakes that a verification of the theorems has to notice: what to change, and what notices it.

A mutation replaces text that stands exactly once in a module of ``theory``. ``caught_by`` names the
part of :func:`theory.engine.verify.verify` that fails then: "proof", "exact", "findings" or the
name of a claim. ``contrary`` is a change of the data that turns a verdict, for mutations of the
verdict itself: it is caught where the turn is no longer seen. ``unseen``: why nothing notices.
"""

from __future__ import annotations

from dataclasses import dataclass

PROOF, EXACT, FINDINGS = "proof", "exact", "findings"
ONE_BLOCK = "L2, quantize first, one block"


@dataclass(frozen=True)
class Edit:
    module: str  # of theory
    old: str
    new: str


@dataclass(frozen=True)
class Mutation:
    kind: str
    statement: str
    edit: Edit
    caught_by: str
    contrary: Edit | None = None
    unseen: str = ""

    def __str__(self) -> str:
        return f"{self.statement}: {self.edit.old.strip()[:50]} -> {self.edit.new.strip()[:50]}"


def _form(statement: str, module: str, old: str, new: str, caught_by: str) -> Mutation:
    return Mutation("closed form", statement, Edit(f"maths.{module}", old, new), caught_by)


def _claim(
    statement: str, old: str, new: str, family: str, unseen: str = "", room: str = "claims"
) -> Mutation:
    edit = Edit(f"statements.{statement}.{room}", old, new)
    return Mutation("claim", statement, edit, family, unseen=unseen)


def _family(
    statement: str, old: str, new: str, family: str, unseen: str = "", room: str = "claims"
) -> Mutation:
    edit = Edit(f"statements.{statement}.{room}", old, new)
    return Mutation("family", statement, edit, family, unseen=unseen)


def _measure(statement: str, old: str, new: str) -> Mutation:
    return Mutation(
        "measure", statement, Edit(f"statements.{statement}.measure", old, new), FINDINGS
    )


# constants, signs, and bounds loosened or tightened
FORMS = (
    _form("rounding", "closed_forms", "q * (2 * w - q)", "q * (2 * w + q)", PROOF),
    _form("rounding", "closed_forms", "theta * 2 *", "theta * 1.98 *", "expected A"),
    _form("affine", "closed_forms", "-2 * v * t * norm", "-1.98 * v * t * norm", "difference"),
    _form("affine", "closed_forms", "3 * v / (4 * t)", "3 * v / (5 * t)", "Laplace"),
    _form("aware", "closed_forms", "(1 + x) * jnp.exp", "(1 + 0.99 * x) * jnp.exp", "sum"),
    _form("gaussian", "gaussian", "- 2 * t *", "- 2.01 * t *", "pruning, normal"),
    _form("ownership", "ownership", "(lost * (e1 - e2))", "(lost * (e1 + e2))", EXACT),
    _form("interference", "scales", "step**2 / 4", "step**2 / 3.9", "change"),
    _form("interference", "scales", "step_after**2) / 12", "step_after**2) / 12.1", "expected law"),
    _form("composability", "swaps", "power - 1 - 2**power", "power - 0.98 - 2**power", ONE_BLOCK),
    _form("composability", "swaps", "return 2 * swaps", "return 2.05 * swaps", "squares"),
    _form("structured", "blocks", "-2 * v * (q", "-2.01 * v * (q", "difference"),
    _form("structured", "blocks", "return v / jnp", "return 1.02 * v / jnp", "decay"),
    _form("beta", "beta", "(slope - 1) / 2 - beta", "(slope - 1) / 2 + beta", "flat"),
    _form("beta", "beta", "+ cross / 2)", "+ cross / 1.9)", "error, e' = 1"),
    _form("beta", "beta", "+ cube / 3)", "+ cube / 2.9)", "error, e = 0"),
    _form("beta", "beta", "return 2 * v * (1", "return 2.1 * v * (1", "2c"),
    _form("refit", "refit", "return product**2", "return 0.99 * product**2", PROOF),
    _form("stages", "stages", "variance * jnp", "0.99 * variance * jnp", "double rounding"),
    _form("propagation", "chains", "total + lip * d", "total + 1.01 * lip * d", "lipschitz"),
    _form("ordering", "orders", "most + step[every", "most - step[every", "in context"),
    _form("signlaw", "inclusion", "(goes - p)", "(goes + p)", "formula"),
    _form("lowrank", "lowrank", "(n - r) - 2 * tail", "(n - r) - 1.99 * tail", "second order"),
    _form("rotation", "mixtures", "- 1 - 2 * t", "- 1 - 1.99 * t", "error"),
    _form("intensity", "ownership", "(contested * error)", "(0.99 * contested * error)", PROOF),
)
EXCESS = "right = bound(jnp.sum(swapped), step, POWERS[name])"
GENERAL = 'if name == "L2" and not one_block else 1)'
L2 = "L2, quantize first"
TRACE = "return Sides(jnp.sum(k), {} * jnp.trace(k), DEPTH"
CLAIMS = (
    _claim("composability", EXCESS, f"{EXCESS} * (0.8 {GENERAL}", L2),  # was believed once
    _claim("composability", EXCESS, f"{EXCESS} * (1.01 {GENERAL}", L2),
    _claim("rounding", "changed * 2 * c", "changed * 2.1 * c", "at most"),
    _claim("rounding", 'qp, changed": over(last)', 'qp, changed": over(first)', "never loses"),
    _claim("ordering", "count * jnp.min(x.step)", "0.9 * count * jnp.min(x.step)", "wins by"),
    _claim("ordering", "= (place[:, None] < place)", "= (place[:, None] > place)", "sorted"),
    _claim("signlaw", "fair = x.k / UNITS", "fair = 1.01 * x.k / UNITS", "errors stay"),
    _claim("robust", ", eta(x))", ", 0.9 * eta(x))", "regret"),
    _claim("robust", ", eta(x))", ", 1.1 * eta(x))", "regret"),
    _claim("rotation", "bound = jnp.sum", "bound = 1.001 * jnp.sum", "pruned"),
    _claim("aware", "Sides(error(aware), error", "Sides(error(blind), error", "never loses"),
    _claim("propagation", TRACE.format("DEPTH"), TRACE.format("3.1"), "depth", room="linear"),
    _claim(
        "stages",
        "return Sides(-forms.noise_energy(x.step**2, pi, x.h), pq - qp",
        "return Sides(pq - qp, pq - qp",
        "double rounding",
        "an identity of a number with itself holds; that no closed form is left in it is noticed "
        "where closed forms are flipped (test_theory_statements)",
    ),
)
# that stop varying, or vary only where nothing can be seen
TILT = "tilt = {}tilted * (take() - 0.5)"
KEPT = "kept = (take(GROUPS, WIDTH) < {}take())"
WEIGHTS = "    return Scalars(\n        {}w,"
FAMILIES = (
    _family("rounding", WEIGHTS.format(""), WEIGHTS.format("0 * "), "never loses"),
    _family(
        "composability", "k = jnp.floor(take()", "k = 0 * jnp.floor(take()", L2, room="vectors"
    ),
    _family("interference", KEPT.format(""), KEPT.format("2 + "), "step shrinks"),
    _family("affine", "instances.log_uniform(u[i], 1e-6, 2.0)", "0.1 + 0 * u[i]", "along bits"),
    _family("aware", "10 ** (4 * take(UNITS) - 2)", "10 ** (0 * take(UNITS))", "never loses"),
    _family("beta", TILT.format(""), TILT.format("0 * "), "error"),
    _family("structured", "return Setting(m, q, q2,", "return Setting(m, q, q,", "along sparsity"),
    _family(
        "ordering",
        "    intensity = take(MOST)",
        "    intensity = 0 * take(MOST)",
        "sorted",
        "methods of one intensity are sorted by number, over costs as random as before: the same "
        "instances up to names",
    ),
)
PAIRS = "{} = (np.argpartition(np.abs(x), k)[:k] for x in (w, w + e))"
SEEN = "np.abs(w), np.abs(w + e)\n", "np.abs(w + e), np.abs(w)\n"
AWARE = "return aware_advantage(", "return -aware_advantage("
TABLE = 'a, gap = {}table["advantage"]'
MEASURES = (
    _measure("structured", "law = -2 *", "law = -2.2 *"),
    _measure("affine", *SEEN),
    _measure("signlaw", PAIRS.format("first, last"), PAIRS.format("last, first")),
    _measure("refit", "refit.min()), float(", "-refit.max()), float("),
    _measure("rounding", TABLE.format(""), TABLE.format("-")),
    _measure("aware", *AWARE),
    _measure("gaussian", '0.50: "11.5"', '0.50: "11.6"'),
    Mutation("measure", "beta", Edit("models.signs", "/ 2 + beta)", "/ 2 - beta)"), FINDINGS),
)


def _turned(i: int, old: str) -> Mutation:
    """A verdict written by hand, and the data of a measure that should turn it."""
    m = MEASURES[i]
    edit = Edit(f"statements.{m.statement}.measure", old, '"holds"')
    return Mutation("verdict", m.statement, edit, FINDINGS, m.edit)


VERDICTS = (
    _turned(0, '"holds" if off < DEVIATIONS else "false"'),
    _turned(1, '"holds" if off.max() < DEVIATIONS else "false"'),
    _turned(2, '"holds" if worst < DEVIATIONS and two > 0 else "false"'),
    _turned(3, '"holds" if least >= -ZERO else "false"'),
    _turned(4, '"false" if positive else "holds"'),
    _turned(5, '"holds" if blind.max() <= 0 <= aware.min() else "false"'),
    _turned(6, '"holds" if same == len(rows) else "false"'),
)
MUTATIONS = (*FORMS, *CLAIMS, *FAMILIES, *MEASURES, *VERDICTS)
