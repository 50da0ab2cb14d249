"""The beta law: the expansion at the threshold, its remainder, its cases, and where it stops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import sympy

from theory.engine import symbolic
from theory.engine.statement import Counterexample, Proof, Step
from theory.maths import beta as forms
from theory.maths import closed_forms
from theory.maths.densities import Normal


def _expansion() -> list[Step]:
    """Three values of (delta, e), any probabilities, a linear density."""
    x, y, f, slope, level, rho = sympy.symbols("x y f slope level rho", real=True)
    q1, q2, r = sympy.symbols("q1 q2 r", real=True)
    d, c = sympy.symbols("d1:4", real=True), sympy.symbols("c1:4", real=True)
    q = (q1, q2, 1 - q1 - q2)

    def mean(values: list[sympy.Expr]) -> sympy.Expr:
        return sum(a * b for a, b in zip(q, values, strict=True))

    average, centre = mean(list(d)), mean(list(c))
    variance = mean([(a - average) ** 2 for a in d])
    covariance = mean([(a - average) * (b - centre) for a, b in zip(d, c, strict=True)])
    far = [average + r - a for a in d]  # s - delta

    def advantage(tilt: sympy.Expr) -> sympy.Expr:
        between = [
            sympy.integrate(
                sympy.expand((level - b + (1 - slope) * x) * f * (1 + tilt * x)), (x, 0, y)
            ).subs(y, a)
            for a, b in zip(far, c, strict=True)
        ]
        return -mean(between)

    law = forms.beta_advantage(f, variance, slope, covariance / variance)
    mass = mean([a + rho * a**2 / 2 for a in far])
    remainder = (1 - slope) * (r**2 / 2 + rho * mean([a**3 for a in far]) / 3)
    remainder -= rho * mean([(b - centre) * a**2 for a, b in zip(far, c, strict=True)]) / 2
    return [
        symbolic.step(
            "a flat density, s = E delta: A is the law, exactly",
            sympy.cancel(sympy.together(advantage(sympy.Integer(0)).subs(r, 0) - law)),
        ),
        symbolic.step(
            "as many units go: r + rho (r^2 + Var)/2 = 0 for s = E delta + r",
            mass,
            r + rho * (r**2 + variance) / 2,
        ),
        symbolic.step(
            "a linear density: A is the law less f [(1 - e')(r^2/2 + rho E(s - delta)^3/3) - "
            "rho E[(e - Ee)(s - delta)^2]/2] and less what the masses' difference would add",
            sympy.cancel(
                sympy.together(advantage(rho) - (law - f * remainder - f * (level - centre) * mass))
            ),
        ),
    ]


def prove() -> Proof:
    t, v, z, f, j, step = sympy.symbols("t v z f j D", positive=True)
    theta, rho = sympy.symbols("theta rho", real=True)
    phi = symbolic.normal_pdf

    def expect(g: sympy.Expr) -> sympy.Expr:
        """E g(z), z standard normal, g a polynomial."""
        moments = {0: 1, 2: 1, 4: 3, 6: 15}
        terms = sympy.Poly(sympy.expand(g), z).terms()
        return sum(k * moments.get(n, 0) for (n,), k in terms)

    eps = sympy.sqrt(v) * z
    delta, error = 2 * t * eps + eps**2, eps**2
    variance = sympy.expand(expect(delta**2) - expect(delta) ** 2)
    covariance = expect(delta * error) - expect(delta) * expect(error)
    density = phi(t) / t  # of w^2 at t^2: 2 phi(t) over 2 t
    noise = forms.beta_advantage(density, variance, 0, covariance / variance)
    spread = expect(error**2) - expect(error) ** 2
    aware = forms.beta_advantage(density, spread, 0, -1)
    third = expect((error - v) ** 3)
    log_slope = sympy.simplify(sympy.log(density).diff(t) / (2 * t))  # d/da of log f_a
    # a cell of level j D, density f (1 + rho (u - threshold)); u from the lower edge
    u = sympy.symbols("u", positive=True)
    at = sympy.symbols("y", positive=True)  # the threshold, from the lower edge
    linear = 2 * f * (1 + rho * (u - at))
    gain = 2 * j * step * u  # d less its value at the edge
    whole, below = (
        [sympy.integrate(g * linear, (u, 0, end)) for g in (1, gain)] for end in (step, at)
    )
    exact = -(below[0] / whole[0] * whole[1] - below[1])
    place = below[0] / whole[0]
    by_law = forms.grid_advantage(place, j * step, step, f)
    ratio = sympy.cancel(sympy.together((exact / by_law).subs(at, theta * step)))
    off = sympy.simplify(ratio.diff(rho).subs(rho, 0))
    return Proof(
        (
            *_expansion(),
            symbolic.step("2b: Var(delta) = 4 t^2 v + 2 v^2", variance, 4 * t**2 * v + 2 * v**2),
            symbolic.step(
                "2b: the law is -2 v t phi(t) (1 + 3 v/(2 t^2))",
                noise,
                -2 * v * t * phi(t) * (1 + forms.noise_correction(v, t)),
            ),
            symbolic.step("2c: the law is +phi(t) v^2/t", aware, phi(t) * v**2 / t),
            symbolic.step(
                "2c: the next term, f' E(e - v)^3 / 6, is -(2/3) v (1 + 1/t^2) of it",
                sympy.simplify(density * log_slope * third / 6 / aware),
                -forms.aware_correction(v, t),
            ),
            symbolic.step("grid: exact for a flat cell", sympy.simplify(ratio.subs(rho, 0)), 1),
            symbolic.step(
                "grid: off by (2/3) (1 - 2 theta) D f'/f to first order",
                off,
                sympy.Rational(2, 3) * (1 - 2 * theta) * step,
            ),
            symbolic.step(
                "grid: the mean over theta is -4 v t f, v = D^2/12, t = j D",
                sympy.integrate(forms.grid_advantage(theta, j * step, step, f), (theta, 0, 1)),
                -4 * (step**2 / 12) * (j * step) * f,
            ),
        ),
        beyond="three values stand for any law: all terms are means; |r| <= |rho| Var, which gives "
        "the error term from the remainder by the triangle inequality; densities that are not "
        "linear add their curvature, of fourth order in delta; the bounds of 2c and of grids are "
        "their first-order terms, checked by quadrature beyond",
    )


def necessity() -> tuple[Counterexample, ...]:
    with jax.enable_x64(True):
        step, t, v = 0.1, jnp.asarray(1.0), jnp.asarray(0.5)
        p = Normal().moment(0, -t, t)
        f = float(Normal().pdf(t))
        rounded = float(closed_forms.expected_advantage(Normal(), p, jnp.asarray(step), 1000))
        aware = float(jax.jit(closed_forms.aware_advantage)(p, jnp.ones(()), v))
    law = float(forms.beta_advantage(f, 4 * step**2 / 12, 0.0, 0.0))
    large = float(forms.beta_advantage(f, 2 * 0.5**2, 0.0, -1.0))
    return (
        Counterexample(
            "the law of (delta, e) does not change over the reach of delta around the threshold",
            "normal weights rounded to a step of 0.1, threshold 1 in the middle of its cell: delta "
            "is a function of the weight, A is -6 v t f and not the law's -2 v t f",
            "==",
            law,
            rounded,
        ),
        Counterexample(
            "delta is small against the scale on which the density of saliencies changes",
            "2c at t = 1 with noise of half the variance: the law against the exact A",
            "==",
            large,
            aware,
        ),
    )
