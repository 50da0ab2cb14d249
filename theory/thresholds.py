"""What counts as equal, small, clear or different in findings: every threshold, with its reason.

None was fitted to an outcome. Claims are judged elsewhere and to rounding
(:data:`theory.engine.statement.TOLERANCE`); here it is measurements, which are words by choice.
"""

from __future__ import annotations

# --- sampling error. A normal mean is off by more in a run of 300 cells once in ...
DEVIATIONS = 5.0  # ... 6000 runs: a law that Monte Carlo contradicts by so much is wrong
CLEAR = 4.0  # ... 50 runs: an advantage so far from 0 has a sign
NOTED = 3.0  # one cell in 370: what single comparisons that are counted, not judged, differ by

# --- exact numbers in float64
ZERO = 1e-12  # of the scale of a quantity: below, it is 0; four digits above rounding
TIE = 1e-5  # relative, float32: orders whose losses are this close are one; 100 roundings

# --- shares
AGREES = 0.95  # of cells with the sign, or Kendall's tau, that a claim says: it holds in effect
WITHIN = 0.1  # relative: two numbers closer than this are called equal, laws linear
CHANGES = 1.0 + WITHIN  # a quantity whose most and least differ by this factor is not constant

# --- models: nats of KL a prediction
SMALL = 0.1  # a small perturbation of the outputs: perplexity up by a tenth
ALONE = SMALL / 10  # the same of a single layer of about ten
FLOOR = 1e-9  # below, float32 outputs tell little of a KL

# --- models: what visibly breaks an assumption about rounding error
SPREAD = 2.0  # kappas of layers within this factor are called one kappa
MEAN = 0.05  # of a standard deviation: a bias that costs 0.25 % of the error's energy
SKEW = 0.2  # third standardised moment; that of an exponential is 2
SHARE = 0.05  # of the variance, explained by the weight
RESOLUTION = 1e-6  # of ||w||^2: below, A is 0 in float32
