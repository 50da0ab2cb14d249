"""Where a study's time goes: phases, programs, peak memory; and evaluating against bare passes.

    python -m tests.benchmarks.engine [--study start] [--json PATH]

The study is run twice in processes of their own: with empty caches (models are trained, programs
compiled) and again on the models and programs of the first, with its records gone. ``evaluate``
is a cell's evaluation over the bare forward passes of the same test set, interleaved in one
process, for every model of the study. Run it with nothing else on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from perturb.backend import compile_quickly

REPEATS = 9


def study_once(name: str, out: Path) -> dict[str, Any]:
    """Run in a process of its own: seconds to the first table and the end, phases, programs."""
    start = time.perf_counter()
    import jax

    from experiments.runner import Clock, run_study
    from experiments.study import find
    from experiments.watch import Lines
    from perturb import cache_programs

    cache_programs()
    first: list[float] = []

    class Watch(Lines):
        def alone(self, records: list[dict[str, Any]]) -> None:
            super().alone(records)
            first.append(time.perf_counter() - start)

    clock = Clock()
    run_study(find(name), out, watch=Watch(), clock=clock)
    return {
        "first finding": first[0],
        "whole run": time.perf_counter() - start,
        "phases": clock.spent,
        "programs": clock.programs,
        "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def evaluation(name: str) -> dict[str, float]:
    """By model: seconds of a cell's evaluation over those of the bare forward passes."""
    import jax

    from experiments.evaluate import Evaluator
    from experiments.runner.running import load_task
    from experiments.study import find
    from perturb import network
    from perturb.state import Parameters

    found = {}
    for model in find(name).models:
        task, _ = load_task(model, 0)
        specs, _ = network.find_layers(task.model)
        net = network.Network(task.model, specs)
        evaluator = Evaluator(task, net)
        parameters = Parameters({n: 1.001 * w for n, w in net.weights.items()}, {})
        state = net.state(parameters)
        timed: tuple[list[float], list[float]] = ([], [])
        for _ in range(REPEATS + 1):
            start = time.perf_counter()
            for inputs, _targets in evaluator.batches:
                jax.block_until_ready(net.outputs(state, inputs))
            middle = time.perf_counter()
            evaluator([parameters])
            timed[0].append(middle - start)
            timed[1].append(time.perf_counter() - middle)
        bare, whole = (median(t[1:]) for t in timed)  # the first compiles
        found[str(model)] = whole / bare
    return found


def _child(what: str, study: str, cache: Path, out: Path) -> Any:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.benchmarks.engine"),
            *("--study", study, "--part", what, "--out", str(out)),
        ],
        env=os.environ | {"PERTURB_CACHE": str(cache)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="start")
    parser.add_argument("--json", type=Path, help="write the numbers there, too")
    parser.add_argument("--part", choices=("study", "evaluate"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        compile_quickly()  # as the command lines do
        made = (
            study_once(arguments.study, arguments.out)
            if arguments.part == "study"
            else evaluation(arguments.study)
        )
        print(json.dumps(made))
        return
    with tempfile.TemporaryDirectory() as folder:
        cache, out = Path(folder) / "cache", Path(folder) / "out"
        runs = {}
        for name in ("empty caches", "cached models and programs"):
            runs[name] = _child("study", arguments.study, cache, out / name.split()[0])
            _show(name, runs[name])
        ratios = _child("evaluate", arguments.study, cache, out)
    told = ", ".join(f"{model} {ratio:.2f}" for model, ratio in ratios.items())
    print(f"evaluation over bare forward passes: {told}")
    if arguments.json:
        machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"
        result = {"study": arguments.study, "machine": machine, "runs": runs, "evaluate": ratios}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def _show(name: str, run: dict[str, Any]) -> None:
    phases = ", ".join(f"{k} {v:.0f} s" for k, v in run["phases"].items())
    share = run["phases"].get("compile", 0.0) / run["whole run"]
    print(
        f"{name}: first finding {run['first finding']:.0f} s, end {run['whole run']:.0f} s "
        f"({phases}; compiling {share:.0%}), {run['programs']} programs, {run['peak GB']:.2f} GB",
        flush=True,
    )


if __name__ == "__main__":
    main()
