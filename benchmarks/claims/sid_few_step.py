"""Few-step SiD: one network for the mixture of all calls; guidance by what the critic is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from claims.claim import Arm, Claim, Make, Question
from fewstep.distillation.chain import Chain, evenly
from fewstep.distillation.method import Method, method
from fewstep.distillation.rollout import backward_simulation
from fewstep.process import Process

STEPS, GUIDANCE = 4, 1.5


def guided(guidance: float, critic: float, last: bool = False, adversarial: float = 0.0, told: bool = False) -> Make:
    """The preset at two guidance scales; last: only the last call is judged; told: the critic knows the call."""

    def make(process: Process, updates: int) -> Method:
        samples = method(
            "sid_few_step",
            process,
            steps=STEPS,
            guidance=guidance,
            critic_guidance=critic,
            adversarial=adversarial,
            modules=("blocks.1",),
            step_condition=told,
            floor=0.1,
        )
        return dataclasses.replace(samples, rollout=backward_simulation(samples.steps, last=True)) if last else samples

    return make


def first_calls(process: Process) -> Mapping[str, Chain]:
    """One student stopped after so many of its calls."""
    times = evenly(process, STEPS).times
    return {f"{count} calls": Chain(times[:count]) for count in (1, 2, STEPS)}


CLAIM = Claim(
    paper="Few-Step Diffusion via Score Identity Distillation (arXiv 2505.12674)",
    says="One network trained on the mixture of its calls needs no network per step, and Zero-CFG and Anti-CFG keep "
    "the diversity that guidance takes away.",
    asks=f"Four calls, equal passes; guidance {GUIDANCE:g}. Right: share of samples that the judge puts in the class "
    "asked for; spread: how varied the samples of a class are, 1 as the data. The paper's Zero-CFG has an adversary on "
    "real data beside it, so it is asked with (what that looks at is not counted) and without. Ten classes that are "
    "easy to tell apart need no guidance: what is left to see is what it costs.",
    arms={
        "mixture": Arm(guided(1.0, 1.0), first_calls),
        "mixture, critic told": Arm(guided(1.0, 1.0, told=True), first_calls),
        "last call alone": Arm(guided(1.0, 1.0, last=True), first_calls),
        "guidance": Arm(guided(GUIDANCE, GUIDANCE), first_calls),
        "Zero-CFG": Arm(guided(1.0, 0.0), first_calls),
        "Zero-CFG, critic told": Arm(guided(1.0, 0.0, told=True), first_calls),
        "Zero-CFG, adversary": Arm(guided(1.0, 0.0, adversarial=0.1), first_calls),
        "Anti-CFG": Arm(guided(1.0, -1.0), first_calls),
    },
    premises={
        "guidance takes diversity away": Question("mixture", "guidance", "spread", "4 calls", higher=True),
        "guidance takes recall away": Question("mixture", "guidance", "recall", "4 calls", higher=True),
    },
    questions=(
        Question("mixture, critic told", "mixture", draw="4 calls"),
        *(Question("mixture, critic told", "mixture", draw=f"{n} calls") for n in (1, 2)),
        Question("Zero-CFG, critic told", "Zero-CFG", draw="4 calls"),
        Question("mixture", "last call alone", draw="4 calls"),
        Question("mixture", "mixture", draw="4 calls", than_draw="1 calls"),
        Question("Zero-CFG", "mixture", "right", "4 calls", higher=True),
        Question("Anti-CFG", "mixture", "right", "4 calls", higher=True),
        *(
            Question(name, "guidance", "spread", "4 calls", higher=True, premise="guidance takes diversity away")
            for name in ("Zero-CFG", "Anti-CFG")
        ),
        Question("Zero-CFG", "guidance", "recall", "4 calls", higher=True, premise="guidance takes recall away"),
        Question("Zero-CFG", "guidance", draw="4 calls"),
        Question("Zero-CFG, adversary", "Zero-CFG", draw="4 calls"),
        Question("mixture", "Zero-CFG", draw="4 calls"),
    ),
)
