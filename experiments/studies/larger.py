"""The embedded study on a Llama of two million parameters: do the verdicts change with size?

One calibration draw, as draws move A much less than trainings do (see the README's table).

Run:      python -m experiments run larger
"""

from experiments.studies.embedded import PLANS
from experiments.study import Study

STUDY = Study(
    name="larger",
    description="a Llama of 2 M parameters, 5 trainings, on the grid of embedded",
    models=("llama-docs-2m",),
    seeds=(0, 1, 2, 3, 4),
    plans=PLANS,
)
