"""The training loop: one for every stage, device and number of processes; it names no method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from fewstep.errors import FewstepError, NonFiniteError
from fewstep.runs import processes
from fewstep.train.checkpoint import Pace, load_checkpoint, save_checkpoint
from fewstep.train.display import display
from fewstep.train.ema import EMA
from fewstep.train.optimizers import optimizer_of
from fewstep.train.power_ema import PowerEMA
from fewstep.train.shards import Shards, whole
from fewstep.train.shards import wanted as sharded
from fewstep.train.stage import OptimizerGroup, Stage, StageConfig
from fewstep.train.trackers import tracking

TOO_LARGE = 1e30
"""Losses and norms above this have exploded; clipping can keep the weights finite for long after that. Not less: a
cubic kernel of an untrained network's samples honestly passes 1e12."""


@dataclass
class TrainingProgress:
    """Where a run stands: steps done, seconds spent (over all resumptions) and the recorded losses.

    Each record is the mean over the steps since the last one; `window` is what has been summed for the next, on its
    device: reading a number would make every step wait for it.
    """

    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    window: dict[str, Any] = field(default_factory=dict)

    def add(self, numbers: Mapping[str, Any]) -> None:
        """The numbers of one step."""
        for name, value in {**numbers, "steps": 1.0}.items():
            value = value.double() if isinstance(value, torch.Tensor) else float(value)
            self.window[name] = value + self.window[name] if name in self.window else value

    def settle(self) -> None:
        """Read the sums (NonFiniteError where one has exploded, so that no spoiled checkpoint is written)."""
        self.window = {name: float(value) for name, value in self.window.items()}
        spoiled = [name for name, value in self.window.items() if not abs(value) < TOO_LARGE]
        if spoiled:
            first = [name for name in spoiled if not name.endswith("gradient")] or spoiled
            raise NonFiniteError(
                f"{' and '.join(first[:3])} became NaN or infinite within the steps before {self.step}",
                hint="The last checkpoint is good. Lower learning_rate or clip_norm, then run the same command.",
            )

    def record(self) -> dict[str, float]:
        """Add the means since the last record to the history, with the step; begins anew."""
        self.settle()
        count = self.window.pop("steps")
        self.history.append({"step": self.step, **{name: value / count for name, value in self.window.items()}})
        self.window = {}
        return self.history[-1]


def fit(
    stage: Stage,
    config: StageConfig,
    out: Path | None,
    accelerator: Accelerator,
    quiet: bool = False,
    keep: Path | None = None,
    until: int | None = None,
) -> TrainingProgress:
    """Train until `config.steps`, resuming from `out/checkpoint`; leaves the averaged weights in the modules.

    The randomness of a step depends on (seed, step, process) only, so a resumed run repeats the uninterrupted
    one exactly and no state of a random generator needs storing.

    Args:
        out: where the checkpoint goes; None keeps none.
        quiet: show no progress.
        keep: where stored averages and the files of trackers go, which outlive the checkpoint; `out` unless given.
        until: stop after this step with a checkpoint, to go on by another call; schedules are those of all steps.

    Raises:
        NonFiniteError: a loss is NaN or infinite; the message says whose and when, the last checkpoint is good.
    """
    stored = _placed(stage, accelerator.device)
    shards = Shards(stored, accelerator.device, stage.renewed) if sharded(config.shard) else None
    optimizers = {name: _optimizer(group, config) for name, group in stage.all_groups().items()}
    ema = EMA(stage.averaged(), config.ema)
    power = PowerEMA(stage.averaged(), config.ema_widths) if config.ema_widths else None
    averages: list[EMA | PowerEMA] = [ema] if power is None else [ema, power]
    kept = None if out is None else load_checkpoint(out / "checkpoint", stored, optimizers, ema, power)
    progress = TrainingProgress(**(kept or {}))
    _check_together(progress, out)
    autocast = _autocast(accelerator)
    began, before = time.monotonic(), progress.seconds
    trackers = tracking(accelerator, config.trackers, config.model_dump(mode="json"), keep or out)
    pace, last = Pace(config.checkpoint_minutes), min(until or config.steps, config.steps)
    with display(accelerator, config.steps, quiet) as show, trackers as log:
        while progress.step < last:
            numbers = _step(stage, config, optimizers, progress.step, autocast, shards)
            for average in averages:
                average.update(stage.averaged())
            progress.step += 1
            if stage.after is not None:
                stage.after(progress.step)
                if shards is not None:
                    shards.scatter()  # pictures may have been drawn
            progress.seconds = before + time.monotonic() - began
            progress.add(numbers)
            done = progress.step == last
            if progress.step % 20 == 0 or done:
                log(progress.record())
            show(progress.step, progress.seconds, numbers, config.batch * accelerator.num_processes)
            by_step = done or progress.step % config.checkpoint_every == 0
            if out is not None and (by_step or pace.due()):
                progress.settle()
                with pace.writing():
                    save_checkpoint(out / "checkpoint", stored, optimizers, ema, vars(progress), power)
                if power is not None and by_step:
                    power.store((keep or out) / "averages")
    ema.copy_to(stage.averaged())
    return progress


