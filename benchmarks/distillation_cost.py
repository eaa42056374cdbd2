"""What the distillation engine costs: speed against hand-written loops, memory against plain LoRA fine-tuning.

    python benchmarks/distillation_cost.py
    python benchmarks/distillation_cost.py --fastgen PATH_TO_A_CHECKOUT --output quick.json --repetitions 3

Speed: DMD2 and LCM with the loop of `fewstep distill` and with `plain_loops.py`, in turns, on one thread; seconds of
the processor per update, so that other programs on the machine do not count. Memory: a process of its own per case; the
kernel's peak of resident memory over the updates, less what the imports took; large blocks go back to the system at
once (MALLOC_MMAP_THRESHOLD_), so that the peak is what lay in memory together and not what the allocator kept.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from plain_loops import LOOPS
from torch import Tensor, nn

from fewstep.denoiser import Backbone, Denoiser
from fewstep.distillation.core import Batch
from fewstep.distillation.engine import Engine, assemble
from fewstep.distillation.method import method
from fewstep.files import write_json
from fewstep.jobs.distill.batches import from_data
from fewstep.jobs.distill.networks import engine_of
from fewstep.jobs.distill.recipe import DistillTraining
from fewstep.metrics.intervals import seed_interval
from fewstep.pipelines.encoded import EncodedConditions
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.runs.environment import environment
from fewstep.testing.toy import PointNetwork
from fewstep.train.distillation import defaults, stage_of
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.stage import StageConfig

PROCESS, VELOCITY = RectifiedFlow(), Prediction("velocity")
OPTIONS: dict[str, dict[str, Any]] = {
    "dmd2": {"guidance": 1.0, "steps": 4, "adversarial": 0.0, "each": False, "ratio": 5},
    "lcm": {"guidance": 1.0, "steps": 4},
}
SPEED = {"toy": 20, "mnist-dit": 3}
"""Updates per turn."""
NETWORKS = {
    "weights": {"heads": 12, "layers": 12, "side": 8, "batch": 4},
    "activations": {"heads": 4, "layers": 6, "side": 32, "batch": 4},
}
"""Two shapes for the memory: one whose weights dominate, one whose activations do."""
MEMORY = {
    "LoRA fine-tuning": None,
    "dmd2 without adversary": ("dmd2", {"guidance": 1.0, "adversarial": 0.0, "ratio": 1}),
    "dmd2": ("dmd2", {"guidance": 1.0, "ratio": 1}),
    "lcm": ("lcm", {"guidance": 1.0}),
}
RANK = 16


def dit(heads: int, layers: int, side: int, width: int = 64, channels: int = 4, patch: int = 2) -> nn.Module:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    made: nn.Module = DiTTransformer2DModel(
        sample_size=side, num_layers=layers, patch_size=patch, attention_head_dim=width, num_attention_heads=heads,
        in_channels=channels, out_channels=channels, num_embeds_ada_norm=10,
    )  # fmt: skip
    for part in made.modules():
        if hasattr(part, "dropout_prob"):
            part.dropout_prob = 0.0
    return made


# --- speed --------------------------------------------------------------------------------------------------------


def subject(name: str) -> tuple[nn.Module, Callable[[nn.Module], Any], tuple[int, ...], int]:
    """A network, how it is called, the shape of a sample, and the batch."""
    torch.manual_seed(0)
    if name == "toy":
        return PointNetwork(), lambda module: module, (2,), 256
    return dit(4, 5, 4, 32, channels=8, patch=1), Backbone, (8, 4, 4), 32


def drawn(shape: tuple[int, ...], size: int, labels: bool, generator: torch.Generator | None = None) -> Any:
    """Data and conditions of a step; noise stands for data, as what they are changes no cost."""
    data = torch.randn(size, *shape, generator=generator)
    return data, {"class_labels": torch.randint(10, (size,), generator=generator)} if labels else {}


def engine(name: str, module: nn.Module, wrap: Any, shape: tuple[int, ...], size: int) -> Engine:
    def batches(generator: torch.Generator) -> Batch:
        data, condition = drawn(shape, size, len(shape) > 1, generator)
        return Batch(size, shape, data, condition or None)

    teacher = Denoiser(wrap(module), PROCESS, VELOCITY)
    return assemble(method(name, PROCESS, **OPTIONS[name]), teacher, module, wrap, batches, shape)


def updates(made: Engine, count: int) -> float:
    """Processor seconds per update of `fit`, the first one left out."""
    marks: list[float] = []

    def after(step: int) -> None:
        made.after(step)
        marks.append(time.process_time())

    settings = {**defaults(made.method.settings), "batch": 1, "device": "cpu", "steps": count + 1, "clip_norm": 10.0}
    config = StageConfig(**settings)
    stage = stage_of(made, config, lambda folder: None)
    object.__setattr__(stage, "after", after)
    fit(stage, config, None, accelerator_for(config), quiet=True)
    return (marks[-1] - marks[0]) / count


def speed(name: str, kind: str, repetitions: int) -> dict[str, Any]:
    """Both loops in turns; the ratio of each pair of turns."""
    module, wrap, shape, size = subject(kind)
    module.requires_grad_(False)
    ours = engine(name, copy.deepcopy(module).requires_grad_(True), wrap, shape, size)
    plain = LOOPS[name](module, wrap, lambda: drawn(shape, size, len(shape) > 1))
    count, pairs = SPEED[kind], []
    plain.step()
    for _ in range(repetitions):
        first = updates(ours, count)
        begun = time.process_time()
        for _ in range(count):
            plain.step()
        pairs.append((first, (time.process_time() - begun) / count))
    ratio = seed_interval(torch.tensor([b / a for a, b in pairs])).as_dict()
    return {
        "method": name, "network": kind, "batch": size, "parameters": sum(p.numel() for p in module.parameters()),
        "images_per_second": size * len(pairs) / sum(a for a, _ in pairs),
        "plain_images_per_second": size * len(pairs) / sum(b for _, b in pairs), "ratio": ratio,
    }  # fmt: skip


# --- memory -------------------------------------------------------------------------------------------------------


def measured(case: str, shape: str, checkpointing: bool, steps: int = 2) -> dict[str, float]:
    """Peak of this process over the updates, less what it had after the imports; bytes."""
    before, given = resident("VmRSS"), NETWORKS[shape]
    module = dit(given["heads"], given["layers"], given["side"])
    base = sum(p.nbytes for p in module.parameters())
    work = (
        adapter(module, given, checkpointing) if MEMORY[case] is None else student(case, module, given, checkpointing)
    )
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here: what building took does not count
    work(steps)
    return {"peak": resident("VmHWM") - before, "base": base}


def resident(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024.0 * int(line.split()[1])


def adapter(module: Any, given: dict[str, int], checkpointing: bool) -> Callable[[int], None]:
    """Plain LoRA fine-tuning: noise prediction, AdamW, an average of the adapter."""
    from peft import LoraConfig, inject_adapter_in_model

    module.requires_grad_(False)
    names = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names), module)
    if checkpointing:
        module.enable_gradient_checkpointing()
    module.train()
    network, free = Backbone(module), [p for p in module.parameters() if p.requires_grad]
    optimizer, average = torch.optim.AdamW(free, lr=1e-5, fused=True), [p.detach().clone() for p in free]

    def work(steps: int) -> None:
        for _ in range(steps):
            data, condition = drawn((4, given["side"], given["side"]), given["batch"], True)
            t = torch.rand(len(data), 1, 1, 1)
            noise = torch.randn_like(data)
            raw = network((1 - t) * data + t * noise, 1000 * t.flatten(), **condition)
            (raw - (noise - data)).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(free, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            torch._foreach_lerp_(average, [p.detach() for p in free], 0.001)

    return work


def student(case: str, module: nn.Module, given: dict[str, int], checkpointing: bool) -> Callable[[int], None]:
    """The engine with adapters on one base."""
    name, options = MEMORY[case] or ("", {})
    taps = {"modules": [f"transformer_blocks.{given['layers'] // 2}"]}
    width = {f"transformer_blocks.{given['layers'] // 2}": 64 * given["heads"]}
    more = {**taps, "channels": width} if case == "dmd2" else {}
    shape, size = (4, given["side"], given["side"]), given["batch"]
    encoded = EncodedConditions(10, {"class_labels": torch.arange(10)}, {"class_labels": torch.tensor([10])}, {}, shape)
    data: Tensor = torch.randn(2 * size, *shape)
    batches = from_data(encoded, size, torch.device("cpu"), data, torch.arange(2 * size) % 10)
    settings = DistillTraining(lora=RANK, gradient_checkpointing=checkpointing)
    pipe = SimpleNamespace(transformer=module, components={})
    made = engine_of(pipe, method(name, PROCESS, **options, **more), PROCESS, VELOCITY, encoded, batches, settings)

    def work(steps: int) -> None:
        config = StageConfig(**{**defaults(made.method.settings), "batch": size, "device": "cpu", "steps": steps})
        fit(stage_of(made, config, lambda folder: None), config, None, accelerator_for(config), quiet=True)

    return work


def memory(shapes: list[str]) -> list[dict[str, Any]]:
    """Every case in a process of its own; shares of plain fine-tuning."""
    rows: list[dict[str, Any]] = []
    for shape in shapes:
        for checkpointing in (False, True) if shape == "activations" else (False,):
            plain = 0.0
            for case in MEMORY:
                command = [sys.executable, __file__, "--case", case, shape, str(int(checkpointing))]
                environ = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
                done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                plain = plain or found["peak"]
                row = {"case": case, "network": shape, "checkpointing": checkpointing, **NETWORKS[shape]}
                rows.append({**row, **found, "of_plain": found["peak"] / plain})
                print(
                    f"{shape:12} {checkpointing!s:5} {case:24} {found['peak'] / 1e6:8.0f} MB {rows[-1]['of_plain']:.3f}"
                )
    return rows


# --- FastGen ------------------------------------------------------------------------------------------------------


def fastgen(place: Path | None) -> dict[str, Any]:
    """Whether NVIDIA's implementation can be run here, and what it lacks if not."""
    if place is None:
        return {"run": False, "why": "no checkout was given"}
    sys.path.insert(0, str(place))
    lacking = []
    for name in ("omegaconf", "hydra", "loguru", "einops", "wandb", "boto3", "webdataset", "timm", "ftfy", "cv2"):
        try:
            importlib.import_module(name)
        except ImportError:
            lacking.append(name)
    try:
        importlib.import_module("fastgen.methods.distribution_matching.dmd2")
    except ImportError as error:
        return {"run": False, "why": f"its code does not import here: {error}", "lacking": lacking}
    return {"run": False, "why": "it imports, but nothing here calls it yet", "lacking": lacking}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=6)
    parser.add_argument("--shapes", nargs="*", default=list(NETWORKS))
    parser.add_argument("--kinds", nargs="*", default=list(SPEED))
    parser.add_argument("--fastgen", type=Path)
    parser.add_argument("--output", type=Path, default=Path("results/distillation-cost.json"))
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.case:
        print(json.dumps(measured(given.case[0], given.case[1], given.case[2] == "1")))
        return
    rows = []
    for kind in given.kinds:
        for name in LOOPS:
            rows.append(speed(name, kind, given.repetitions))
            print(json.dumps(rows[-1]))
    found = {"environment": environment(), "speed": rows, "memory": memory(given.shapes)}
    write_json(given.output, {**found, "rank": RANK, "fastgen": fastgen(given.fastgen)})


if __name__ == "__main__":
    main()
