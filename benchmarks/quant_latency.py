"""Latency and bytes of quantized layers against float ones, on the device at hand.

    python benchmarks/quant_latency.py [--batch 16] [--rounds 9] [--output results/quant-latency.json]

Two parts: one evaluation of a small SD-like UNet under each scheme, and single layers of the shapes of Stable Diffusion
1.5 at 512 x 512 in float32, bfloat16, torchao's dynamic int8 (Linear only: it takes no convolution) and ours. Each
number is the best of several rounds over all variants in one process, so that a busy moment of the machine hits none
of them alone. `speedup` is the geometric mean over the shapes.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from clock import Call, in_turn
from torch import Tensor, nn

from fewstep.cli.doctor import processor_flags
from fewstep.files import write_json
from fewstep.quant import native, quantize
from fewstep.quant.report import resident_bytes
from fewstep.runs.environment import environment


def best_ms(calls: Mapping[str, Call], rounds: int, device: str) -> dict[str, float]:
    """Milliseconds of the fastest run of each call."""
    return {name: min(taken) for name, taken in in_turn(calls, rounds, device, warm_up=1).items()}


def build_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(96, 192), layers_per_block=1, cross_attention_dim=128, attention_head_dim=32,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
    ).eval()  # fmt: skip


def unet_rows(batch: int, device: str) -> list[dict[str, Any]]:
    """One network evaluation per scheme."""
    torch.manual_seed(1)
    x, prompt = torch.randn(batch, 4, 8, 8, device=device), torch.randn(batch, 24, 128, device=device)
    schemes = ("float32", "w8a16", "w8a8", "w4a16", "w4a8", "w4a8row", "w3a8", "w2a8")
    models = {scheme: build_unet().to(device) for scheme in schemes}
    for scheme in schemes[1:]:
        quantize(models[scheme], scheme)
    calls: dict[str, Call] = {n: (lambda model=model: model(x, 10, prompt).sample) for n, model in models.items()}
    times = best_ms(calls, 9, device)
    return [{"scheme": n, "ms": times[n], "resident_bytes": resident_bytes(models[n])} for n in schemes]


Shape = tuple[int, ...]
"""Linear: tokens, inputs, outputs. Conv2d: height and width, inputs, outputs, kernel."""
SHAPES: dict[str, dict[str, dict[str, Shape]]] = {
    "sd15": {  # 512 x 512
        "Linear": {
            "attention 64x64": (4096, 320, 320),
            "feed-forward in 64x64": (4096, 320, 2560),
            "feed-forward out 64x64": (4096, 1280, 320),
            "attention 32x32": (1024, 640, 640),
            "feed-forward in 32x32": (1024, 640, 5120),
            "attention 16x16": (256, 1280, 1280),
            "text keys": (77, 768, 1280),
        },
        "Conv2d": {
            "block 64x64": (64, 320, 320, 3),
            "block 32x32": (32, 640, 640, 3),
            "block 16x16": (16, 1280, 1280, 3),
            "block 8x8": (8, 1280, 1280, 3),
            "shortcut 32x32": (32, 1280, 640, 1),
        },
    },
    "sdxl": {  # 1024 x 1024
        "Linear": {
            "attention 64x64": (4096, 640, 640),
            "feed-forward in 64x64": (4096, 640, 5120),
            "feed-forward out 64x64": (4096, 2560, 640),
            "attention 32x32": (1024, 1280, 1280),
            "feed-forward in 32x32": (1024, 1280, 10240),
            "feed-forward out 32x32": (1024, 5120, 1280),
            "text keys": (77, 2048, 1280),
        },
        "Conv2d": {
            "block 128x128": (128, 320, 320, 3),
            "block 64x64": (64, 640, 640, 3),
            "block 32x32": (32, 1280, 1280, 3),
            "up block 32x32": (32, 2560, 1280, 3),
            "shortcut 64x64": (64, 1920, 640, 1),
        },
    },
    "flux": {  # 1024 x 1024: 4096 tokens of the picture, 512 of the text
        "Linear": {
            "attention, picture": (4096, 3072, 3072),
            "attention, text": (512, 3072, 3072),
            "feed-forward in": (4096, 3072, 12288),
            "feed-forward out": (4096, 12288, 3072),
            "single block in": (4608, 3072, 12288),
            "single block out": (4608, 15360, 3072),
            "modulation": (1, 3072, 18432),
        },
    },
}


def layer_of(kind: str, shape: Shape, device: str) -> tuple[nn.Module, Tensor]:
    """A float32 layer of this shape, and an input."""
    torch.manual_seed(0)
    if kind == "Linear":
        tokens, inputs, outputs = shape
        return nn.Linear(inputs, outputs).to(device), torch.randn(1, tokens, inputs).to(device)
    size, inputs, outputs, kernel = shape
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    return layer.to(device), torch.randn(1, inputs, size, size).to(device)


OURS = ("w8a8", "w4a8row", "w4a8", "w4a16")


def variants(layer: nn.Module, x: Tensor) -> dict[str, Call]:
    """The same layer in every arithmetic; all but `bfloat16` names take and give float32."""
    found: dict[str, nn.Module] = {"float32": layer}
    for scheme in OURS:
        found[scheme] = nn.Sequential(copy.deepcopy(layer))
        quantize(found[scheme], scheme, rules=(), backend="fewstep")
    found["w4a8row, unpacked once"] = copy.deepcopy(found["w4a8row"])
    native.keep(found["w4a8row, unpacked once"])
    if isinstance(layer, nn.Linear):
        found["torchao w8a8"] = torchao(layer)
    calls: dict[str, Call] = {name: (lambda model=model: model(x)) for name, model in found.items()}
    half, y = {"bfloat16": layer, "w8a8 bfloat16": found["w8a8"]}, x.bfloat16()
    if isinstance(layer, nn.Linear):
        half["torchao w8a8 bfloat16"] = torchao(copy.deepcopy(layer).bfloat16())
    for name, model in half.items():
        calls[name] = lambda model=copy.deepcopy(model).bfloat16(): model(y)
    if x.dim() == 4:
        flat, last = copy.deepcopy(layer).to(memory_format=torch.channels_last), torch.channels_last
        z, w = x.contiguous(memory_format=last), y.contiguous(memory_format=last)
        calls["float32 channels last"] = lambda: flat(z)
        calls["bfloat16 channels last"] = lambda model=copy.deepcopy(flat).bfloat16(): model(w)
        calls["w8a8 channels last"] = lambda: found["w8a8"](z)
    return calls


def torchao(layer: nn.Module) -> nn.Module:
    """torchao's own dynamic W8A8."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = nn.Sequential(copy.deepcopy(layer))
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


