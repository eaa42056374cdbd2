"""What the steps of an alignment share: the student's chain as read from its plan, rewards of samples, batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewstep.alignment.presets import alignment
from fewstep.data import load
from fewstep.denoiser import Denoiser
from fewstep.distillation.chain import Chain, ancestral_steps
from fewstep.distillation.core import Batch
from fewstep.distillation.method import Method
from fewstep.errors import FewstepError
from fewstep.files import user_path
from fewstep.jobs.align.recipe import AlignRecipe
from fewstep.jobs.align.votes import Votes, read_votes
from fewstep.jobs.context import Items, JobContext, seeds_for
from fewstep.jobs.distill.batches import Batches, batch_of, from_conditions
from fewstep.jobs.distill.networks import device_of, loop_settings
from fewstep.pipelines import backbone_of, load_pipeline, process_of
from fewstep.pipelines.encoded import EncodedConditions, encode_conditions
from fewstep.plan import Plan
from fewstep.process import Process
from fewstep.rewards import Reward, load_reward
from fewstep.train.latents import encode_pictures
from fewstep.train.shards import wanted as sharded
from fewstep.train.stage import StageConfig
from fewstep.zoo import SHIPPED, placed

HELD_OUT = {"emoji": "evaluation", "mnist": "reference"}
"""Splits of shipped pictures that no shipped model was trained on."""

RIVALS = 4
"""What the student draws itself against each of a few pictures that it is to learn."""

LIKE = 0.02
"""How far coefficients of a plan may be from those of a chain: LCM's boundary condition moves them by 0.01."""


