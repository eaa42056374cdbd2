"""Every distillation method on 8x8 digits with one trained teacher: 1, 2 and 4 steps, equal budgets of network passes.

    python benchmarks/distillation_digits.py
    python benchmarks/distillation_digits.py --methods lcm dmd2 --steps 1 --seeds 0 1 --output runs/quick.json

Teacher, tuning (half of the budget, cosine decay, a grid that widens), seeds and measures are those of
`distillation_claims.py`. No guidance, so that all methods aim at the same distribution.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from claims.claim import Arm, Claim
from claims.protocol import Costs, Protocol, compared, fingerprint
from distillation_claims import bed_of, references
from distillation_toy import entries

from fewstep.distillation.discriminator import samples
from fewstep.distillation.method import Method, method, options_of, presets, stages_over
from fewstep.files import write_json
from fewstep.process import Process, RectifiedFlow
from fewstep.runs import Run, environment
from fewstep.testing.digits import POINTS, STORED, DigitBed

RATES, MOMENTA = (3e-4, 1e-3), (0.0, 0.9)
TAPS = {"modules": ("blocks.1",)}
# What the papers' values cannot mean for 64 numbers: normalisers whose floors are meant for thousands, names of layers,
# heads that read texture, stages as shares of the run.
OPTIONS: dict[str, dict[str, Any]] = {
    "dmd": {"floor": 0.1}, "dmd2": {"floor": 0.1, **TAPS}, "f_distill": {"floor": 0.1, **TAPS}, "sid": {"floor": 0.1},
    "sid_few_step": {"floor": 0.1}, "tdm": {"floor": 0.1},
    "flash_dmd": {"floor": 0.1, "source": samples, "pull": 0.003}, "ladd": {"penalty": 1.0, **TAPS},
    "mmd_ddm": {"kernel": "radial"}, "ctm": {"anchor": 0.02, "decay": 0.9}, "ect": {"c": 1.0, "stages": 3},
    "mdt": {"sample_guidance": 1.0}, "mlcm": {"first_stage": 0.4}, "mean_flow": {"teacher": True, "times": "uniform"},
    "alpha_flow": {"teacher": True, "times": "uniform"}, "shortcut": {"decay": 0.9},
}  # fmt: skip
LEFT_OUT = {
    "yonos": "its teacher sees an easier condition; this one has none",
    "osediff": "it starts from a degraded picture",
}


def arm_of(name: str, steps: int) -> Arm:
    """The preset with these options, its stages laid over the training."""
    known, options = options_of(name), dict(OPTIONS.get(name, {}))
    options |= {key: value for key, value in (("guidance", 1.0), ("steps", steps)) if key in known}

    def make(process: Process, updates: int) -> Method:
        return method(name, process, **options, **stages_over(name, updates, **options))

    stored = "store" in method(name, RectifiedFlow(), **options).needs
    return Arm(make, bed=lambda bed: bed.stored() if stored else bed)


def _row(name: str, steps: int, bed: DigitBed, run: Run, given: argparse.Namespace) -> dict[str, Any]:
    """A line of the table, with the commit that it was measured at: a resumed run may be older."""
    line, protocol = f"{name}, {steps} steps", Protocol(tuple(given.seeds), given.batch, budget=given.budget)
    claim = Claim(line, "", "", {line: arm_of(name, steps)}, (), RATES, MOMENTA)
    costs = Costs.of(claim, bed, protocol)
    row = compared(line, claim, bed, run, protocol, costs, fingerprint(claim, line, bed))
    best = {key: row["runs"][0][key] for key in ("learning_rate", "momentum", "seeds", "summary")}
    return {"method": name, "steps": steps, "commit": environment()["commit"], **row, **best}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=[n for n in presets() if n not in LEFT_OUT])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--budget", type=int, default=300_000, help="sample passes of one training")
    parser.add_argument("--teacher", type=int, default=6000, help="updates of the teacher")
    parser.add_argument("--output", type=Path, default=Path("results/distillation-digits.json"))
    parser.add_argument("--folder", type=Path, default=Path("runs/distillation-digits"))
    given = parser.parse_args()
    begun, rows = time.perf_counter(), []
    settings = {"seeds": given.seeds, "batch": given.batch, "budget": given.budget, "teacher": given.teacher}
    bed = bed_of(given.folder, given.teacher)
    with Run(given.folder / "methods", settings, quiet=True) as run:
        for name, steps in entries(given.methods, given.steps):
            row = run.unit(f"{name}-{steps}-row", partial(_row, name, steps, bed, run, given))
            rows.append(row)
    write_json(given.output, {
        "settings": settings | {"rates": RATES, "momenta": MOMENTA, "tuning": Protocol.tuning},
        "options": json.loads(json.dumps(OPTIONS, default=lambda value: value.__name__)),
        "left_out": LEFT_OUT, "store_passes": STORED * 4 * POINTS, "rows": rows, "references": references(bed),
        "environment": environment(), "seconds": time.perf_counter() - begun,
    })  # fmt: skip


if __name__ == "__main__":
    main()
