"""Bytes, memory and time of quantizing networks of their true size, read layer by layer from a folder.

    python benchmarks/quant_true_size.py [--models sdxl-unet pixart flux] [--schemes w8a8 w4a8] [--output FILE]

Weights are random, the configurations are those of the published models. A network is first written as bfloat16
shards, then read with `load_quantized` in a process of its own. Memory is that process's anonymous memory (Linux),
sampled every 2 ms: the model itself, and what its making took beyond that. FLUX is too large to write: its bytes are
read off empty layers.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.files import write_json
from fewstep.pipelines.low_bit.stream import load_quantized
from fewstep.quant import Scheme
from fewstep.quant.linear_conv import make_layer
from fewstep.quant.modules import LAYERS
from fewstep.quant.rules import FEW_STEP_RULES, decisions_by_rules
from fewstep.runs.environment import environment

SHARD = 1 << 28  # parameters
BLOCK = 1 << 22  # random values, repeated


def sdxl_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048, use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20), addition_embed_type="text_time",
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip


def sd15_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


def pixart() -> nn.Module:
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28,
        cross_attention_dim=1152, sample_size=128, caption_channels=4096,
    )  # fmt: skip


def flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(guidance_embeds=False)


MODELS = {"sd15-unet": sd15_unet, "sdxl-unet": sdxl_unet, "pixart": pixart, "flux": flux}
TOO_LARGE = ("flux",)


def empty(name: str) -> nn.Module:
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return MODELS[name]()


def write_random(model: nn.Module, folder: Path) -> None:
    """A folder as `save_pretrained` writes it, with random bfloat16 weights, one shard in memory at a time."""
    from safetensors.torch import save_file

    model.save_config(folder)  # type: ignore[operator]
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    shard: dict[str, torch.Tensor] = {}
    weight_map: dict[str, str] = {}

    def flush() -> None:
        file = f"diffusion_pytorch_model-{len(set(weight_map.values())):05}.safetensors"
        save_file(shard, folder / file)
        weight_map.update(dict.fromkeys(shard, file))
        shard.clear()

    for name, parameter in model.named_parameters():
        count = parameter.numel()
        shard[name] = block.repeat(-(-count // BLOCK))[:count].view(parameter.shape).clone()
        if sum(tensor.numel() for tensor in shard.values()) > SHARD:
            flush()
    flush()
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def anonymous_bytes() -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition("RssAnon:")[2].split()[0])


class Peak(threading.Thread):
    """The largest anonymous memory while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done, self.largest = threading.Event(), 0

    def run(self) -> None:
        while not self.done.wait(0.002):
            self.largest = max(self.largest, anonymous_bytes())


def streamed(name: str, scheme: str, folder: Path) -> dict[str, Any]:
    """Read a folder as a quantized model, and what that took."""
    largest = max(m.weight.numel() for m in empty(name).modules() if isinstance(m, LAYERS))
    gc.collect()
    before, peak = anonymous_bytes(), Peak()
    peak.start()
    start = time.perf_counter()
    model, report = load_quantized(folder, scheme, dtype=torch.bfloat16)
    seconds = time.perf_counter() - start
    peak.done.set()
    peak.join()
    extra = peak.largest - before - report.resident_after
    del model
    return {
        "seconds": seconds, "model_bytes": report.resident_after, "disk_bytes": report.disk_after,
        "extra_peak_bytes": extra, "largest_layer_float32_bytes": 4 * largest,
        "extra_over_largest_layer": extra / (4 * largest), "bits_per_weight": report.bits_per_weight,
        "coverage": report.coverage,
    }  # fmt: skip


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run in a fresh process: memory that an earlier model left behind would hide what this one takes."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def counted(name: str, scheme: str) -> dict[str, Any]:
    """Bytes of the quantized model, read off layers without weights."""
    model, total = empty(name), 0
    given = decisions_by_rules(model, Scheme.parse(scheme), (), FEW_STEP_RULES).modules
    for path, module in model.named_modules():
        target, _ = given.get(path, (None, ""))
        kept = list(module.parameters(recurse=False))
        if target is not None and isinstance(module, LAYERS):
            total += sum(buffer.nbytes for buffer in make_layer(module, target, "auto").buffers())
            kept = kept[1:]
        total += sum(2 * parameter.numel() for parameter in kept)
    return {"disk_bytes": total}


def rows(name: str, schemes: list[str]) -> list[dict[str, Any]]:
    model = empty(name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    found = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if name not in TOO_LARGE:
            write_random(model, folder)
        for scheme in schemes:
            row = counted(name, scheme) if name in TOO_LARGE else _alone(streamed, name, scheme, folder)
            share = row["disk_bytes"] / (2 * parameters)
            found.append({"model": name, "scheme": scheme, "parameters": parameters, "of_bfloat16": share, **row})
            print(json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--schemes", nargs="+", default=["w8a8", "w4a8"])
    parser.add_argument("--output", type=Path, default=Path("results/quant-true-size.json"))
    arguments = parser.parse_args()
    result = {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "rows": [row for name in arguments.models for row in rows(name, arguments.schemes)],
        "environment": environment(),
    }
    write_json(arguments.output, result)


if __name__ == "__main__":
    main()
