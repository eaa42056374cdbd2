"""Teacher, student and critic from one pipeline's network, in the ways that memory allows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from fewstep.denoiser import Denoiser
from fewstep.distillation.core import SampleReward
from fewstep.distillation.discriminator import as_tokens
from fewstep.distillation.engine import Engine, assemble
from fewstep.distillation.method import Method
from fewstep.distillation.step_condition import StepConditioned
from fewstep.distillation.taps import watch
from fewstep.errors import FewstepError
from fewstep.files import read_json, read_tensors, write_folder, write_json, write_tensors
from fewstep.jobs.distill.batches import Batches
from fewstep.jobs.distill.recipe import DistillTraining
from fewstep.pipelines import backbone_of
from fewstep.pipelines.encoded import EncodedConditions
from fewstep.pipelines.protocol import Pipeline
from fewstep.pipelines.shared import SharedBase, SharedRole
from fewstep.pipelines.two_times import TwoTimes
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.quant import quantize
from fewstep.quant.fake import to_fake, to_packed
from fewstep.train.distillation import defaults
from fewstep.train.stage import StageConfig


def engine_of(
    pipe: Pipeline,
    method: Method,
    process: Process,
    prediction: Prediction,
    encoded: EncodedConditions,
    batches: Batches,
    settings: DistillTraining,
    *,
    teacher: Denoiser | None = None,
    reward: SampleReward | None = None,
) -> Engine:
    """The engine: the pipeline's own network is the teacher, the others begin as copies of it in float32.

    Args:
        pipe: the pipeline.
        method: what is trained on what.
        process, prediction: of its network.
        encoded: conditions as the network gets them.
        batches: a stream of batches.
        settings: of the training.
        teacher: another teacher; the pipeline's network is then the reference alone.
        reward: of samples, where the method needs it.
    """
    base = backbone_of(pipe)
    shared = SharedBase(base, settings.lora) if settings.lora else None
    if shared is not None and method.two_times:
        raise FewstepError("a student with two times trains all its weights", value=settings.lora, hint="train.lora=0.")
    twin = _twin(shared)
    own = Denoiser(encoded.network(base if shared is None else shared.frozen()), process, prediction)
    student = TwoTimes.of(base).float().requires_grad_(True) if method.two_times else None
    if settings.quantize:
        student = rounded(base, method, settings)
    engine = assemble(
        method, teacher or own, base, encoded.network, batches, encoded.shape, student=student, twin=twin,
        reference=own, reward=reward,
    )  # fmt: skip
    parts: list[Any] = [m for module in engine.modules.values() for m in module.modules()]
    for part in [m for m in parts if hasattr(m, "dropout_prob")]:
        part.dropout_prob = 0.0  # diffusers drops labels anew in every block and call: noise that nobody asked for
    if settings.gradient_checkpointing:
        _recompute(engine, shared)
    return engine


def _recompute(engine: Engine, shared: SharedBase | None) -> None:
    """Gradient checkpointing of all networks but a critic that takes the call, which a recomputed block does not.

    Raises:
        FewstepError: that critic shares the blocks of the others.
    """
    conditioned = [m for m in engine.modules.values() if isinstance(m, StepConditioned)]
    if shared is not None and conditioned:
        hint = "Set options.step_condition=False, train.gradient_checkpointing=False or train.lora=0."
        raise FewstepError("a critic that takes the call cannot recompute a shared network's blocks", hint=hint)
    if shared is not None:
        shared.recompute_activations()
        return
    parts: list[Any] = [m for module in engine.modules.values() if module not in conditioned for m in module.modules()]
    for part in [m for m in parts if hasattr(m, "enable_gradient_checkpointing")]:
        part.enable_gradient_checkpointing()


def kept_as(record: str) -> tuple[Callable[[dict[str, Any], Path], None], Callable[[Path], dict[str, Any]]]:
    """How a unit writes and reads a student in training: its `tensors`, and a record of this name as JSON beside them.

    Returns:
        What `Run.unit` takes as `save` and as `load`.
    """

    def save(found: dict[str, Any], draft: Path) -> None:
        def fill(folder: Path) -> None:
            write_tensors(folder / "student.safetensors", found["tensors"])
            write_json(folder / f"{record}.json", found[record])

        write_folder(draft, fill)

    def load(folder: Path) -> dict[str, Any]:
        return {
            "tensors": read_tensors(folder / "student.safetensors"),
            record: read_json(folder / f"{record}.json"),
        }

    return save, load


def loop_settings(given: BaseModel, method: Method, pipe: Pipeline) -> StageConfig:
    """The settings of the training loop: the method's own, changed by those of a recipe that are not None."""
    own = {k: v for k, v in given.model_dump().items() if k in StageConfig.model_fields and v is not None}
    device = "cuda" if device_of(pipe).type == "cuda" else "cpu"
    return StageConfig(**{**defaults(method.settings), **own, "device": device})


