"""The page of DEIS, from results/convergence.json and, if there, results/solvers.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from formats import made_by
from orders import PROTOCOL, find, kept, orders
from quality import ABSENT, MEASURE, distances, wins

from fewstep.files import read_json

PAGE = "deis.md"
FOLDER = Path(__file__).parent.parent.parent / "results"
OURS = ("deis_tab", "deis_rhoab", "deis_log_rho", "rho_rk", "lms", "ipndm", "heun")
SYSTEMS = ["ddim", *OURS, "diffusers DDIM", "diffusers DEIS", "diffusers LMS", "diffusers PNDM", "diffusers Heun",
           "diffusers flow Heun"]  # fmt: skip


def results() -> tuple[Any, ...] | None:
    """Convergence is needed; quality on models is shown once it was measured."""
    convergence, solvers = FOLDER / "convergence.json", FOLDER / "solvers.json"
    if not convergence.exists():
        return None
    return read_json(convergence), read_json(solvers) if solvers.exists() else None


def page(convergence: dict[str, Any], solvers: dict[str, Any] | None) -> str:
    """docs/systems/deis.md, whole; every number and every verdict comes from the results."""
    rows = [row for row in convergence["rows"] if row["solver"] in OURS]
    return f"""# DEIS (arXiv 2204.13902)

Written by `docs/make_pages.py` from `results/convergence.json` and `results/solvers.json`. The solvers:
`src/fewstep/solvers/adams.py`, `runge_kutta.py`.

The exponential integrator again; the noise estimate is extrapolated by a polynomial through past evaluations, in time
(tAB), in rho = sigma/alpha (rhoAB), or in log rho, and integrated once per grid. The paper counts the polynomial's
degree: degree 0 is DDIM, degree 3 reads four evaluations. rhoRK runs Runge-Kutta on dv/drho = eps.

## Are the orders what they say?

{PROTOCOL}

{orders(rows)}

{kept(rows)} {_identities(convergence["rows"])}

{made_by(convergence)}

## On models

{_quality(solvers)}
## What was and was not reproduced

- Reproduced: tAB and rhoAB of degree 0 to 3, the log-rho variant that diffusers ships, and rhoRK with all its tableaux;
  weights by quadrature or in closed form, checked to 1e-9 (`tests/core/test_solver_family.py`), where the published
  code sums 10,000 rectangles.
- Reproduced: iPNDM's constant weights. They keep order two alone on a grid that is not even.
- Not measured: the published FID figures; neither their networks nor their reference statistics are at hand.
"""


def _quality(solvers: dict[str, Any] | None) -> str:
    if solvers is None:
        return ABSENT
    family, multistep = ["deis_tab", "deis_rhoab", "deis_log_rho"], ["dpm_solver_pp_2m", "dpm_solver_pp_3m", "unipc"]
    return f"""{MEASURE}

{distances(solvers, SYSTEMS)}

Evaluations at which the best DEIS is nearer than `ddim`, intervals apart: {wins(solvers, family, ["ddim"])}. Nearer
than the best of {", ".join(f"`{m}`" for m in multistep)}: {wins(solvers, family, multistep)}.
"""


def _identities(rows: list[dict[str, Any]]) -> str:
    """Pairs of papers that are one method, and what the usual start makes of degree 3."""
    pairs = [
        ("DEIS of degree 2 in log rho and DPM-Solver of order 3", find(rows, "deis_log_rho", "", degree=2),
         find(rows, "dpm_solver", "", order=3)),
        ("DEIS of degree 3 in rho and LMS of order 4", find(rows, "deis_rhoab", "", degree=3), find(rows, "lms", "")),
        ("rhoRK with Heun's tableau and EDM's Heun", find(rows, "rho_rk", "", method="heun2"), find(rows, "heun", "")),
    ]  # fmt: skip
    words = []
    for name, a, b in pairs:
        away = max(abs(x / y - 1) for x, y in zip(a["errors"], b["errors"], strict=True))
        words.append(f"{name} differ by {away:.0e} of their error")
    late = find(rows, "deis_tab", "low-order start", degree=3)
    return f"{'; '.join(words)}. With the usual low-order start, degree 3 falls to order {late['slopes'][-1]:.2f}."
