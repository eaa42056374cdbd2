"""A published one-step consistency network of terrain heights, which we did not make, in low bits.

    pip download --no-deps adaptive-terrain-diffusion==0.4.2      # a wheel is a zip file; the network lies in it
    python benchmarks/terrain.py --file terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx

Needs `onnx` to read the file. How far each low-bit network is from full precision on held-out noise (there is no real
terrain to compare with): the error of a sample over its spread, and what other noise gives as the null. `blind` is
quantized without a call to look at, `default` with one: layers whose inputs 8 bits cannot carry keep 16-bit inputs.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from onnx_module import OnnxModule
from torch import Tensor

from fewstep.files import write_json
from fewstep.metrics.intervals import mean_interval
from fewstep.quant import quantize
from fewstep.quant.fidelity import sqnr
from fewstep.runs.environment import environment

ARMS = [(scheme, how) for scheme in ("w8a16", "w8a8", "w4a16", "w4a8") for how in ("blind", "default")]
SIGMA = 80.0


def inputs(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pure noise (B, 1, 128, 128), its level (B,) and difficulties (B,) spread over their range."""
    noise = torch.randn(count, 1, 128, 128, generator=torch.Generator().manual_seed(seed))
    return SIGMA * noise, torch.full((count,), SIGMA), torch.linspace(0.05, 0.95, count)


def errors(truth: Tensor, found: Tensor) -> Tensor:
    """Root mean square error of each sample over the spread of its truth, (B,)."""
    away = (found - truth).flatten(1).square().mean(1).sqrt()
    return away / truth.flatten(1).std(1)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--output", type=Path, default=Path("results/terrain.json"))
    given = parser.parse_args()
    full = OnnxModule(given.file).eval().requires_grad_(False)
    call, held_out = (inputs(2, 0), {}), inputs(given.samples, 1)
    truth = full(*held_out)
    other = full(*inputs(given.samples, 2))
    rows: list[dict[str, Any]] = []
    for scheme, how in ARMS:
        low = copy.deepcopy(full)
        report = quantize(low, scheme, example=call if how == "default" else None)
        found = low(*held_out)
        wide = [row.name for row in report.rows if "outliers" in row.reason]
        rows.append({
            "scheme": scheme, "how": how, "bytes": report.disk_after, "wide_layers": len(wide),
            "layers": sum(row.quantized for row in report.rows), "sqnr": sqnr(truth, found),
            "error": mean_interval(errors(truth, found)).as_dict(),
        })  # fmt: skip
        print(scheme, how, rows[-1]["error"]["mean"], rows[-1]["sqnr"], len(wide), flush=True)
    write_json(given.output, {
        "samples": given.samples, "seeds": {"example": 0, "held_out": 1, "null": 2},
        "null": mean_interval(errors(truth, other)).as_dict(), "rows": rows, "environment": environment(),
    })  # fmt: skip


if __name__ == "__main__":
    main()
