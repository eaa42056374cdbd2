"""What a pipeline hands to its network beside state and time: learned by watching it, so every family works."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoiser import Backbone
from fewstep.errors import FewstepError, Stop
from fewstep.pipelines.calls import backbone_of
from fewstep.pipelines.generate import PipelineSampler, PlanRunner
from fewstep.plan import Plan, Row
from fewstep.prediction import Prediction
from fewstep.process import Process

GUIDED = 4.0
"""Any scale above 1 makes a pipeline show its negative condition."""


@dataclass(frozen=True, eq=False)
class EncodedConditions:
    """Conditions as the network's keyword arguments, names of nested ones joined by dots.

    Attributes:
        tensors: One row per condition, (N, ...); empty for an unconditional network.
        negative: The same names with one row, what the pipeline guides away from; None where it knows no guidance.
        fixed: Arguments that do not depend on the condition.
        shape, time_scale: Of one state; what the pipeline multiplies times by.
    """

    count: int
    tensors: Mapping[str, Tensor]
    negative: Mapping[str, Tensor] | None
    fixed: Mapping[str, Any]
    shape: tuple[int, ...]
    time_scale: float = 1.0

    def pick(self, numbers: Tensor) -> tuple[dict[str, Tensor] | None, dict[str, Tensor] | None]:
        """Conditions (B, ...) of these numbers (B,) and as many negatives; None where there are none."""
        if not self.tensors:
            return None, None
        some = {name: rows[numbers.to(rows.device)] for name, rows in self.tensors.items()}
        if self.negative is None:
            return some, None
        return some, {name: row.expand(len(numbers), *row.shape[1:]) for name, row in self.negative.items()}

    def network(self, module: nn.Module) -> Conditional:
        """The module as `network(x, time, **condition)`."""
        return Conditional(getattr(module, "inner", module), Backbone(module, self.time_scale), self.fixed)


@dataclass(frozen=True, eq=False)
class Conditional:
    """A network of diffusers with its fixed arguments bound; `model` is the module with the blocks, below wrappers."""

    model: nn.Module
    backbone: Backbone
    fixed: Mapping[str, Any]

    def __call__(self, x: Tensor, time: Tensor, **condition: Any) -> Tensor:
        """Raw output (B, ...) for scaled states at network times (B,)."""
        return self.backbone(x, time, **_nested({**self.fixed, **condition}))


def encode_conditions(
    generate: PipelineSampler, process: Process, conditions: Sequence[Any] | None
) -> EncodedConditions:
    """Ask the pipeline to encode these prompts or labels (None: unconditional), and note what its network gets.

    Raises:
        FewstepError: the pipeline calls its network in a way that is not understood.
    """
    given: list[Any] | None = None if conditions is None else list(conditions)
    (pair, *_), shape, time_scale = _watched(generate, process, None if given is None else [given[0]] * 2, 2)
    (three, *_), *_ = _watched(generate, process, None if given is None else [given[0]] * 3, 3)
    varying = [
        name
        for name, value in pair.items()
        if isinstance(value, Tensor) and value.ndim and len(value) == 2 and len(three[name]) == 3
    ]
    fixed = {name: value for name, value in pair.items() if name not in varying}
    if given is not None and not varying:
        raise FewstepError(
            f"the network of {type(generate.pipe).__name__} is not given its conditions as one tensor per argument",
            hint="Distil a pipeline of another family; this one takes lists.",
        )
    if given is None:
        return EncodedConditions(0, {}, None, fixed, shape, time_scale)
    parts: list[dict[str, Tensor]] = []
    for first in range(0, len(given), generate.batch):
        some = given[first : first + generate.batch]
        parts.append(_watched(generate, process, some, len(some))[0][0])
    tensors = {name: torch.cat([part[name] for part in parts]) for name in varying}
    return EncodedConditions(
        len(given), tensors, _negative(generate, process, given, tensors), fixed, shape, time_scale
    )


def _negative(
    generate: PipelineSampler, process: Process, conditions: list[Any], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """The half of a guided call that is not the condition's own; a second call where the pipeline makes two."""
    try:
        seen, *_ = _watched(generate, process, conditions[:1], 1, GUIDED)
    except FewstepError:  # a pipeline without guidance
        return None
    halves: list[dict[str, Tensor]] = [
        {name: arguments[name][i : i + 1] for name in tensors}
        for arguments in seen
        for i in range(len(arguments[next(iter(tensors))]))
    ]
    if len(halves) < 2:
        return None
    own = [all(torch.equal(half[name], rows[:1]) for name, rows in tensors.items()) for half in halves]
    return next((half for half, same in zip(halves, own, strict=True) if not same), halves[-1])


_Arguments = dict[str, Any]
"""Of one call of the network, flat, state and time taken out."""


@torch.no_grad()
def _watched(
    generate: PipelineSampler, process: Process, conditions: list[Any] | None, count: int, guidance: float = 1.0
) -> tuple[list[_Arguments], tuple[int, ...], float]:
    """The network's calls in the pipeline's first step, the shape of one state, and what times are multiplied by."""

    def stop(k: int, state: Tensor, output: Tensor) -> None:
        raise Stop(state)

    time = float(process.network_time(process.noisiest))
    row = Row(time, time, alpha=1.0, sigma=0.0, state={0: 1.0}, output={})
    runner = PlanRunner.following(Plan((row,), Prediction(), 1.0, 0.0), range(count), latent=True, watch=stop)
    asking = generate.changed(guidance=guidance)
    with _noting(backbone_of(generate.pipe)) as calls:
        state = asking.run(runner, conditions, list(range(count)))
    if not calls:
        raise FewstepError(f"{type(generate.pipe).__name__} made no step with its network")
    told = calls[0][0]
    return [arguments for _, arguments in calls], tuple(state.shape[1:]), told / time if time else 1.0


@contextmanager
def _noting(module: nn.Module) -> Iterator[list[tuple[float, _Arguments]]]:
    """The time of every call of the module, and its other arguments without the state."""
    names = Backbone(module)
    calls: list[tuple[float, _Arguments]] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        told = torch.as_tensor(bound.pop(names._time)).flatten()[0]
        bound.pop(names._state)
        bound.pop("return_dict", None)
        flat = {name: value for name, value in _flat(bound).items() if value is not None}
        calls.append((float(told), flat))

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _flat(arguments: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out


def _nested(arguments: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in arguments.items():
        *groups, last = name.split(".")
        place = out
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return out