def released(engine: Engine) -> None:
    """Give a shared base back to the pipeline as it was."""
    for module in engine.modules.values():
        if isinstance(module, SharedRole):
            module.shared.close()


def student_of(pipe: Pipeline, method: Method, settings: DistillTraining, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A student with these weights: a network of diffusers.

    One that was trained as LoRA keeps its adapter, so that the pipeline is stored as base and adapter; where diffusers
    knows no adapters for its class, the adapter is added into the weights.
    """
    base = backbone_of(pipe)
    if settings.lora:
        fresh: Any = copy.deepcopy(base)
        shared = SharedBase(fresh, settings.lora)
        shared.role("student").load_state_dict(dict(tensors))
        return fresh if hasattr(fresh, "add_adapter") else shared.merged()
    if settings.quantize:
        learned = rounded(base, method, settings)
        learned.load_state_dict(dict(tensors))
        return to_packed(learned)
    student: nn.Module = TwoTimes.of(base).float() if method.two_times else copy.deepcopy(base).float()
    student.load_state_dict(dict(tensors))
    return student


def rounded(base: nn.Module, method: Method, settings: DistillTraining) -> nn.Module:
    """A student that computes with rounded weights and inputs, and learns through the rounding (straight through).

    Raises:
        FewstepError: together with LoRA or a second time.
    """
    if settings.lora or method.two_times:
        what = "LoRA" if settings.lora else "two times"
        raise FewstepError(
            f"a quantized student cannot be one of {what}", hint="Set train.quantize='' or train.lora=0."
        )
    model: Any = copy.deepcopy(base).float()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    weights = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    quantize(model, settings.quantize, backend="fewstep")
    return to_fake(model, weights).requires_grad_(True)


def middle_of(network: nn.Module) -> str:
    """The name of the block half-way through, whose outputs adversaries look at.

    Raises:
        FewstepError: no list of blocks.
    """
    if isinstance(getattr(network, "mid_block", None), nn.Module):
        return "mid_block"
    stacks = {name: module for name, module in network.named_modules() if isinstance(module, nn.ModuleList)}
    # of the lists that lie in no other list, the longest is the trunk
    outer = {n: m for n, m in stacks.items() if not any(n.startswith(f"{other}.") for other in stacks)}
    if not outer:
        raise FewstepError(
            f"{type(network).__name__} has no blocks", hint="Name the adversary's: options.modules=[...]."
        )
    name = max(outer, key=lambda n: len(outer[n]))
    middle = len(outer[name]) // 2
    # a block of two streams returns both: the feed-forward of the picture's is one tensor
    return f"{name}.{middle}.ff" if hasattr(outer[name][middle], "ff_context") else f"{name}.{middle}"


@torch.no_grad()
def channels_of(
    network: nn.Module, names: Sequence[str], encoded: EncodedConditions, process: Process
) -> dict[str, int]:
    """Channels of what these modules of the network put out, by one call on zeros."""
    place = next(network.parameters()).device
    model = Denoiser(encoded.network(network), process, Prediction())
    condition, _ = encoded.pick(torch.zeros(1, dtype=torch.long))
    with watch(model, names) as seen:
        time = torch.full((1,), 0.5 * process.noisiest, dtype=torch.float64)
        model.raw(torch.zeros(1, *encoded.shape, device=place), time, condition)
    return {name: as_tokens(feature).shape[2] for name, feature in seen.items()}


def finished(student: nn.Module, method: Method, process: Process) -> nn.Module:
    """The trained student as a pipeline runs it."""
    return drawable(student, method, process).requires_grad_(False)


def drawable(student: nn.Module, method: Method, process: Process) -> nn.Module:
    """The student, in training or after, as a pipeline can call it; the loop sets it to training again."""
    if isinstance(student, SharedRole):
        student.shared.use(student.name)
        inner: nn.Module = student.inner
        return inner
    if isinstance(student, TwoTimes):
        starts = [float(process.network_time(t)) for t in method.steps.times]
        ends = [float(process.network_time(t)) for t in method.steps.jumps]
        student.finish(list(zip(starts, ends, strict=True)))
    return student.eval()


def _twin(shared: SharedBase | None) -> Callable[[nn.Module, str], nn.Module]:
    def adapter(module: nn.Module, role: str) -> nn.Module:
        assert shared is not None
        copy_ = shared.role(role)
        if isinstance(module, SharedRole):
            copy_.load_state_dict(module.state_dict())
        return copy_

    def copied(module: nn.Module, role: str) -> nn.Module:
        if isinstance(module, TwoTimes):
            fresh = TwoTimes.of(module.inner)
            fresh.load_state_dict(module.state_dict())
            return fresh.float()
        return copy.deepcopy(module).float().requires_grad_(True)

    return copied if shared is None else adapter


def device_of(pipe: Pipeline) -> torch.device:
    """Where the pipeline's network lies."""
    return next(backbone_of(pipe).parameters()).device
