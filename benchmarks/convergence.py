"""Measured orders of convergence of every deterministic solver on an exact mixture, beside independent golden errors.

    python benchmarks/convergence.py --output results/convergence.json

Protocol: mixture of three Gaussians in one dimension, perfect noise estimate, variance-preserving process, half log-SNR
uniformly from -2 to 2, nine first states from -2 to 2, largest error to the exact flow. Solvers that read a history of
p estimates get their first p - 1 new states exactly ("seeded"): a low-order start hides every order above 2. The golden
errors come from an implementation that shares no code with this package. Nothing is random here.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from line import EPSILON, MIXTURE, VP, grid_of, levels, statistics

from fewstep.executor import sample
from fewstep.files import write_json
from fewstep.plan import RunState
from fewstep.runs import environment
from fewstep.solvers import FACTS, SOLVERS, dpm_solver_v3

COUNTS = (20, 40, 80, 160)
BLOCKS = (24, 48, 96, 192)
"""Evaluations of singlestep solvers, whose blocks must come out."""
FULL = {"lower_order_final": False}
HALF_SECOND = {"legacy": True, **FULL}


@dataclass(frozen=True)
class Case:
    """A solver with settings; `seeds` new states are exact; `order` is what its papers promise."""

    name: str
    order: int
    seeds: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    golden: tuple[float, ...] = ()
    counts: tuple[int, ...] = COUNTS
    note: str = ""


CASES = [
    Case("ddim", 1, golden=(0.194, 0.0970, 0.0522, 0.0301)),
    Case("euler", 1),
    Case("dpm_solver", 2, 1, {"rule": "exact", **FULL}, (0.0251, 0.00801, 0.00222, 0.000583)),
    Case("dpm_solver", 3, 2, {"order": 3, **FULL}, (0.0227, 0.00299, 3.82e-4, 4.81e-5)),
    Case("dpm_solver", 3, 0, {"order": 3, **FULL}, note="low-order start"),
    Case("dpm_solver", 3, 2, {"order": 3, **HALF_SECOND}, note="defective"),
    Case("dpm_solver_pp_2m", 2, 1, {"rule": "bh2", **FULL}, (0.0805, 0.0198, 0.00486, 0.00121)),
    Case("dpm_solver_pp_2m", 2, 1, {"rule": "exact", **FULL}, (0.0981, 0.0229, 0.00554, 0.00137)),
    Case("dpm_solver_pp_2m", 2, 0, FULL, (0.0570, 0.0149, 0.00377, 0.000948), note="low-order start"),
    Case("dpm_solver_pp_3m", 3, 2, FULL, (0.00928, 7.00e-4, 6.06e-5, 5.94e-6)),
    Case("dpm_solver_pp_3m", 3, 0, FULL, (0.0137, 0.0042, 0.0011, 0.00026), note="low-order start"),
    Case("dpm_solver_pp_3m", 3, 2, HALF_SECOND, (0.0274, 0.00514, 0.00116, 0.000285), note="defective"),
    Case("dpm_solver_pp_3m", 3, 0, HALF_SECOND, (0.0052, 0.0010, 0.00023, 0.000054), note="defective, low-order start"),
    Case("dpm_solver_2s", 2, counts=BLOCKS),
    Case("dpm_solver_3s", 3, 0, {"rule": "bh2"}, (0.0021, 2.9e-4, 4.0e-5, 5.2e-6), BLOCKS),
    Case("dpm_solver_pp_2s", 2, 0, {}, (0.0321, 0.0088, 0.0023, 6.0e-4), BLOCKS),
    Case("dpm_solver_pp_3s", 3, 0, {"rule": "bh2"}, (0.0203, 0.0037, 5.5e-4, 7.5e-5), BLOCKS),
    Case("unipc", 2, 0, {"order": 1, **FULL}),
    Case("unipc", 3, 1, {"order": 2, "correct_from": 2, **FULL}),
    Case("unipc", 4, 2, {"order": 3, "correct_from": 3, **FULL}),
    Case("unipc", 4, 0, {"order": 3, **FULL}, note="low-order start"),
    Case("unipc", 3, 2, {"order": 3, "corrector": False, **FULL}),
    Case("deis_tab", 1, 0, {"degree": 0}),
    Case("deis_tab", 2, 1, {"degree": 1}, (0.0398, 0.0128, 0.00356, 0.000933)),
    Case("deis_tab", 3, 2, {"degree": 2}, (0.0346, 0.00497, 0.000663, 0.0000855)),
    Case("deis_tab", 4, 3, {"degree": 3}, (0.00939, 0.000655, 0.0000419, 0.00000263)),
    Case("deis_tab", 4, 0, {"degree": 3}, note="low-order start"),
    Case("deis_rhoab", 2, 1, {"degree": 1}, (0.0439, 0.0124, 0.0033, 0.000851)),
    Case("deis_rhoab", 3, 2, {"degree": 2}, (0.0155, 0.00262, 0.000379, 0.0000512)),
    Case("deis_rhoab", 4, 3, {"degree": 3}, (0.0170, 0.00152, 0.000115, 0.00000792)),
    Case("deis_log_rho", 3, 2, {"degree": 2, **FULL}, (0.0227, 0.00299, 3.82e-4, 4.81e-5)),
    Case("deis_log_rho", 4, 3, {"degree": 3, **FULL}, (0.00556, 2.99e-4, 1.62e-5, 9.2e-7)),
    Case("lms", 4, 3, {"order": 4}, (0.0170, 0.00152, 0.000115, 0.00000792)),
    Case("ipndm", 2, 1, {"order": 2}),
    Case("ipndm", 4, 3, {"order": 4}, note="constant-step weights on another grid"),
    Case("heun", 2, golden=(0.0563, 0.0123, 0.00296, 7.28e-4)),
    Case("rho_rk", 2, 0, {"method": "heun2"}, (0.0563, 0.0123, 0.00296, 7.28e-4)),
    Case("rho_rk", 3, 0, {"method": "kutta3"}),
    Case("rho_rk", 4, 0, {"method": "classic4"}),
    Case("sde_dpm_solver_pp", 2, 1, {"tau": 0.0, **FULL}),
    *(Case("dpm_solver_v3", p, p - 1, {"order": p, **FULL}) for p in (1, 2, 3)),
]


def error(case: Case, count: int, known: dict[str, Any]) -> float:
    """Largest error of nine states at lam = 2."""
    lam = torch.linspace(-2, 2, count + 1, dtype=torch.float64)
    solver = dpm_solver_v3 if case.name == "dpm_solver_v3" else SOLVERS[case.name]
    plan = solver(VP, EPSILON, grid_of(lam), **case.settings, **known)
    scales = [levels(VP, float(t)) for t in VP.time(lam)]
    start = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(1)
    states = {0: float(plan.rows[0].alpha) / scales[0][0] * start}  # plans in sigma space rescale the state
    for k in range(1, case.seeds + 1):
        states[k] = float(plan.rows[k].alpha) / scales[k][0] * MIXTURE.flow(start, scales[0], scales[k])
    exact, network = RunState(states), MIXTURE.network(VP, EPSILON)
    x = sample(plan, network, seeds=range(len(start)), shape=(1,), start=exact, dtype=torch.float64)
    ending = float(plan.final_alpha) / scales[-1][0]
    return float((x / ending - MIXTURE.flow(start, scales[0], scales[-1])).abs().max())


def measure(case: Case, known: dict[str, Any]) -> dict[str, Any]:
    """Errors at every count, the slopes between them, and what an independent implementation found."""
    errors = [error(case, n, known) for n in case.counts]
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    calls = FACTS[case.name].calls
    calls = {"heun2": 2, "kutta3": 3, "classic4": 4}.get(case.settings.get("method", ""), calls)
    return {
        "solver": case.name,
        "settings": case.settings,
        "seeded": case.seeds,
        "note": case.note,
        "promised": case.order,
        "calls_per_step": calls,
        "counts": list(case.counts),
        "errors": errors,
        "slopes": slopes,
        "golden": list(case.golden),
        "departure_from_golden": max(
            (abs(e / g - 1) for e, g in zip(errors, case.golden, strict=bool(case.golden))), default=None
        ) if case.golden else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="results/convergence.json")
    options = parser.parse_args()
    begun = time.perf_counter()
    fitted = {"statistics": statistics(-2.5, 2.5)}
    rows = [measure(case, fitted if case.name == "dpm_solver_v3" else {}) for case in CASES]
    for row in rows:
        print(
            row["solver"], row["settings"], row["note"], [f"{e:.3g}" for e in row["errors"]], f"{row['slopes'][-1]:.2f}"
        )
    write_json(
        options.output,
        {"environment": environment(), "rows": rows, "seconds": round(time.perf_counter() - begun, 1)},
    )


if __name__ == "__main__":
    main()