def _placed(stage: Stage, device: torch.device) -> dict[str, nn.Module]:
    """What a checkpoint holds, with all modules on the device and the same in every process."""
    for module in (*stage.modules.values(), *stage.frozen.values(), *stage.state.values()):
        module.to(device)
    stored = {**stage.modules, **stage.state}
    for module in stored.values():
        processes.share(list(module.state_dict().values()))  # heads begin at random
    return stored


def _optimizer(group: OptimizerGroup, config: StageConfig) -> torch.optim.Optimizer:
    parameters = [p for module in group.modules.values() for p in module.parameters() if p.requires_grad]
    rate = config.learning_rate * group.learning_rate
    return optimizer_of(config.optimizer, parameters, rate, group.betas, config.weight_decay)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """What it steps: a sharded module's own `parameters()` are others while it is whole."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the coming update."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):  # torchao's optimizers keep it on the device
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _step(
    stage: Stage,
    config: StageConfig,
    optimizers: Mapping[str, torch.optim.Optimizer],
    step: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    shards: Shards | None,
) -> dict[str, torch.Tensor | float]:
    seed = (config.seed * 1_000_003 + step) * 1009 + processes.index()
    _seed(seed)
    generator = torch.Generator().manual_seed(seed)
    rate = learning_rate(step, config)
    groups = stage.all_groups()
    for name, group in groups.items():
        _set_rate(optimizers[name], group.learning_rate * rate)
        for module in group.modules.values():
            module.train()
    logged: dict[str, torch.Tensor | float] = {}
    for names, compute in stage.all_turns(step, generator):
        if shards is not None:
            shards.gather()
        with autocast():
            loss, numbers = compute()
        loss.backward()
        logged = {**logged, **numbers} if "loss" in logged else {**logged, "loss": loss.detach(), **numbers}
        _average(shards, [p for name in names for p in _parameters(optimizers[name])])
        for name in names:
            optimizer = optimizers[name]
            norm = torch.nn.utils.clip_grad_norm_(_parameters(optimizer), config.clip_norm)
            logged["gradient" if len(optimizers) == 1 else f"{name}/gradient"] = whole(norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if processes.count() > 1:  # what a module keeps beside its weights, such as densities by time
                modules = groups[name].modules.values()
                processes.share([b for m in modules for b in m.buffers() if b.is_floating_point()])
    return logged


def _seed(seed: int) -> None:
    """Seed the global generators, for dropout and the like inside the modules.

    As `torch.manual_seed`, which notes a stack trace per kind of device at every call.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def _average(shards: Shards | None, parameters: list[nn.Parameter]) -> None:
    """Mean gradient over processes: losses call submodules freely, which a wrapped forward would not see."""
    if shards is None:
        processes.mean_gradients(parameters)
    else:
        shards.scatter(parameters)


def _check_together(progress: TrainingProgress, out: Path | None) -> None:
    if not processes.all_equal(progress.step):
        raise FewstepError(
            "the processes do not see the same checkpoint",
            value=str(out),
            hint="Put the output on a disk that all machines share.",
        )


def _autocast(accelerator: Accelerator) -> Callable[[], AbstractContextManager[Any]]:
    """As `accelerator.autocast`, which looks for optional packages at every call."""
    if accelerator.mixed_precision != "bf16":
        return nullcontext
    return partial(torch.autocast, accelerator.device.type, dtype=torch.bfloat16)


def learning_rate(step: int, config: StageConfig) -> float:
    """Linear warm-up, then a cosine down to zero at `config.steps`, or no decay; times the present stage's multiple."""
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    rate = config.learning_rate * warm * next((m for end, m in config.rate_stages if step < end * config.steps), 1.0)
    if config.decay == "constant":
        return rate
    rest = max(0.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    return rate * 0.5 * (1 + math.cos(math.pi * rest))


def accelerator_for(config: StageConfig) -> Accelerator:
    """The device and precision that the settings name.

    Raises:
        FewstepError: CUDA was asked for and there is none.
    """
    from accelerate.state import AcceleratorState

    if config.device == "cuda" and not torch.cuda.is_available():
        raise FewstepError("no CUDA device here", value="device=cuda", hint="Use device=auto or device=cpu.")
    gpu = config.device != "cpu" and torch.cuda.is_available()
    bf16 = config.precision == "bfloat16" or (config.precision == "auto" and gpu)
    processes.join()
    AcceleratorState._reset_state(True)  # one process may run several stages with other settings
    return Accelerator(cpu=not gpu, mixed_precision="bf16" if bf16 else "no")
