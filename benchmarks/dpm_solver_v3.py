"""DPM-Solver-v3 (arXiv 2310.13268): what fitting the solver to the model buys, on a mixture and on the digit model.

    python benchmarks/dpm_solver_v3.py --output results/dpm-solver-v3.json

Mixture: statistics by quadrature over the density, and estimated from samples; error at orders 1 to 3. Digit model
(shipped, class-conditional, without guidance): statistics estimated from the model's own fine samples, one value per
element of a latent, and averaged to one per lam. Every solver takes the best of the same time grids, chosen on
calibration noise; distances to the fine trajectory are on held-out noise. Statistics belong to this model and guidance.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from line import EPSILON, MIXTURE, VP, at, grid_of, rms, run, spread, statistics
from solvers import usual_grids
from testbeds import SEEDS, Testbed, mnist

from fewstep.denoiser import Denoiser
from fewstep.errors import FewstepError
from fewstep.files import write_json
from fewstep.plan import Plan
from fewstep.runs import environment
from fewstep.solvers import (
    Grid,
    ModelStatistics,
    dpm_solver,
    dpm_solver_pp_2m,
    dpm_solver_v3,
    estimate_statistics,
    grids,
    unipc,
)

STEPS = (5, 8, 10, 20)
EVALUATIONS = (3, 5, 8, 10)
NODES, SAMPLES = 61, 256
CALIBRATION, HELD_OUT = 24, 48
FINE = 100
Build = Callable[[Grid], Plan]


# --- the mixture ------------------------------------------------------------------------------------------------------


def constant(l: float, s: float) -> ModelStatistics:  # noqa: E741  the paper's name
    """Statistics of a fixed form: (1, 0) data, (0, -1) noise."""
    lam = torch.linspace(-4, 4, 101, dtype=torch.float64)
    full = torch.full_like(lam, 1.0)
    return ModelStatistics(lam, l * full, s * full, 0 * full)


def error(statistics: ModelStatistics, steps: int, order: int) -> float:
    """Root mean square error of equal steps in lam from -4 to 4 over first states in [-2.5, 2.5]."""
    start = torch.linspace(-2.5, 2.5, 201, dtype=torch.float64).unsqueeze(1)
    grid = grid_of(torch.linspace(-4, 4, steps + 1))
    try:
        plan = dpm_solver_v3(VP, EPSILON, grid, statistics=statistics, order=order, lower_order_final=False)
    except FewstepError:
        return math.nan  # too steep for steps this long: refused
    return rms(run(plan, start), MIXTURE.flow(start, at(-4.0), at(4.0)))


def on_mixture(seeds: int) -> dict[str, Any]:
    """Errors by form, order and number of steps; those of estimated statistics with their spread over seeds."""
    exact = statistics()
    forms = {"data": constant(1, 0), "noise": constant(0, -1), "l alone": exact.linear(), "l, s, b": exact}
    found: dict[str, Any] = {
        name: {str(order): [error(form, n, order) for n in STEPS] for order in (1, 2, 3)}
        for name, form in forms.items()
    }
    denoiser = Denoiser(MIXTURE.network(VP, EPSILON), VP, EPSILON)
    estimated = [
        estimate_statistics(denoiser, VP, MIXTURE.sample(1024, seed), exact.lam[::4], seed=seed, batch=1024)
        for seed in range(seeds)
    ]
    sampled = {"l alone, 1024 samples": [e.linear() for e in estimated], "l, s, b, 1024 samples": estimated}
    for name, several in sampled.items():
        found[name] = {
            str(order): [spread([error(one, n, order) for one in several]) for n in STEPS] for order in (1, 2, 3)
        }
    return {"steps": list(STEPS), "errors": found, "s_range": [float(exact.s.min()), float(exact.s.max())]}


# --- the digit model --------------------------------------------------------------------------------------------------


def fine(bed: Testbed) -> Plan:
    return unipc(bed.process, bed.prediction, grids.uniform(bed.process, FINE))


def measured(bed: Testbed) -> ModelStatistics:
    """One value per element, from fine samples of the model itself."""
    labels = [i % 10 for i in range(SAMPLES)]
    clean = bed.draw(fine(bed), labels, [9_000_001 + i for i in range(SAMPLES)])
    low, high = (float(bed.process.lam(t)) for t in (bed.process.noisiest, 0.015 * bed.process.noisiest))
    lam = torch.linspace(low, high, NODES, dtype=torch.float64)
    denoiser = Denoiser(bed.bind(labels), bed.process, bed.prediction)
    return estimate_statistics(denoiser, bed.process, clean, lam, elementwise=True, batch=SAMPLES, guidance=1.0)


def systems(bed: Testbed, element: ModelStatistics) -> dict[str, Build]:
    """Solvers by name: grid -> plan."""
    common = (bed.process, bed.prediction)
    scalar = element.averaged()
    found: dict[str, Build] = {
        "DPM-Solver++ 2M": lambda g: dpm_solver_pp_2m(*common, g),
        "DPM-Solver 3 (noise)": lambda g: dpm_solver(*common, g, order=3),
        "UniPC 2": lambda g: unipc(*common, g, order=2),
        "UniPC 3": lambda g: unipc(*common, g, order=3),
    }
    kinds = {"per element": element, "scalar": scalar}
    for order in (2, 3):
        for kind, some in kinds.items():
            for part, chosen in (("l, s, b", some), ("l alone", some.linear())):
                name = f"v3 order {order}, {part}, {kind}"
                found[name] = partial(_v3, bed, chosen, order=order)
        for part, chosen in (("l, s, b", element), ("l alone", element.linear())):
            found[f"v3 order {order}, {part}, per element, corrected"] = partial(
                _v3, bed, chosen, order=order, corrector="full"
            )
    return found


def _v3(bed: Testbed, chosen: ModelStatistics, grid: Grid, **options: Any) -> Plan:
    plan = dpm_solver_v3(bed.process, bed.prediction, grid, statistics=chosen, **options)
    return plan


def on_digits(bed: Testbed) -> dict[str, Any]:
    """Distance to the fine trajectory, over its standard deviation, by solver and evaluations."""
    begun = time.perf_counter()
    element = measured(bed)
    seconds = time.perf_counter() - begun
    known, unseen = bed.known(CALIBRATION), bed.unseen(HELD_OUT)
    target, targets = bed.draw(fine(bed), *known), [bed.draw(fine(bed), *some) for some in unseen]
    unit = float(torch.cat(targets).std())
    usual = usual_grids(bed)
    rows: dict[str, Any] = {}
    for name, build in systems(bed, element).items():
        rows[name] = {}
        for n in EVALUATIONS:
            plans: dict[str, Plan] = {}
            for label in ("uniform", "log-SNR", "quadratic"):
                try:
                    plans[label] = build(usual[label](n))
                except FewstepError:
                    continue  # statistics too steep for this grid
            errors = {label: _distance(bed.draw(plan, *known), target) / unit for label, plan in plans.items()}
            best = min(errors, key=lambda label: errors[label])
            away = [_distance(bed.draw(plans[best], *s), t) / unit for s, t in zip(unseen, targets, strict=True)]
            rows[name][str(n)] = spread(away) | {"grid": best, "calibration": errors[best]}
        print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
    scalar = element.averaged()
    curves = {k: getattr(scalar, k).tolist() for k in ("lam", "l", "s", "b")}
    ranges = {k: [float(getattr(element, k).min()), float(getattr(element, k).max())] for k in ("l", "s", "b")}
    return {
        "about": bed.about,
        "nodes": NODES,
        "samples": SAMPLES,
        "statistics_seconds": round(seconds, 1),
        "fine_steps": FINE,
        "items": {"calibration": CALIBRATION, "held-out per seed": HELD_OUT},
        "seeds": list(SEEDS),
        "rows": rows,
        "curves": curves,
        "element_ranges": ranges,
    }


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over samples of the root mean square difference."""
    return float((a - b).flatten(1).square().mean(1).sqrt().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="results/dpm-solver-v3.json")
    options = parser.parse_args()
    begun = time.perf_counter()
    mixture = on_mixture(3)
    print(f"mixture: {time.perf_counter() - begun:.0f} s", flush=True)
    digits = on_digits(mnist(guidance=1.0))
    result = {"environment": environment(), "mixture": mixture, "digits": digits}
    write_json(options.output, result | {"seconds": round(time.perf_counter() - begun, 1)})


if __name__ == "__main__":
    main()
