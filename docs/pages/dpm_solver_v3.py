"""The page of DPM-Solver-v3, from results/dpm-solver-v3.json."""

from __future__ import annotations

import math
from typing import Any

from formats import PAIRED, listed, made_by, shown, table, than

RESULTS, PAGE = ("dpm-solver-v3.json",), "dpm-solver-v3.md"


def page(results: dict[str, Any]) -> str:
    """docs/systems/dpm-solver-v3.md, whole; every number and every verdict comes from the results."""
    mixture, digits = results["mixture"], results["digits"]
    low, high = mixture["s_range"]
    ranges = digits["element_ranges"]
    return f"""# DPM-Solver-v3 (arXiv 2310.13268)

Written by `docs/make_pages.py` from `results/dpm-solver-v3.json`. The solver: `src/fewstep/solvers/dpm_solver_v3.py`;
its statistics: `estimate_statistics` in `statistics.py`.

Noise or data prediction is an arbitrary choice of what to hold constant over a step. v3 measures on the network itself
three functions of half log-SNR, l (what part of the noise estimate is linear in the state), s and b (how the rest
changes along the flow), and integrates them exactly. **Statistics belong to one network at one guidance scale**; a plan
made from them names both and is refused elsewhere.

## First order, in closed form

{_mixture(mixture)}

Root mean square error on a mixture of three Gaussians, equal steps in half log-SNR from -4 to 4. "1024 samples":
statistics estimated from so many, mean over seeds ± half of the 95 % interval; the other rows hold statistics by
quadrature. s runs from {low:.1f} to {high:.1f} here, so its exponential grows over long steps.

{_verdict_mixture(mixture)}

## On a trained network

{digits["about"][0].upper()}{digits["about"][1:]}.
Statistics at {digits["nodes"]} noise levels from {digits["samples"]} fine samples of the model
itself (not of its training data): {digits["statistics_seconds"]:.0f} s. Per element, l lies in {_range(ranges["l"])}, s
in {_range(ranges["s"])}, b in {_range(ranges["b"])}. "Scalar" is their mean over elements. "Corrected": with the free
corrector in every row, as UniPC has it.

{_digits(digits)}

Distance from the result of {digits["fine_steps"]} steps with the same noise, over the standard deviation of results, ±
half of the 95 % interval over {len(digits["seeds"])} seeds of {digits["items"]["held-out per seed"]} held-out items.
Every row takes the best of three grids (uniform, log-SNR, quadratic), chosen on {digits["items"]["calibration"]} other
items.

{_verdict_digits(digits)}

## What was and was not reproduced

- Reproduced exactly (`tests/core/test_dpm_solver_v3.py`): Gaussian data in one step from -4 to 4; (l, s, b) =
  (1, 0, 0) is DPM-Solver++ and (0, -1, 0) DPM-Solver; orders 1 to 3, plus one with the corrector.
- Reproduced at small scale: the two tables above.
- Changed: times need not be nodes of the statistics; integrals are taken step by step, so that nothing overflows, and a
  step that is too long for the statistics is refused.
- Not reproduced: the published figures with guidance on CIFAR-10, ImageNet and Stable Diffusion, for which neither the
  networks nor their statistics are at hand. One small network is no verdict on those.

{made_by(results)}
"""


def _mixture(mixture: dict[str, Any]) -> str:
    rows = []
    for form, orders in mixture["errors"].items():
        for order, errors in orders.items():
            cells = [shown(e, 3) if isinstance(e, dict) else "refused" if math.isnan(e) else f"{e:.4f}" for e in errors]
            rows.append([form, order, *cells])
    return table(["held constant", "order", *(f"{n} steps" for n in mixture["steps"])], rows)


def _verdict_mixture(mixture: dict[str, Any]) -> str:
    """Where fitted forms beat both fixed ones, order by order."""
    errors, steps = mixture["errors"], mixture["steps"]
    words = []
    for order in ("1", "2", "3"):
        parts = []
        for form in ("l alone", "l, s, b"):
            fixed = [min(pair) for pair in zip(errors["data"][order], errors["noise"][order], strict=True)]
            won = [n for n, own, best in zip(steps, errors[form][order], fixed, strict=True) if own < best]
            parts.append(f"{form} at {listed(won)} of {listed(steps)} steps")
        words.append(f"- order {order}: {'; '.join(parts)}")
    return "Better than the better of data and noise form:\n\n" + "\n".join(words)


def _digits(digits: dict[str, Any]) -> str:
    counts = list(next(iter(digits["rows"].values())))
    rows = [[name, *(shown(row[n]) for n in counts)] for name, row in digits["rows"].items()]
    return table(["solver", *(f"{n} evaluations" for n in counts)], rows)


def _verdict_digits(digits: dict[str, Any]) -> str:
    """The best of v3 against the best of the others, both chosen on calibration items; and what s and b do."""
    rows = digits["rows"]
    words = []
    for n in next(iter(rows.values())):
        groups = [{k: r[n] for k, r in rows.items() if k.startswith("v3") is fitted} for fitted in (True, False)]
        names = [min(group, key=lambda k: group[k]["calibration"]) for group in groups]
        ours, theirs = (group[name] for group, name in zip(groups, names, strict=True))
        said = than(ours, theirs, "nearer", "farther")
        words.append(f"- {n} evaluations: {names[0]} {shown(ours)}, {names[1]} {shown(theirs)}: {said}")
    pairs = [(rows[k][n], rows[k.replace("l, s, b", "l alone")][n]) for k in rows if "l, s, b" in k for n in rows[k]]
    hurt, helped = (sum(a["mean"] * sign > b["mean"] * sign for a, b in pairs) for sign in (1, -1))
    return (
        f"The v3 variant that is best on the calibration items against the other solver that is. {PAIRED}\n\n"
        + "\n".join(words)
        + f"\n\ns and b on top of l: a larger distance in {hurt} of {len(pairs)} pairs, a smaller one in {helped}."
    )


def _range(ends: list[float]) -> str:
    return f"{ends[0]:.2f} to {ends[1]:.2f}"
