"""One More Step in pipelines: first latents that know the condition, for a model that stays as it is."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoiser import Backbone, Guided, fingerprint
from fewstep.errors import FewstepError, IdentityError
from fewstep.executor import Network, Noise
from fewstep.files import write_folder
from fewstep.ownership import Over
from fewstep.pipelines.calls import backbone_of
from fewstep.pipelines.load import exchanged
from fewstep.pipelines.protocol import Pipeline
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.plan.combination import number
from fewstep.solvers.one_more_step import first_row
from fewstep.weights import same_weights
from fewstep.zoo.dit import NO_CLASS
from fewstep.zoo.oms import load_network, save_network


@dataclass(frozen=True, eq=False)
class OneMoreStep:
    """A network that sees pure noise and a condition (arXiv 2311.15744); works for any model of the same latents.

    network: a diffusers UNet or transformer; it is always told time 0.
    prediction: what it returns: `v_prediction`, `sample` or `velocity`.
    latents: fingerprint of the autoencoder whose latents it knows; None means any.
    guidance: w of uncond + w (cond - uncond) on this network alone; large values over-saturate.
    eta: part of the noise that is drawn afresh; 1 as published.
    """

    network: nn.Module
    prediction: str = "v_prediction"
    latents: str | None = None
    guidance: float = 1.0
    eta: float = 1.0

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, guidance: float = 1.0, eta: float = 1.0) -> OneMoreStep:
        """Open a folder written by `save_pretrained` or `fewstep train oms` (FewstepError if it is none)."""
        return cls(*load_network(folder), guidance=guidance, eta=eta)

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the network as a diffusers folder, whole or not at all.

        overwrite: replace a folder that fewstep wrote; others are never replaced (FewstepError).
        """
        over: Over = "ours" if overwrite else "nothing"
        write_folder(folder, lambda draft: save_network(self.network, draft, self.latents), over)

    def bound(self, condition: Mapping[str, Any], negative: Mapping[str, Any] | None = None) -> Network:
        """The network with its condition, for `sample(with_one_more_step(plan), {"main": ..., "oms": ...})`."""
        model = Backbone(self.network)
        if self.guidance == 1.0:
            return lambda x, time: model(x, torch.zeros_like(time), **condition)
        guided = Guided(model, condition, negative, self.guidance)
        return lambda x, time: guided(x, torch.zeros_like(time))

    def of(self, pipe: Pipeline, prompts: Sequence[Any]) -> Network:
        """The network bound to prompts (or classes, by number or name) as the pipeline encodes them.

        Raises:
            IdentityError: the pipeline has other latents.
        """
        self._check(pipe)
        negative = None if self.guidance == 1.0 else condition_of(pipe, [None] * len(prompts))
        return self.bound(condition_of(pipe, prompts), negative)

    @torch.no_grad()
    def start(self, pipe: Pipeline, prompts: Sequence[Any], seeds: Sequence[int], steps: int) -> Tensor:
        """First latents (B, C, h, w) for `pipe(prompts, num_inference_steps=steps, latents=...)`.

        The prompts here need not be those of the pipeline call: they decide brightness and layout only. Sample i
        depends on seed i alone, and equals the executor's on `with_one_more_step`.

        Raises:
            FewstepError: the scheduler starts in pure noise, or not one seed per prompt.
            IdentityError: the pipeline has other latents.
        """
        if len(prompts) != len(seeds):
            raise FewstepError("one seed per prompt is needed", value=(len(prompts), len(seeds)))
        scheduler = copy.deepcopy(pipe.scheduler)
        scheduler.set_timesteps(steps)
        config: Any = backbone_of(pipe).config
        noise, shape = Noise(seeds), (config.in_channels, config.sample_size, config.sample_size)
        pure, fresh = (noise.draw(shape).to(pipe.device) for _ in range(2))
        return self._first(self.of(pipe, prompts), pure, fresh, scheduler) / scheduler.init_noise_sigma

    def pipeline(self, pipe: Pipeline, prompt: str | None = None) -> Pipeline:
        """A pipeline of its own, with the parts of a text pipeline, in which every call begins with the extra step.

        Args:
            pipe: a text pipeline; it stays as it is.
            prompt: what this step is told instead of the pipeline's own prompts ("a dark night").

        Raises:
            FewstepError: the pipeline takes no prompts or makes its latents in some other way.
            IdentityError: the pipeline has other latents.
        """
        self._check(pipe)
        if not (hasattr(pipe, "encode_prompt") and hasattr(pipe, "prepare_latents")):
            what = f"{type(pipe).__name__} has no encode_prompt and prepare_latents to begin with"
            raise FewstepError(what, hint="Use `start`, or `with_one_more_step(plan)` and `sample`.")
        longer: Any = exchanged(pipe, {"scheduler": copy.deepcopy(pipe.scheduler)})
        seen: dict[str, Tensor] = {}
        encode, prepare = longer.encode_prompt, longer.prepare_latents

        @functools.wraps(encode)
        def noting(*args: Any, **kwargs: Any) -> Any:
            result = encode(*args, **kwargs)
            seen["states"] = result[0]
            return result

        @functools.wraps(prepare)
        def prepared(*args: Any, **kwargs: Any) -> Any:
            latents = prepare(*args, **kwargs)
            if not isinstance(latents, Tensor):
                raise FewstepError(f"{type(pipe).__name__} prepares more than latents", hint="Use `start`.")
            given = inspect.signature(prepare).bind(*args, **kwargs).arguments
            return self._prepared(longer, latents, given.get("generator"), prompt, seen["states"])

        longer.encode_prompt, longer.prepare_latents = noting, prepared
        return longer

    def _prepared(self, pipe: Pipeline, latents: Tensor, generator: Any, prompt: str | None, states: Tensor) -> Tensor:
        from diffusers.utils.torch_utils import randn_tensor

        if prompt is not None:
            states = condition_of(pipe, [prompt])["encoder_hidden_states"].expand(len(latents), -1, -1)
        negative = None if self.guidance == 1.0 else condition_of(pipe, [None] * len(latents))
        network = self.bound({"encoder_hidden_states": states}, negative)
        fresh = randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
        with torch.no_grad():
            return self._first(network, latents / pipe.scheduler.init_noise_sigma, fresh, pipe.scheduler)

    def _first(self, network: Network, pure: Tensor, fresh: Tensor, scheduler: Any) -> Tensor:
        """The state at the scheduler's first level, in the scheduler's own scale."""
        row = first_row(*level_of(scheduler), self.prediction, self.eta)
        raw = network(pure, torch.zeros((), device=pure.device)).to(pure.dtype)
        return row.state.get(0, 0.0) * pure + row.output[0] * raw + row.noise * fresh

    def _check(self, pipe: Pipeline) -> None:
        found = fingerprint(pipe.vae) if getattr(pipe, "vae", None) is not None else "none"
        if self.latents is not None and not same_weights(self.latents, found):
            hint = "Train one for these latents: fewstep train oms --set pipeline=FOLDER."
            raise IdentityError("this network of One More Step belongs to another autoencoder", value=found, hint=hint)


