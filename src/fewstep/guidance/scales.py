"""The scale of classifier-free guidance: conventions, and scales that change along a plan, as rows of it."""

from __future__ import annotations

from dataclasses import replace

from fewstep.errors import FewstepError, nearest
from fewstep.plan import Plan, Row
from fewstep.plan.combination import is_exactly

CONVENTIONS = ("diffusers", "paper")
"""`diffusers`: uncond + g (cond - uncond), 1 is without. `paper` (arXiv 2207.12598; Z-Image): cond + w (cond - uncond),
0 is without."""


def guidance_scale(value: float, convention: str) -> float:
    """The scale of a convention as diffusers counts it, which is what all of fewstep takes.

    Raises:
        FewstepError: an unknown convention.
    """
    if convention not in CONVENTIONS:
        raise FewstepError("unknown convention of guidance", value=convention, hint=nearest(convention, CONVENTIONS))
    return value if convention == "diffusers" else 1 + value


def guidance_interval(plan: Plan, scale: float, low: float, high: float) -> Plan:
    """The plan that guides where low <= sigma / alpha <= high alone (arXiv 2404.07724); elsewhere the scale is 1.

    Run it with a `fewstep.denoiser.Guided` network.

    Raises:
        FewstepError: no row lies within.
    """
    inside = [low * float(row.alpha) <= float(row.sigma) <= high * float(row.alpha) for row in plan.rows]
    if not any(inside):
        levels = [f"{float(row.sigma) / max(float(row.alpha), 1e-12):.3g}" for row in plan.rows]
        hint = f"Its rows are at {', '.join(levels)}."
        raise FewstepError("no row of the plan lies in the interval of guidance", value=(low, high), hint=hint)
    rows = [replace(row, guidance=scale if yes else 1.0) for row, yes in zip(plan.rows, inside, strict=True)]
    return plan.replace(rows=tuple(rows))


def cfg_plus_plus(plan: Plan, scale: float) -> Plan:
    """The plan whose rows noise anew with the unconditional noise (CFG++, arXiv 2406.08070).

    A DDIM step from (alpha, sigma) to (alpha', sigma') that takes x0 from the guided noise eps_u + scale (eps_c -
    eps_u), and eps_u for the rest, equals an ordinary step of classifier-free guidance with the scale

        scale / (1 - sigma' alpha / (alpha' sigma)),

    which grows with the number of steps: so it is a scale for each row, and any executor runs it.

    Args:
        plan: first-order and deterministic (DDIM, Euler).
        scale: lambda of the paper, in [0, 1].

    Raises:
        FewstepError: a scale beyond [0, 1], or a plan with memory or noise.
    """
    if not 0 <= scale <= 1:
        raise FewstepError("CFG++ interpolates: its scale is in [0, 1]", value=scale, hint="Use 0.6.")
    if any(not is_exactly(row.noise, 0.0) or set(row.output) != {k} for k, row in enumerate(plan.rows)):
        hint = "Use a plan of the solver `ddim` or `euler`."
        raise FewstepError("CFG++ is defined for first-order plans without noise", hint=hint)
    ends = (float(plan.final_alpha), float(plan.final_sigma))
    levels = [*((float(row.alpha), float(row.sigma)) for row in plan.rows), ends]

    def at(k: int, row: Row) -> Row:
        (alpha, sigma), (further, less) = levels[k], levels[k + 1]
        return replace(row, guidance=scale / (1 - less * alpha / (further * sigma)))

    return plan.replace(rows=tuple(at(k, row) for k, row in enumerate(plan.rows)))
