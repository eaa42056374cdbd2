"""Memory and seconds per update of every distillation method on networks of their true size; needs a CUDA device.

    python benchmarks/distillation_true_size.py --models sdxl pixart wan --methods dmd2 lcm tdm
    python benchmarks/distillation_true_size.py --tiny          # the same code on small networks, on a CPU

Configurations are those of SD 1.5, SDXL, PixArt-alpha 1024, Wan 2.1 1.3B and FLUX.1 schnell, weights and conditions
random. Adapters of rank 64 on one base in bfloat16, and all weights where a method's student takes two times (moments
in 8 bits); activations are recomputed. A method that does not fit is told so in its row, and the next one begins.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from fewstep.distillation.core import Batch
from fewstep.distillation.method import method, options_of, presets
from fewstep.errors import FewstepError
from fewstep.files import write_json
from fewstep.jobs.distill.batches import batch_of
from fewstep.jobs.distill.networks import channels_of, engine_of, middle_of, released
from fewstep.jobs.distill.recipe import DistillTraining
from fewstep.pipelines.encoded import EncodedConditions
from fewstep.prediction import Prediction
from fewstep.process import Process, RectifiedFlow, VPDiscrete
from fewstep.runs.environment import environment
from fewstep.train.distillation import defaults, stage_of
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.stage import StageConfig

SHORT = {"progressive": {"start": 2, "every": 2}, "slim_flow": {"reflow_steps": 1, "distil_steps": 1}}
"""Stages that fit in a few updates."""
STATES = 20
"""Parts of a stored trajectory."""


@dataclass(frozen=True)
class Subject:
    """A family: its network in two sizes, what the network is told, the shape of a state, its noise.

    fixed: what it is told whatever the condition is. time_scale: what its pipeline multiplies times by.
    """

    make: Callable[[bool], nn.Module]
    told: Callable[[bool], dict[str, tuple[int, ...]]]
    shape: Callable[[bool], tuple[int, ...]]
    process: Process
    prediction: str
    role: str = "transformer"
    fixed: Callable[[bool], dict[str, torch.Tensor]] = field(default=lambda tiny: {})
    time_scale: float = 1.0


def sd15(tiny: bool) -> nn.Module:
    from diffusers import UNet2DConditionModel

    size: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
    if tiny:
        size = {
            "sample_size": 8, "block_out_channels": (16, 16, 32, 32), "cross_attention_dim": 16, "norm_num_groups": 8,
            "attention_head_dim": 2, "layers_per_block": 1,
        }  # fmt: skip
    return UNet2DConditionModel(**size)


def sdxl(tiny: bool) -> nn.Module:
    from diffusers import UNet2DConditionModel

    down = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    size: dict[str, Any] = {
        "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
        "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    }  # fmt: skip
    if tiny:
        size = {
            "sample_size": 8, "block_out_channels": (16, 16, 32), "cross_attention_dim": 16, "norm_num_groups": 8,
            "transformer_layers_per_block": (1, 1, 1), "attention_head_dim": (2, 2, 4), "layers_per_block": 1,
            "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 8 + 6 * 8,
        }  # fmt: skip
    return UNet2DConditionModel(
        down_block_types=down, up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True, addition_embed_type="text_time", **size,
    )  # fmt: skip


def pixart(tiny: bool) -> nn.Module:
    from diffusers import PixArtTransformer2DModel

    heads, width, layers, side, caption = (2, 12, 2, 8, 16) if tiny else (16, 72, 28, 128, 4096)
    return PixArtTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=width, in_channels=4, out_channels=8, num_layers=layers,
        cross_attention_dim=heads * width, sample_size=side, caption_channels=caption, use_additional_conditions=True,
    )  # fmt: skip


def wan(tiny: bool) -> nn.Module:
    from diffusers import WanTransformer3DModel

    heads, width, layers, inner, text = (2, 12, 2, 32, 16) if tiny else (12, 128, 30, 8960, 4096)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=heads, attention_head_dim=width, in_channels=16, out_channels=16,
        text_dim=text, ffn_dim=inner, num_layers=layers,
    )  # fmt: skip


def flux(tiny: bool) -> nn.Module:
    from diffusers import FluxTransformer2DModel

    small: dict[str, Any] = {
        "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 16, "pooled_projection_dim": 16, "axes_dims_rope": (4, 4, 8),
    }  # fmt: skip
    return FluxTransformer2DModel(guidance_embeds=False, **(small if tiny else {}))


def places(tiny: bool) -> dict[str, torch.Tensor]:
    """Where the tokens of FLUX lie: those of the text at the origin, those of the picture on a square."""
    side, text = (4, 8) if tiny else (64, 512)
    rows = torch.arange(side).float()
    square = torch.stack([torch.zeros(side, side), rows[:, None].expand(side, side), rows.expand(side, side)], -1)
    return {"txt_ids": torch.zeros(text, 3), "img_ids": square.view(-1, 3)}


MODELS = {
    "sd15": Subject(
        sd15,
        lambda tiny: {"encoder_hidden_states": (77, 16 if tiny else 768)},
        lambda tiny: (4, 8, 8) if tiny else (4, 64, 64),
        VPDiscrete.from_betas(), "epsilon", "unet",
    ),
    "sdxl": Subject(
        sdxl,
        lambda tiny: {
            "encoder_hidden_states": (77, 16 if tiny else 2048), "added_cond_kwargs.time_ids": (6,),
            "added_cond_kwargs.text_embeds": (8 if tiny else 1280,),
        },
        lambda tiny: (4, 8, 8) if tiny else (4, 128, 128),
        VPDiscrete.from_betas(), "epsilon", "unet",
    ),
    "pixart": Subject(
        pixart,
        lambda tiny: {
            "encoder_hidden_states": (120, 16 if tiny else 4096), "added_cond_kwargs.resolution": (2,),
            "added_cond_kwargs.aspect_ratio": (1,),
        },
        lambda tiny: (4, 8, 8) if tiny else (4, 128, 128),
        VPDiscrete.from_betas(), "epsilon",
    ),
    "wan": Subject(
        wan,
        lambda tiny: {"encoder_hidden_states": (512, 16 if tiny else 4096)},
        lambda tiny: (16, 2, 8, 8) if tiny else (16, 21, 60, 104),
        RectifiedFlow(shift=3.0), "velocity",
    ),
    "flux": Subject(
        flux,
        lambda tiny: {
            "encoder_hidden_states": (8 if tiny else 512, 16 if tiny else 4096),
            "pooled_projections": (16 if tiny else 768,),
        },
        lambda tiny: (16, 4) if tiny else (4096, 64),
        RectifiedFlow(), "velocity", fixed=places, time_scale=1e-3,
    ),
}  # fmt: skip


def made(subject: Subject, tiny: bool, device: torch.device, width: torch.dtype) -> nn.Module:
    """The network with random weights of this type, made where it is to be: one of FLUX has 12e9."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(width)
    try:
        with device:
            return subject.make(tiny).to(device, width).requires_grad_(False).eval()
    finally:
        torch.set_default_dtype(before)


