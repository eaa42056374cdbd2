"""Latency and bytes of quantized layers against float ones, on the device at hand.

    python benchmarks/quant_latency.py [--batch 16] [--out results/quant-latency.json]

Two parts: one evaluation of a small SD-like UNet under each scheme, and one Linear in float, with our int8 product and
with torchao's. Each number is the best of several rounds over all variants in one process, so that a busy moment of the
machine hits none of them alone. On a CPU without exact int8 products the torchao row is ours (see `exact_int8`).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.quant import quantize
from fewstep.quant.kernels import int8_product_exact
from fewstep.quant.report import resident_bytes


def best_ms(calls: Sequence[Callable[[], Any]], rounds: int = 9) -> list[float]:
    """Milliseconds of the fastest run of each call, the calls taken in turn."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    best = [float("inf")] * len(calls)
    with torch.no_grad():
        for turn in range(rounds + 1):
            for index, call in enumerate(calls):
                wait()
                start = time.perf_counter()
                call()
                wait()
                if turn:  # the first turn warms up
                    best[index] = min(best[index], 1e3 * (time.perf_counter() - start))
    return best


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
    schemes = (None, "w8a16", "w8a8", "w4a16", "w4a8", "w3a8", "w2a8")
    models = [build_unet().to(device) for _ in schemes]
    for model, scheme in zip(models, schemes, strict=True):
        if scheme:
            quantize(model, scheme)
    times = best_ms([lambda model=model: model(x, 10, prompt).sample for model in models])
    return [
        {"scheme": scheme or "float32", "ms": ms, "resident_bytes": resident_bytes(model)}
        for scheme, ms, model in zip(schemes, times, models, strict=True)
    ]


def linear_rows(device: str, tokens: int = 256, width: int = 1024) -> list[dict[str, Any]]:
    """One Linear: float, ours, torchao's."""
    x = torch.randn(tokens, width, device=device)
    layers, backends = [], (None, "fewstep", "torchao")
    for backend in backends:
        torch.manual_seed(0)
        layers.append(nn.Sequential(nn.Linear(width, width)).to(device))
        if backend:
            quantize(layers[-1], "w8a8", backend=backend)
    times = best_ms([lambda layer=layer: layer(x) for layer in layers])
    return [{"kernel": backend or "float32", "ms": ms} for backend, ms in zip(backends, times, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = {
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "exact_int8": device == "cuda" or int8_product_exact(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "unet": unet_rows(arguments.batch, device),
        "linear": linear_rows(device),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
