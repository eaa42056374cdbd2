"""Several processes of one program (`torchrun`, `accelerate launch`): which one this is, and what they do together.

The first process leads: it owns the run directory, prints, and writes. With one process everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from fewstep.errors import FewstepError

PATIENCE = timedelta(hours=1)
"""How long a process waits for the others, which may be at work on a shard of the teacher's trajectories."""
BUCKET = 1 << 24
"""Numbers that are sent at once: few messages, and little memory beside the gradients."""


def index() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", 0)) if count() > 1 else 0


def count() -> int:
    """How many processes the launcher started."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


def leads() -> bool:
    """Whether this process owns files and screen."""
    return index() == 0


def join() -> None:
    """Meet the other processes for the first time: gloo for tensors on CPUs, nccl for those on GPUs."""
    if count() == 1 or dist.is_initialized():
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with _together():
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=PATIENCE)


def meet() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        with _together():
            dist.all_reduce(torch.zeros(1))


def all_equal(value: int) -> bool:
    """Whether a number is the same in all processes."""
    if count() == 1:
        return True
    extremes = torch.tensor([value, -value], dtype=torch.int64)
    with _together():
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
    return int(extremes[0]) == -int(extremes[1])


def first_says(yes: bool) -> bool:
    """What the first process answers, in all of them: for decisions by its clock."""
    answer = torch.tensor([float(yes)])
    share([answer])
    return bool(answer)


@torch.no_grad()
def share(tensors: Sequence[torch.Tensor]) -> None:
    """Give all processes the first one's tensors, in place."""
    if count() > 1:
        with _together():
            for tensor in tensors:
                whole = tensor.contiguous()
                dist.broadcast(whole, 0)
                tensor.copy_(whole)


@torch.no_grad()
def mean_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replace the gradients by their mean over processes; one that some processes do not have counts as zero there."""
    if count() == 1 or not parameters:
        return
    with _together():
        present = torch.tensor([float(p.grad is not None) for p in parameters])
        dist.all_reduce(present)
        waiting: dict[torch.dtype, list[torch.Tensor]] = {}
        for parameter, anywhere in zip(parameters, present.tolist(), strict=True):
            if not anywhere:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket = waiting.setdefault(parameter.dtype, [])
            bucket.append(parameter.grad)
            if sum(g.numel() for g in bucket) >= BUCKET:
                _mean_(waiting.pop(parameter.dtype))
        for bucket in waiting.values():
            _mean_(bucket)


def _mean_(tensors: list[torch.Tensor]) -> None:
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    flat /= count()
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


@contextmanager
def _together() -> Iterator[None]:
    """Tell a broken connection as what it is: some other process has ended."""
    try:
        yield
    except RuntimeError as error:
        raise FewstepError(
            f"process {index()} lost the others: one of the {count()} processes ended or was not started",
            hint="Its message is above or below this one; the last checkpoint is good.",
        ) from error
