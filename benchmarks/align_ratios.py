"""Reinforcement alone against reinforcement beside distillation at 1:1, 2:1, 5:1 and 10:1, in a training that is long.

    python benchmarks/align_ratios.py
    python benchmarks/align_ratios.py --seeds 0 --budget 40000 --output runs/quick.json --folder runs/align-ratios-quick

Digits, student, reward and measures are those of `benchmarks/align.py`; the policy is GRPO without a divergence, whose
reward has no end, at its rate from there. Every arm has the same samples through networks, so that one with more
distillation has fewer updates of the policy; curves are measured at quarters.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import align
import torch

from fewstep.alignment.presets import alignment
from fewstep.files import write_json
from fewstep.runs import Run, environment
from fewstep.testing.digits import train_digits

RATE, POLICY, ALONE = 1e-4, {"group": 4, "kl": 0.0}, "GRPO alone"
RATIOS = {f"{ratio}:1": ratio for ratio in (10, 5, 2, 1)}


def arms() -> dict[str, Any]:
    """(process, chain) -> method, by name."""

    def joint(ratio: int) -> Any:
        return lambda p, c: alignment(
            "joint", p, c, policy="grpo", ratio=ratio, policy_options=POLICY, distillation_options=align.DMD2
        )

    return {ALONE: lambda p, c: alignment("grpo", p, c, **POLICY), **{n: joint(r) for n, r in RATIOS.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--budget", type=int, default=400_000, help="samples through networks of an arm")
    parser.add_argument("--updates", type=int, default=400, help="of the distillation of the student")
    parser.add_argument("--teacher-steps", type=int, default=2500)
    parser.add_argument("--folder", type=Path, default=Path("runs/align-ratios"))
    parser.add_argument("--output", type=Path, default=Path("results/align-ratios.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    about = {"budget": given.budget, "updates": given.updates, "teacher": given.teacher_steps, "rate": RATE}
    align.ARMS.update(arms())
    with Run(given.folder, about, quiet=True) as run:
        bed = train_digits(given.teacher_steps)
        found: dict[str, Any] = {"untouched": {}, "arms": {name: {} for name in arms()}}
        for seed in given.seeds:
            start, chain = align.student_of(run, bed, seed, given.updates)
            found["untouched"][str(seed)] = align.numbers(bed, bed.model(start), chain)
            for name in arms():
                unit = f"{name.replace(' ', '-').replace(':', '-')}-{seed}"

                def compute(name: str = name, seed: int = seed, start: Any = start, chain: Any = chain) -> Any:
                    ratio = RATIOS.get(name, 1)
                    return align.tuned(name, bed, start, chain, RATE, seed, given.budget, turns=ratio + 1)

                found["arms"][name][str(seed)] = run.unit(unit, compute)
        write_json(given.output, {"settings": about, "seeds": given.seeds, "environment": environment(), **found})


if __name__ == "__main__":
    main()
