"""The systems of the page of DPM-Solver, and what half a second derivative costs."""

from __future__ import annotations

from typing import Any

from orders import find

OURS = (
    "dpm_solver", "dpm_solver_pp_2m", "dpm_solver_pp_3m", "dpm_solver_2s", "dpm_solver_3s", "dpm_solver_pp_2s",
    "dpm_solver_pp_3s", "sde_dpm_solver_pp",
)  # fmt: skip
SYSTEMS = ["ddim", *OURS[:-1], "diffusers DDIM", "diffusers DPM++ 2M", "diffusers DPM++ 3M", "diffusers DPM++ 2S",
           "diffusers flow DPM++ 2M", "diffusers flow DPM++ 3M"]  # fmt: skip


def defect(rows: list[dict[str, Any]]) -> str:
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