def layer_rows(device: str, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of every shape of Stable Diffusion 1.5 in every arithmetic."""
    rows = []
    for kind, shapes in SHAPES["sd15"].items():
        for name, shape in shapes.items():
            times = best_ms(variants(*layer_of(kind, shape, device)), rounds, device)
            rows.append({"kind": kind, "name": name, "shape": shape, "ms": times})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def speedups(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Geometric mean over the shapes of a kind, of float32 and of bfloat16 time over that of each variant."""
    found: dict[str, dict[str, float]] = {}
    for kind in ("Linear", "Conv2d"):
        times = [row["ms"] for row in rows if row["kind"] == kind]
        for base in ("float32", "bfloat16"):
            found[f"{kind} over {base}"] = {
                name: statistics.geometric_mean(row[base] / row[name] for row in times) for name in times[0]
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path("results/quant-latency.json"))
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layers = layer_rows(device, arguments.rounds)
    result = {
        "capability": torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability(),
        "flags": processor_flags(),
        "exact_int8": device == "cuda" or native.available(),
        "threads": torch.get_num_threads(),
        "unet": unet_rows(arguments.batch, device),
        "layers": layers,
        "speedup": speedups(layers),
        "environment": environment(),
    }
    print(json.dumps({"unet": result["unet"], "speedup": result["speedup"]}, indent=2))
    write_json(arguments.output, result)


if __name__ == "__main__":
    main()
