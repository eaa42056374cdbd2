"""The training loop: one for every stage, device and number of processes; it names no method."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from fewstep.errors import FewstepError, NonFiniteError
from fewstep.train.checkpoint import load_checkpoint, save_checkpoint
from fewstep.train.ema import EMA
from fewstep.train.stage import Stage, StageConfig


@dataclass
class Progress:
    """Where a run stands: steps done, seconds spent (over all resumptions) and the recorded losses."""

    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def fit(stage: Stage, config: StageConfig, out: Path, accelerator: Accelerator) -> Progress:
    """Train until `config.steps`, resuming from `out/checkpoint`; leaves the averaged weights in the modules.

    The randomness of a step depends on (seed, step, process) only, so a resumed run repeats the uninterrupted
    one exactly and no state of a random generator needs storing.

    Raises:
        NonFiniteError: the loss is NaN or infinite.
    """
    for module in (*stage.modules.values(), *stage.frozen.values(), *stage.state.values()):
        module.to(accelerator.device)
    parameters = [p for module in stage.modules.values() for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
    )
    ema = EMA(stage.modules, config.ema)
    stored = {**stage.modules, **stage.state}
    progress = Progress(**(load_checkpoint(out / "checkpoint", stored, optimizer, ema) or {}))
    optimizer = accelerator.prepare(optimizer)
    began, before = time.monotonic(), progress.seconds
    with _Display(accelerator, config.steps) as show:
        while progress.step < config.steps:
            numbers = _step(stage, config, accelerator, optimizer, parameters, progress.step)
            ema.update(stage.modules)
            progress.step += 1
            if stage.after is not None:
                stage.after(progress.step)
            progress.seconds = before + time.monotonic() - began
            if progress.step % 20 == 0 or progress.step == config.steps:
                progress.history.append({"step": progress.step, **{k: float(v) for k, v in numbers.items()}})
                if not math.isfinite(progress.history[-1]["loss"]):
                    raise NonFiniteError(f"the loss at step {progress.step} is not finite", mend="Lower learning_rate.")
            show(progress, numbers, config.batch * accelerator.num_processes)
            done = progress.step == config.steps
            if (done or progress.step % config.checkpoint_every == 0) and accelerator.is_main_process:
                save_checkpoint(out / "checkpoint", stored, optimizer, ema, vars(progress))
    ema.copy_to(stage.modules)
    return progress


def _step(
    stage: Stage,
    config: StageConfig,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    step: int,
) -> dict[str, torch.Tensor | float]:
    seed = (config.seed * 1_000_003 + step) * 1009 + accelerator.process_index
    torch.manual_seed(seed)  # for dropout and the like inside the modules
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config)
    for module in stage.modules.values():
        module.train()
    with accelerator.autocast():
        loss, numbers = stage.loss(stage.batch(generator), generator)
    accelerator.backward(loss)
    _average_gradients(accelerator, parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"loss": loss.detach(), **numbers, "gradient": norm}


def learning_rate(step: int, config: StageConfig) -> float:
    """Linear warm-up, then a cosine down to zero at `config.steps`."""
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    rest = max(0.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * rest))


def _average_gradients(accelerator: Accelerator, parameters: list[nn.Parameter]) -> None:
    """Mean gradient over processes: losses call submodules freely, which a wrapped forward would not see."""
    if accelerator.num_processes > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, "mean")


def accelerator_for(config: StageConfig) -> Accelerator:
    """The device and precision that the settings name.

    Raises:
        FewstepError: CUDA was asked for and there is none.
    """
    from accelerate.state import AcceleratorState

    if config.device == "cuda" and not torch.cuda.is_available():
        raise FewstepError("no CUDA device here", value="device=cuda", mend="Use device=auto or device=cpu.")
    gpu = config.device != "cpu" and torch.cuda.is_available()
    bf16 = config.precision == "bfloat16" or (config.precision == "auto" and gpu)
    AcceleratorState._reset_state(True)  # one process may run several stages with other settings
    return Accelerator(cpu=not gpu, mixed_precision="bf16" if bf16 else "no")


class _Display:
    """Progress with loss, pictures per second and time left; plain lines where there is no terminal."""

    def __init__(self, accelerator: Accelerator, steps: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]} · {task.fields[rate]} img/s · left"),
            TimeRemainingColumn(),
            disable=not accelerator.is_main_process,
            transient=True,
        )
        self.plain = accelerator.is_main_process and not self.bar.console.is_terminal
        self.steps, self.loss, self.start = steps, 0.0, (0, 0.0)

    def __enter__(self):  # type: ignore[no-untyped-def]
        self.bar.disable = self.bar.disable or self.plain
        self.bar.__enter__()
        self.task = self.bar.add_task("train", total=self.steps, loss="?", rate="?")
        return self._show

    def __exit__(self, *error: object) -> None:
        self.bar.__exit__(*error)  # type: ignore[arg-type]

    def _show(self, progress: Progress, numbers: Mapping[str, Any], batch: int) -> None:
        if self.start == (0, 0.0):
            self.start = (progress.step - 1, progress.seconds)
        if progress.step % 10:
            return
        loss = float(numbers["loss"])
        self.loss = loss if self.loss == 0.0 else 0.9 * self.loss + 0.1 * loss
        done = progress.step - self.start[0]
        rate = done * batch / max(1e-9, progress.seconds - self.start[1])
        text, speed = f"{self.loss:.4f}", f"{rate:.0f}"
        self.bar.update(self.task, completed=progress.step, loss=text, rate=speed)
        if self.plain and progress.step % 100 == 0:
            left = (self.steps - progress.step) * batch / max(rate, 1e-9)
            print(f"step {progress.step}/{self.steps}  loss {text}  {speed} img/s  {left:.0f} s left", flush=True)
