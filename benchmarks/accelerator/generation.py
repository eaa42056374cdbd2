"""Milliseconds and memory of one-step and four-step generation at true sizes, in bfloat16 and in low bits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from clock import compared, in_turn
from distillation_true_size import MODELS, Subject, encoded, made
from torch import Tensor, nn

from accelerator import Part, Setting, given_back, unmeasured
from fewstep.denoiser import Guided
from fewstep.executor import Network, sample
from fewstep.jobs.quantize.measure import growth
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import VPDiscrete
from fewstep.quant import quantize
from fewstep.quant.report import resident_bytes
from fewstep.solvers import SOLVERS, grids

SCHEMES = ("w8a8", "w4a8", "w4a16", "fp8afp8")
STEPS = (1, 4)
BASE = "bfloat16"


def parts(setting: Setting) -> dict[str, Part]:
    """Every network in bfloat16, then in each scheme; in one of them at toy sizes."""
    return {
        f"{kind}/{scheme}": partial(measured, kind, scheme, setting)
        for kind in ("sdxl", "flux")
        for scheme in (BASE, *(("w4a8",) if setting.toy else SCHEMES))
    }


def measured(kind: str, scheme: str, setting: Setting) -> dict[str, Any]:
    """A row: bytes of the network, bytes that a step takes beside it, and times in turns.

    In bfloat16 the network competes with itself compiled; in a scheme with bfloat16, where both fit beside each other.
    """
    given_back(setting.kind)
    module = module_of(kind, setting)
    row: dict[str, Any] = {"parameters": sum(weight.numel() for weight in module.parameters()), "why": {}}
    if scheme != BASE:
        row["coverage"] = quantize(module, scheme).coverage
        given_back(setting.kind)
    one = run_of(kind, 1, setting)
    ways = {scheme: bound(kind, module, setting)}
    with torch.no_grad():
        one(ways[scheme])  # what a first call makes and keeps is the network's
        row |= {"bytes": resident_bytes(module), "step_bytes": growth(partial(one, ways[scheme]), setting.kind)}
    rival, make = rival_of(module, kind, scheme, setting)
    try:
        ways[rival] = bound(kind, make(), setting)
        with torch.no_grad():
            one(ways[rival])
    except (RuntimeError, torch.OutOfMemoryError) as error:  # too large beside the other; nothing compiles it
        ways.pop(rival, None)
        row["why"][rival] = unmeasured(error)
    for steps in STEPS:
        run = run_of(kind, steps, setting)
        times = in_turn({name: partial(run, way) for name, way in ways.items()}, setting.rounds, setting.device)
        row[f"{steps} steps"] = compared(times, (BASE,))
    return row


def rival_of(module: nn.Module, kind: str, scheme: str, setting: Setting) -> tuple[str, Callable[[], nn.Module]]:
    """What a network is compared with, and how it is made."""
    if scheme == BASE:
        return f"{BASE} compiled", partial(compiled, module, setting.toy)
    return BASE, partial(module_of, kind, setting)


def compiled(module: nn.Module, toy: bool) -> nn.Module:
    """The same weights behind a compiled call; at toy sizes no code is generated for it."""
    twin = copy.copy(module)
    twin.compile(dynamic=False, backend="eager" if toy else "inductor")
    return twin


def run_of(kind: str, steps: int, setting: Setting) -> Callable[[Network], Tensor]:
    """Draws one sample with a network."""
    subject = MODELS[kind]
    plan, shape = plan_of(subject, steps), subject.shape(setting.toy)
    return lambda network: sample(plan, network, seeds=[0], shape=shape, device=setting.device)


def plan_of(subject: Subject, steps: int) -> Plan:
    """First-order steps at the times of a few-step student."""
    process = subject.process
    grid = grids.trailing(process, steps) if isinstance(process, VPDiscrete) else grids.uniform(process, steps)
    return SOLVERS["ddim"](process, Prediction(subject.prediction), grid)


def module_of(kind: str, setting: Setting) -> nn.Module:
    """A network with random bfloat16 weights."""
    return made(MODELS[kind], setting.toy, setting.kind, torch.bfloat16)


def bound(kind: str, module: nn.Module, setting: Setting) -> Network:
    """The module with a condition, as (state, time) -> output."""
    given = encoded(MODELS[kind], setting.toy, setting.kind, torch.bfloat16)
    condition, _ = given.pick(torch.zeros(1, dtype=torch.long))
    return Guided(given.network(module), condition or {})
