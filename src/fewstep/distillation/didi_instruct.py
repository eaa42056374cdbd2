"""DiDi-Instruct: a masked model learns to reveal many tokens at once, by policy gradient (arXiv 2509.25035).

Samples of tokens carry no gradient. The gradient of the integral KL between noised samples of student and data is that
of a policy whose reward is the log-ratio of their densities, which a discriminator of noised sequences estimates:

    grad L = -E_tau[w(tau) A(z) grad log p(x, z_tau)],   A: log q_data(z) - log q_student(z), normalised within a group,
    log p(x, z_tau) = log p(z_tau | all masked) + log p(x | z_tau),   z: x noised to the same tau

The two-step path through z_tau trains the student at every share of masks that it meets in more steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.discrete import MaskedDiffusion, TokenDenoiser, token_transition
from fewstep.distillation.advantages import group_advantages
from fewstep.distillation.core import Loss
from fewstep.distillation.engine import Turn
from fewstep.errors import FewstepError


@dataclass(frozen=True)
class DiDiInstruct:
    """The method's settings; defaults are published where data is real.

    Attributes:
        group: samples whose rewards are normalised together; they share their time.
        tau: (a, b) of the Beta law of times; (1, 1) is uniform.
        divide: divide the weight by the density of that law.
        clip: of the discriminator's logits, which are the rewards.
        most: of normalised rewards.
        weights: bounds of w(tau) = -alpha' / (1 - alpha).
        teacher: weight of the symmetric KL to the teacher's token laws, in both steps.
        entropy: weight of the entropy of the student's token laws.
        smoothing: of the discriminator's labels.
        ratio: updates of the discriminator per update of the student.
        intermediate: walk through z_tau; without it the student goes from all masked to x in one step.
        normalise: divide rewards by their deviation within the group, and bound them; without it their mean alone is
            taken away.

    Raises:
        FewstepError: groups of less than two samples.
    """

    group: int = 4
    tau: tuple[float, float] = (2.0, 2.0)
    divide: bool = False
    clip: float = 8.0
    most: float = 3.0
    weights: tuple[float, float] = (0.1, 10.0)
    teacher: float = 0.01
    entropy: float = 5e-4
    smoothing: float = 0.1
    ratio: int = 1
    intermediate: bool = True
    normalise: bool = True

    def __post_init__(self) -> None:
        if self.group < 2:
            hint = "Rewards are normalised within a group."
            raise FewstepError("a group needs at least two samples", value=self.group, hint=hint)

    def times(self, size: int, generator: torch.Generator) -> Tensor:
        """Times tau (B,), one per group, within [0.02, 0.98]."""
        count = -(-size // self.group)
        a, b = (
            torch._standard_gamma(torch.full((count,), value, dtype=torch.float64), generator=generator)
            for value in self.tau
        )
        return (a / (a + b)).clamp(0.02, 0.98).repeat_interleave(self.group)[:size]

    def weight(self, process: MaskedDiffusion, tau: Tensor) -> Tensor:
        """w(tau) of each sample (B,)."""
        found = (-process.slope(tau) / (1 - process.alpha(tau))).clamp(*self.weights)
        if not self.divide:
            return found
        a, b = (torch.tensor(value, dtype=torch.float64) for value in self.tau)
        return found / torch.distributions.Beta(a, b).log_prob(tau).exp().to(found)


@dataclass(frozen=True)
class TokenRollout:
    """What the student made in two steps.

    Attributes:
        tau: times of the state between (B,).
        state: tokens z_tau (B, L).
        tokens: x (B, L), all revealed.
        log_prob: of both steps together (B,), with its gradient.
        laws: the student's log-probabilities of clean tokens (B, L, V) in both steps, with their gradient.
        masked: which positions (B, L) were masked before each step.
    """

    tau: Tensor
    state: Tensor
    tokens: Tensor
    log_prob: Tensor
    laws: tuple[Tensor, Tensor]
    masked: tuple[Tensor, Tensor]


def two_step_rollout(student: TokenDenoiser, tau: Tensor, length: int, generator: torch.Generator) -> TokenRollout:
    """All masked -> z_tau -> x: one step of the ancestral sampler to tau (B,), and one to the end.

    Two passes through the network; the draws carry no gradient, their log-probability does.
    """
    process, size = student.process, len(tau)
    uniform = torch.rand(2, size, length, generator=generator).to(tau.device)
    blank = torch.full((size, length), process.mask, device=tau.device)
    first = student(blank)
    to = token_transition(process, blank, first, torch.ones_like(tau), tau)
    state = to.draw(uniform[0])
    second = student(state)
    on = token_transition(process, state, second, tau, torch.zeros_like(tau))
    tokens = on.draw(uniform[1])
    masked = (blank == process.mask, state == process.mask)
    return TokenRollout(tau, state, tokens, to.log_prob(state) + on.log_prob(tokens), (first, second), masked)


def log_ratio(logits: Tensor, masked: Tensor, clip: float) -> Tensor:
    """log q_data(z) - log q_student(z) per token (B,): the mean of logits (B, L) over masked positions (B, L)."""
    within = logits.clamp(-clip, clip) * masked
    return within.sum(1) / masked.sum(1).clamp(min=1)


@dataclass(eq=False)
class TokenEngine:
    """DiDi-Instruct with its networks and its stream of data; what a training asks for the updates of a step.

    Attributes:
        method: the settings.
        student: is trained; begins as the teacher.
        teacher: frozen.
        modules: `student` and `adversary`; the latter gives logits (B, L), above 0 where a sequence looks real.
        batches: real tokens (B, L) from a step's generator.
    """

    method: DiDiInstruct
    student: TokenDenoiser
    teacher: TokenDenoiser
    modules: Mapping[str, nn.Module]
    batches: Callable[[torch.Generator], Tensor]

    def turns(self, step: int, steps: int, generator: torch.Generator) -> Iterator[Turn]:
        """The student's update, then the discriminator's; the first of those sees the student's own samples."""
        real = self.batches(generator)
        made: list[TokenRollout] = []

        def student() -> Loss:
            made.append(self._roll(real, generator))
            return self.student_loss(made[0], generator)

        yield ("student",), student
        for k in range(self.method.ratio):
            if k:
                real = self.batches(generator)
                with torch.no_grad():
                    made[:] = [self._roll(real, generator)]
            yield ("adversary",), partial(self.discriminator_loss, made[0], real, generator)

    def _roll(self, real: Tensor, generator: torch.Generator) -> TokenRollout:
        tau = self.method.times(len(real), generator).to(real.device)
        if self.method.intermediate:
            return two_step_rollout(self.student, tau, real.shape[1], generator)
        return replace(two_step_rollout(self.student, torch.ones_like(tau), real.shape[1], generator), tau=tau)

    def noised(self, tokens: Tensor, tau: Tensor, generator: torch.Generator) -> Tensor:
        """Tokens z (B, L) at times tau (B,)."""
        uniform = torch.rand(tokens.shape, generator=generator).to(tokens.device)
        return self.student.process.add_noise(tokens, tau, uniform)

    def student_loss(self, made: TokenRollout, generator: torch.Generator) -> Loss:
        """-mean[w A log p] + teacher KL - entropy bonus; logged are reward, its clipped share, log p and entropy."""
        method, process = self.method, self.student.process
        with torch.no_grad():
            z = self.noised(made.tokens, made.tau, generator)
            logits = self.modules["adversary"](z)
            reward = log_ratio(logits, z == process.mask, method.clip)
            advantage = torch.cat([self._advantages(r) for r in reward.split(method.group)])
            weight = method.weight(process, made.tau).to(reward)
        policy = -(weight * advantage * made.log_prob).mean()
        divergence, entropy = self._regularisers(made)
        value = policy + method.teacher * divergence - method.entropy * entropy
        return value, {
            "policy": policy.detach(),
            "reward": reward.mean(),
            "clipped": (logits.abs() > method.clip).float().mean(),
            "divergence": divergence.detach(),
            "entropy": entropy.detach(),
        }

    def _advantages(self, rewards: Tensor) -> Tensor:
        """Of one group."""
        return group_advantages(rewards, 1e-8, self.method.most) if self.method.normalise else rewards - rewards.mean()

    def _regularisers(self, made: TokenRollout) -> tuple[Tensor, Tensor]:
        """Symmetric KL to the teacher and entropy of the student, per masked position, summed over both steps."""
        process = self.student.process
        blank = torch.full_like(made.state, process.mask)
        divergence, entropy = made.log_prob.new_zeros(()), made.log_prob.new_zeros(())
        for z, law, masked in zip((blank, made.state), made.laws, made.masked, strict=True):
            with torch.no_grad():
                known = self.teacher(z).clamp(min=-1e4)
            own, count = law.clamp(min=-1e4), masked.sum().clamp(min=1)
            both = 0.5 * ((own.exp() - known.exp()) * (own - known)).sum(2)
            divergence = divergence + (both * masked).sum() / count
            entropy = entropy - ((own.exp() * own).sum(2) * masked).sum() / count
        return divergence, entropy

    def discriminator_loss(self, made: TokenRollout, real: Tensor, generator: torch.Generator) -> Loss:
        """Binary cross-entropy with smoothed labels at masked positions, real and made sequences at the same times."""
        found, right = [], []
        for tokens, label in ((real, 1.0), (made.tokens, 0.0)):
            z = self.noised(tokens, made.tau, generator)
            masked = z == self.student.process.mask
            logits = self.modules["adversary"](z)
            smooth = label + self.method.smoothing * (1 - 2 * label)
            each = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, smooth), reduction="none")
            found.append((each * masked).sum() / masked.sum().clamp(min=1))
            right.append((((logits > 0) == bool(label)) * masked).sum() / masked.sum().clamp(min=1))
        value = (found[0] + found[1]) / 2
        return value, {"discriminator": value.detach(), "accuracy": (right[0] + right[1]) / 2}
