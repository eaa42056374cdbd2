"""The systems and identities of the page of DEIS."""

from __future__ import annotations

from typing import Any

from orders import find

OURS = ("deis_tab", "deis_rhoab", "deis_log_rho", "rho_rk", "lms", "ipndm", "heun")
SYSTEMS = ["ddim", *OURS, "diffusers DDIM", "diffusers DEIS", "diffusers LMS", "diffusers PNDM", "diffusers Heun",
           "diffusers flow Heun"]  # fmt: skip
FAMILY, MULTISTEP = ["deis_tab", "deis_rhoab", "deis_log_rho"], ["dpm_solver_pp_2m", "dpm_solver_pp_3m", "unipc"]


def identities(rows: list[dict[str, Any]]) -> str:
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