def encoded(subject: Subject, tiny: bool, device: torch.device, width: torch.dtype) -> EncodedConditions:
    """Random conditions of this type, and one to guide away from."""
    generator = torch.Generator().manual_seed(0)

    def rows(count: int) -> dict[str, torch.Tensor]:
        told = subject.told(tiny)
        return {name: torch.randn(count, *shape, generator=generator).to(device, width) for name, shape in told.items()}

    fixed = {name: value.to(device) for name, value in subject.fixed(tiny).items()}
    return EncodedConditions(8, rows(8), rows(1), fixed, subject.shape(tiny), subject.time_scale)


def batches(
    given: EncodedConditions, subject: Subject, size: int, device: torch.device
) -> Callable[[torch.Generator], Batch]:
    """Noise in place of data and of stored trajectories: what they are changes no cost."""
    times = torch.linspace(1, 0, STATES + 1, dtype=torch.float64) * subject.process.noisiest

    def batch(generator: torch.Generator) -> Batch:
        path = torch.randn(size, STATES + 1, *given.shape, generator=generator)
        numbers = torch.randint(given.count, (size,), generator=generator)
        return batch_of(given, numbers, device, path[:, -1], path, times)

    return batch


def options(name: str, network: nn.Module, given: EncodedConditions, process: Process) -> dict[str, Any]:
    """Of a method: guidance, and where an adversary looks at this network."""
    known = options_of(name)
    found: dict[str, Any] = dict(SHORT.get(name, {}))
    if "guidance" in known:
        found["guidance"] = 4.0
    if "modules" in known:
        found["modules"] = [middle_of(network)]
        if "channels" in known:
            found["channels"] = channels_of(network, found["modules"], given, process)
    return found


