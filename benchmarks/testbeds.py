"""The models of the solver benchmark, as plain networks: digits without training, MNIST latents, emoji latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Backbone, Guided
from fewstep.executor import sample
from fewstep.jobs.context import seeds_for
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.zoo import shipped

SEEDS = (101, 102, 103)
"""Numbers of the evaluations that a mean and its interval are taken over."""


@dataclass
class Testbed:
    """A network with its process, conditions, and what its results are compared with.

    bind: conditions -> network; features: final states (B, ...) -> (B, F); real: features of real data (M, F).
    scheduler: the diffusers scheduler that the model came with.
    """

    name: str
    about: str
    process: Process
    prediction: Prediction
    shape: tuple[int, ...]
    bind: Callable[[Sequence[Any]], Any]
    conditions: Callable[[int, bool], list[Any]]
    features: Callable[[Tensor], Tensor]
    real: Tensor
    scheduler: Any
    batch: int = 64

    def known(self, count: int) -> tuple[list[Any], list[int]]:
        """(conditions, seeds) of `count` items that searches and calibrations may see."""
        return self.conditions(count, False), seeds_for("reference", 0, count)

    def unseen(self, count: int) -> list[tuple[list[Any], list[int]]]:
        """(conditions, seeds) of `count` held-out items, for each of `SEEDS`."""
        return [(self.conditions(count, True), seeds_for("evaluation", number, count)) for number in SEEDS]

    @torch.no_grad()
    def draw(self, plan: Plan, conditions: Sequence[Any], seeds: Sequence[int]) -> Tensor:
        """Final states (B, ...), sample i from its own condition and seed."""
        return self.generate(plan, conditions, seeds)

    def generate(self, plan: Plan, conditions: Sequence[Any], seeds: Sequence[int]) -> Tensor:
        """`draw` with gradients if the caller has them enabled."""
        parts = []
        for first in range(0, len(seeds), self.batch):
            part = slice(first, first + self.batch)
            parts.append(sample(plan, self.bind(conditions[part]), seeds=list(seeds[part]), shape=self.shape))
        return torch.cat(parts)


def digits() -> Testbed:
    """The exact denoiser of scikit-learn's 8x8 digits, smoothed by 0.35: a rectified flow, unconditional."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from fewstep.testing.kernel_digits import KernelDenoiser, load_digits

    data = load_digits()
    network = KernelDenoiser(data.train).requires_grad_(False)
    return Testbed(
        name="digits",
        about="8x8 digits, exact kernel denoiser (flow)",
        process=network.process,
        prediction=Prediction("velocity"),
        shape=(64,),
        bind=lambda conditions: network,
        conditions=lambda count, held_out: [None] * count,
        features=lambda states: states.flatten(1),
        real=data.test,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        batch=256,
    )


def mnist(guidance: float = 1.5) -> Testbed:
    """The shipped class-conditional latent transformer of MNIST; without guidance its own error hides a solver's."""
    from fewstep.data import load_mnist
    from fewstep.metrics.classifier import load_classifier
    from fewstep.metrics.features import FeatureNet
    from fewstep.pipelines import load_pipeline, process_of
    from fewstep.zoo.dit import NO_CLASS

    pipe = load_pipeline("mnist-dit")
    pipe.transformer.requires_grad_(False)
    net = FeatureNet("mnist-features", load_classifier(shipped("mnist-features")).features)
    process, prediction = process_of(pipe)
    config = pipe.transformer.config
    backbone = Backbone(pipe.transformer)

    def decoded(states: Tensor) -> Tensor:
        return (pipe.vae.decode(states / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)

    def bind(labels: Sequence[int]) -> Guided:
        nothing = torch.full((len(labels),), NO_CLASS)
        return Guided(backbone, {"class_labels": torch.tensor(labels)}, {"class_labels": nothing}, scale=guidance)

    return Testbed(
        name="mnist",
        about=f"MNIST in latents, class-conditional transformer, guidance {guidance:g}",
        process=process,
        prediction=prediction,
        shape=(config.in_channels, config.sample_size, config.sample_size),
        bind=bind,
        conditions=lambda count, held_out: [i % 10 for i in range(count)],
        features=lambda states: net(torch.cat([decoded(part) for part in states.split(250)])),
        real=net(load_mnist().images.float() / 255),
        scheduler=pipe.scheduler,
        batch=128,
    )


def emoji(guidance: float = 2.0) -> Testbed:
    """The shipped emoji teacher with guidance."""
    from fewstep.data import load_emoji
    from fewstep.data.prompts import load_prompts
    from fewstep.metrics import load_features
    from fewstep.pipelines import load_pipeline, process_of

    pipe = load_pipeline("emoji-teacher")
    pipe.unet.requires_grad_(False)
    net = load_features(f"clip:{shipped('emoji-judge')}")
    process, prediction = process_of(pipe)
    config, backbone = pipe.unet.config, Backbone(pipe.unet)
    known: dict[str, Tensor] = {}

    def embedded(prompts: Sequence[str]) -> Tensor:
        for prompt in [p for p in prompts if p not in known]:
            known[prompt] = pipe.encode_prompt(prompt, "cpu", 1, False)[0]
        return torch.cat([known[p] for p in prompts])

    def bind(prompts: Sequence[str]) -> Guided:
        with torch.no_grad():
            within, without = embedded(prompts), embedded([""] * len(prompts))
        return Guided(backbone, {"encoder_hidden_states": within}, {"encoder_hidden_states": without}, scale=guidance)

    def decoded(states: Tensor) -> Tensor:
        return (pipe.vae.decode(states / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)

    def conditions(count: int, held_out: bool) -> list[str]:
        prompts = load_prompts("emoji:evaluation" if held_out else "emoji:calibration", count)
        return [prompts[i % len(prompts)] for i in range(count)]

    return Testbed(
        name="emoji",
        about=f"64x64 emoji in latents, text-conditional UNet, guidance {guidance:g}",
        process=process,
        prediction=prediction,
        shape=(config.in_channels, config.sample_size, config.sample_size),
        bind=bind,
        conditions=conditions,
        features=lambda states: net(torch.cat([decoded(part) for part in states.split(64)])),
        real=net(load_emoji("evaluation").images),
        scheduler=pipe.scheduler,
    )


TESTBEDS: dict[str, Callable[[], Testbed]] = {"digits": digits, "mnist": mnist, "emoji": emoji}
