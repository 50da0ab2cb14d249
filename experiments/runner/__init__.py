"""Run a study: every cell once, whatever interrupts.

    run_study(study, Path("results"))

For each model, training seed, calibration draw and policy the plans form a tree (:mod:`.walk`).
Cells are evaluated and recorded one by one, so a killed run loses the cell it was at; what
identifies a cell is all that decides it (:meth:`.job.Job.cell_id`), so whatever changed since is
run again, and nothing else is.
"""

from experiments.runner.clock import Clock, Spent, drop_programs_if_many
from experiments.runner.desk import finished
from experiments.runner.job import Job, Shared
from experiments.runner.running import check_study, run_study
from experiments.runner.together import run_together
from experiments.runner.walk import run_job
from experiments.watch import Watch

__all__ = [
    "Clock",
    "Job",
    "Shared",
    "Spent",
    "Watch",
    "check_study",
    "drop_programs_if_many",
    "finished",
    "run_job",
    "run_study",
    "run_together",
]