def measure(name: str, kind: str, steps: int, size: int, tiny: bool, device: torch.device) -> dict[str, Any]:
    """Seconds per update (the first left out) and the peak of the device's memory."""
    subject = MODELS[kind]
    width = torch.float32 if tiny else torch.bfloat16
    network, given = made(subject, tiny, device, width), encoded(subject, tiny, device, width)
    chosen = method(name, subject.process, **options(name, network, given, subject.process))
    settings = DistillTraining(
        lora=0 if chosen.two_times else (2 if tiny else 64), gradient_checkpointing=not chosen.two_times
    )
    pipe = SimpleNamespace(components={}, **{subject.role: network})
    prediction, stream = Prediction(subject.prediction), batches(given, subject, size, device)
    engine = engine_of(pipe, chosen, subject.process, prediction, given, stream, settings)
    own = {**defaults(chosen.settings), "optimizer": "adamw8bit" if chosen.two_times and not tiny else "adamw"}
    config = StageConfig(**{**own, "steps": steps + 1, "batch": size, "device": device.type})
    done, marks = [], []

    def after(step: int) -> None:
        engine.after(step)
        done.append(step)
        if len(done) in (1, steps + 1):  # nothing waits for the device in between
            if device.type == "cuda":
                torch.cuda.synchronize()
            marks.append(time.perf_counter())

    stage = replace(stage_of(engine, config, lambda folder: None), after=after)
    progress = fit(stage, config, None, accelerator_for(config), quiet=True)
    released(engine)
    return {
        "student": "all weights" if chosen.two_times else f"LoRA {settings.lora}", "batch": size, "steps": steps,
        "parameters": sum(p.numel() for p in network.parameters()), "loss": progress.history[-1]["loss"],
        "seconds_per_step": (marks[-1] - marks[0]) / steps,
        "bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }  # fmt: skip


def attempt(name: str, kind: str, steps: int, size: int, tiny: bool, device: torch.device) -> dict[str, Any]:
    """A row; why, where the method cannot be run."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    row = {"model": kind, "method": name}
    try:
        return {**row, **measure(name, kind, steps, size, tiny, device)}
    except (FewstepError, torch.OutOfMemoryError) as error:
        return {**row, "why": str(error).partition("\n")[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=list(presets()))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="small networks, on a CPU too")
    parser.add_argument("--output", type=Path, default=Path("results/distillation-true-size.json"))
    given = parser.parse_args()
    if not torch.cuda.is_available() and not given.tiny:
        parser.error("true sizes need a CUDA device, and there is none; --tiny runs small networks on a CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for kind in given.models:
        for name in given.methods:
            rows.append(attempt(name, kind, given.steps, given.batch, given.tiny, device))
            print(json.dumps(rows[-1]), flush=True)
            write_json(given.output, {"environment": environment(), "tiny": given.tiny, "rows": rows})


if __name__ == "__main__":
    main()