def level_of(scheduler: Any) -> tuple[float, float]:
    """(alpha, sigma) of the state that a scheduler, after `set_timesteps`, starts from, in its own scale.

    Taken from the first time that is used: leading spacing and truncated grids start at more signal than the last time.

    Raises:
        FewstepError: the scheduler has no `alphas_cumprod` (flow schedulers begin in pure noise).
    """
    if isinstance(scheduler, PlanScheduler):
        first = scheduler.plan.rows[0]
        return number(first.alpha), number(first.sigma)
    if not hasattr(scheduler, "alphas_cumprod"):
        hint = "Flow models begin in pure noise and need no extra step."
        raise FewstepError(f"{type(scheduler).__name__} has no alphas_cumprod", hint=hint)
    if float(scheduler.init_noise_sigma) != 1.0:  # sigma space: the state is data plus sigma times noise
        return 1.0, float(scheduler.sigmas[0])
    bar = float(scheduler.alphas_cumprod[int(scheduler.timesteps[0])])
    return bar**0.5, (1 - bar) ** 0.5


def condition_of(pipe: Pipeline, prompts: Sequence[Any]) -> dict[str, Tensor]:
    """Keyword arguments of the network for prompts, or for classes by number or name; None stands for none.

    Raises:
        FewstepError: the pipeline has neither prompts nor classes.
    """
    encode: Callable[..., Any] | None = getattr(pipe, "encode_prompt", None)
    if encode is not None:
        words = ["" if prompt is None else prompt for prompt in prompts]
        options = {"device": pipe.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        known = inspect.signature(encode).parameters
        with torch.no_grad():
            states = encode(words, **{k: v for k, v in options.items() if k in known})[0]
        return {"encoder_hidden_states": states}
    labels = getattr(pipe, "labels", None)
    if labels is None:
        raise FewstepError(f"{type(pipe).__name__} has neither prompts nor classes")
    numbers = [NO_CLASS if p is None else labels[p] if isinstance(p, str) else int(p) for p in prompts]
    return {"class_labels": torch.tensor(numbers, device=pipe.device)}
