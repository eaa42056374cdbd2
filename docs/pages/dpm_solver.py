"""The page of DPM-Solver and DPM-Solver++, from results/convergence.json and, if there, results/solvers.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from formats import made_by
from orders import PROTOCOL, find, kept, orders
from quality import ABSENT, MEASURE, distances, first_to_reach

from fewstep.files import read_json

PAGE = "dpm-solver.md"
FOLDER = Path(__file__).parent.parent.parent / "results"
OURS = (
    "dpm_solver", "dpm_solver_pp_2m", "dpm_solver_pp_3m", "dpm_solver_2s", "dpm_solver_3s", "dpm_solver_pp_2s",
    "dpm_solver_pp_3s", "sde_dpm_solver_pp",
)  # fmt: skip
SYSTEMS = ["ddim", *OURS[:-1], "diffusers DDIM", "diffusers DPM++ 2M", "diffusers DPM++ 3M", "diffusers DPM++ 2S",
           "diffusers flow DPM++ 2M", "diffusers flow DPM++ 3M"]  # fmt: skip


def results() -> tuple[Any, ...] | None:
    """Convergence is needed; quality on models is shown once it was measured."""
    convergence, solvers = FOLDER / "convergence.json", FOLDER / "solvers.json"
    if not convergence.exists():
        return None
    return read_json(convergence), read_json(solvers) if solvers.exists() else None


def page(convergence: dict[str, Any], solvers: dict[str, Any] | None) -> str:
    """docs/systems/dpm-solver.md, whole; every number and every verdict comes from the results."""
    rows = [row for row in convergence["rows"] if row["solver"] in OURS]
    return f"""# DPM-Solver and DPM-Solver++ (arXiv 2206.00927, 2211.01095)

Written by `docs/make_pages.py` from `results/convergence.json` and `results/solvers.json`. The solvers:
`src/fewstep/solvers/dpm_solver.py`, `singlestep.py`, `stochastic.py`.

The sampling ODE is half linear: its linear part is solved exactly, and a Taylor series in half log-SNR of the network's
noise estimate (DPM-Solver) or data estimate (++) does the rest. The claim: high order, hence 10 to 20 evaluations where
DDIM needs many more.

## Are the orders what they say?

{PROTOCOL}

{orders(rows)}

{kept(rows)} {_defect(rows)}

{made_by(convergence)}

## Fewer evaluations than DDIM on models

{_quality(solvers)}
## What was and was not reproduced

- Reproduced: single- and multistep, orders 1 to 3, noise and data form, midpoint and Taylor rules; the same images as
  diffusers where diffusers is right (`tests/core/test_solvers.py`, `test_solver_family.py`).
- Changed: the third-order multistep solver has the whole second derivative. The published code and its copies have half
  of it; they are `legacy=True` here.
- Not built: the adaptive step size (DPM-Solver-12 and -23), which cannot be a table made before sampling. Dynamic
  thresholding is not linear and stays out too.
- Not measured: the published FID figures; neither their networks nor their reference statistics are at hand.
"""


def _quality(solvers: dict[str, Any] | None) -> str:
    if solvers is None:
        return ABSENT
    return f"""{MEASURE}

{distances(solvers, SYSTEMS)}

`dpm_solver_pp_2m` is as near as `ddim` with 20 evaluations: {first_to_reach(solvers, "dpm_solver_pp_2m", "ddim")}.
"""


def _defect(rows: list[dict[str, Any]]) -> str:
    """What halving the second derivative costs, with exact starts and with the usual one."""
    right, wrong = (find(rows, "dpm_solver_pp_3m", note) for note in ("", "defective"))
    usual = find(rows, "dpm_solver_pp_3m", "low-order start")
    usual_wrong = find(rows, "dpm_solver_pp_3m", "defective, low-order start")
    pairs = list(zip(usual_wrong["errors"], usual["errors"], strict=True))
    less = sum(a < b for a, b in pairs)
    return (
        f"The widespread ++3M with half of the second derivative has order {wrong['slopes'][-1]:.2f} instead of "
        f"{right['slopes'][-1]:.2f} when started exactly. With the start that samplers really make, both fall to about "
        f"two ({usual_wrong['slopes'][-1]:.2f} and {usual['slopes'][-1]:.2f}), and the defective one has the smaller "
        f"error at {less} of {len(pairs)} step counts here: two errors that cancel. The repair is right; on its own it "
        f"promises no better images."
    )