@dataclass(frozen=True, eq=False)
class AlignContext(JobContext[AlignRecipe]):
    """A few-step pipeline and what it is tuned by.

    Args:
        rewards: opened already, in the place of those that the recipe names.
    """

    rewards: tuple[Reward, ...] = field(default=())

    def check(self) -> None:
        """Refuse what can be seen to be wrong before anything is trained.

        Raises:
            FewstepError: a low-bit or guided student, steps of an unknown kind, a method that its chain or its rewards
                do not allow, a decoder of an unknown kind, or a reward that says nothing.
        """
        if self.identity.quantization != "none":
            hint = "Align the full-precision pipeline, then quantize it."
            raise FewstepError("low-bit weights cannot be trained", value=self.recipe.model, hint=hint)
        if self.recipe.guidance > 1:
            hint = "A few-step student has its guidance inside; distil the others first."
            raise FewstepError("alignment runs a student without guidance", value=self.recipe.guidance, hint=hint)
        method = self.method
        dull = [r.name for r in self.opened if not r.differentiable]
        if dull and "reward" in method.needs and self.recipe.facts.gradient:
            hint = "Use pso or grpo, which need no gradient."
            raise FewstepError(f"{self.recipe.method} needs the gradient of its rewards", value=dull, hint=hint)
        if sharded(self.recipe.train.shard):
            hint = "Set train.shard=false: each process keeps the student whole, and shares gradients."
            raise FewstepError("an alignment does not share out weights", value="train.shard", hint=hint)
        self._check_decoder()

    def _check_decoder(self) -> None:
        """Pictures that the rewards get must be those that the pipeline shows."""
        given = None if self.names is None else self.names[:2]
        seeds = seeds_for("calibration", 0, 2)
        with torch.no_grad():
            latents, shown = (self.sampler()(self.plan, given, seeds, output) for output in ("latent", "image"))
            found = self.decoded(latents.to(device_of(self.pipe))).to(shown.device)
        if found.shape != shown.shape or float((found - shown).abs().max()) > 0.02:
            hint = (
                "Open an issue with the pipeline's class; so far latents (B, C, H, W) with a VAE, or pixels, are known."
            )
            raise FewstepError(
                "this pipeline decodes in a way that is not known", value=type(self.pipe).__name__, hint=hint
            )

    @cached_property
    def chain(self) -> Chain:
        """How the student is run, read from its plan.

        Raises:
            FewstepError: steps of another kind.
        """
        plan, times = self.plan, tuple(float(row.time) for row in self.plan.rows)
        tried = [Chain(times), Chain(times, 0.0), Chain(times, law=ancestral_steps())]
        gamma = plan.origin.get("fresh")
        tried += [Chain(times, float(gamma))] if isinstance(gamma, float | int) else []
        for chain in tried:
            if _alike(chain.plan(self.process, self.prediction), plan, self.process):
                return chain
        hint = "Attach the plan of lcm, consistency, ddim, euler or euler_ancestral."
        raise FewstepError("the steps of this student are of an unknown kind", value=dict(plan.origin), hint=hint)

    @cached_property
    def method(self) -> Method:
        """How it is tuned."""
        return alignment(self.recipe.method, self.process, self.chain, **self.recipe.options)

    @property
    def config(self) -> StageConfig:
        """The settings of the loop: the method's own, changed by the recipe's."""
        return loop_settings(self.recipe.train, self.method, self.pipe)

    @cached_property
    def opened(self) -> tuple[Reward, ...]:
        """The rewards that are raised."""
        return self.rewards or tuple(load_reward(placed(spec)) for spec in self.recipe.reward)

    @property
    def weights(self) -> list[float]:
        """Of the rewards."""
        return self.recipe.weights or [1.0] * len(self.opened)

    @cached_property
    def real(self) -> Tensor | None:
        """Real pictures (N, 3, H, W) uint8 of the side that the pipeline draws; None without."""
        wanted = self.recipe.evaluation.real
        if wanted == "auto":
            wanted = self.recipe.model.partition("-")[0] if self.recipe.model in SHIPPED else "none"
        if wanted == "none":
            return None
        return load(wanted, HELD_OUT.get(wanted, "all"), self._side()).images

    @cached_property
    def judge(self) -> Reward | None:
        """Who judges, and was not trained on.

        Raises:
            FewstepError: the judge is one of the rewards.
        """
        wanted = self.recipe.evaluation.judge
        if wanted == "auto":
            wanted = "clip:emoji-judge" if self.recipe.model in SHIPPED and "emoji" in self.recipe.model else "none"
        if wanted in self.recipe.reward:
            hint = "Name another reward, or evaluation.judge=none."
            raise FewstepError("what is trained on must not judge", value=wanted, hint=hint)
        return None if wanted == "none" else load_reward(placed(wanted))

    @cached_property
    def votes(self) -> tuple[list[Any], Tensor, Tensor] | None:
        """Prompts, chosen and rejected latents (N, ...) where there are votes."""
        if not self.recipe.pairs:
            return None
        vae: Any = getattr(self.pipe, "vae", None)
        folder = user_path(self.recipe.pairs).is_dir()
        prompts, *pictures = self._against_own_draws() if folder else read_votes(self.recipe.pairs, self._side())
        if vae is None:
            chosen, rejected = (part.float() / 127.5 - 1 for part in pictures)
        else:
            none = torch.zeros(len(prompts), 1, dtype=torch.long)
            chosen, rejected = (
                encode_pictures(vae, part, ["text"] * len(prompts), none, device_of(self.pipe)).both[0]
                for part in pictures
            )
        return prompts, chosen, rejected

    def _against_own_draws(self) -> Votes:
        """Captioned pictures of a folder, each liked more than what the student draws under its caption."""
        images, captions = load(self.recipe.pairs, "train", self._side())
        prompts = captions * RIVALS
        seeds = seeds_for("tuning", self.recipe.train.seed, len(prompts))
        with torch.no_grad():
            own = Items(prompts, seeds).draw(self.sampler(), self.plan).cpu()
        return prompts, images.repeat(RIVALS, 1, 1, 1), (own * 255).round().to(torch.uint8)

    def _side(self) -> int:
        """Of the pictures that the pipeline draws, in pixels."""
        with torch.no_grad():
            given = self.conditions(self.recipe.train_prompts, 1)
            return self.sampler()(self.plan, given, [0]).shape[-1]

    @cached_property
    def names(self) -> list[Any] | None:
        """Prompts or labels of the training."""
        return self.conditions(self.recipe.train_prompts) if self.votes is None else self.votes[0]

    @cached_property
    def encoded(self) -> EncodedConditions:
        """What the network is given for them."""
        return encode_conditions(self.sampler(), self.process, self.names)

    def batches(self) -> Batches:
        """Prompts at random, with their votes where there are some."""
        size, device = self.recipe.train.batch, device_of(self.pipe)
        if self.votes is None:
            return from_conditions(self.encoded, size, device)
        _, chosen, rejected = self.votes

        def draw(generator: torch.Generator) -> Batch:
            rows = torch.randint(len(chosen), (size,), generator=generator)
            return replace(batch_of(self.encoded, rows, device, chosen[rows]), rejected=rejected[rows].to(device))

        return draw

    def decoded(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of latents, with their gradient."""
        vae: Any = getattr(self.pipe, "vae", None)
        if vae is None:
            images = latents
        else:
            shift = getattr(vae.config, "shift_factor", None) or 0.0
            images = vae.decode((latents / vae.config.scaling_factor + shift).to(vae.dtype)).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def score(self, latents: Tensor, batch: Batch) -> Tensor:
        """The weighted sum of the rewards (B,) of latents, or each of them (B, R): what the losses call."""
        images, prompts = self.decoded(latents), self._prompts_of(batch)
        each = [w * r.score(images, prompts).to(latents.device) for w, r in zip(self.weights, self.opened, strict=True)]
        return torch.stack(each, 1) if self.recipe.combine == "pareto" else torch.stack(each).sum(0)

    def _prompts_of(self, batch: Batch) -> Sequence[str]:
        if self.names is None or batch.numbers is None:
            return [""] * batch.size
        return [str(self.names[int(i)]) for i in batch.numbers]

    @cached_property
    def teacher(self) -> Denoiser | None:
        """The many-step network, where the method distils from one.

        Raises:
            FewstepError: it has another process than the student.
        """
        if not self.recipe.teacher:
            return None
        pipe = load_pipeline(self.recipe.teacher).to(device_of(self.pipe))
        process, prediction = process_of(pipe)
        network = backbone_of(pipe).eval().requires_grad_(False)
        return Denoiser(self.encoded.network(network), process, prediction)


def _alike(made: Plan, found: Plan, process: Process) -> bool:
    """Whether two plans of as many rows do the same within `LIKE`; states may be divided by alpha (sigma space)."""

    def table(plan: Plan) -> list[list[float]]:
        scales = [process.alpha(float(row.time)) / float(row.alpha) if float(row.alpha) else 1.0 for row in plan.rows]
        found = []
        for k, (row, own, after) in enumerate(zip(plan.rows, scales, [*scales[1:], 1.0], strict=True)):
            state = float(row.state.get(k, 0.0)) * after / own
            found.append([state, float(row.output.get(k, 0.0)) * after, float(row.noise) * after])
        return found

    rows = zip(table(made), table(found), strict=True)
    within = all(abs(a - b) < LIKE for one, other in rows for a, b in zip(one, other, strict=True))
    return within and all(set(row.state) | set(row.output) <= {k} for k, row in enumerate(found.rows))
