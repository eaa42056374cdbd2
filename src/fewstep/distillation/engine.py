"""One step of any method: whose turn it is, on which samples; the trainer owns optimizers, devices and checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoiser import Denoiser
from fewstep.distillation.core import Batch, Loss, Networks, SampleReward, Samples, Term
from fewstep.distillation.method import Method
from fewstep.distillation.roles import UpdateRule
from fewstep.distillation.step_condition import StepConditioned
from fewstep.distillation.times import within
from fewstep.errors import FewstepError

Turn = tuple[tuple[str, ...], Callable[[], Loss]]
"""Whose optimizers step next, and the loss that they step on; call it once, before asking for the next turn."""

Wrap = Callable[[nn.Module], Callable[..., Tensor]]
"""From a module to the network that `Model` calls, such as `fewstep.denoiser.Backbone`."""


@dataclass(eq=False)
class Engine:
    """A method with its networks and its stream of batches.

    Attributes:
        method: what is trained on what.
        networks: those that the terms ask.
        modules: what is trained: `student`, and as the method has them `critic` and `adversary`.
        slow: `target` where the method keeps a slow student; moved, not trained.
        batches: a batch from the step's generator.

    Raises:
        FewstepError: networks of different processes, or a student run at times outside of them.
    """

    method: Method
    networks: Networks
    modules: Mapping[str, nn.Module]
    slow: Mapping[str, nn.Module]
    batches: Callable[[torch.Generator], Batch]

    def __post_init__(self) -> None:
        _check_processes(self.networks)
        within(self.networks.student.process, self.method.steps.times)
        self.renew()

    def renew(self) -> None:
        """Look up the parameters again; a trainer that replaces them calls this."""
        self._free = {name: [p for p in m.parameters() if p.requires_grad] for name, m in self.modules.items()}

    def tracking(self, name: str) -> UpdateRule:
        """How this network is trained beside the student."""
        part = {"critic": self.method.critic, "adversary": self.method.adversary}.get(name)
        return UpdateRule() if part is None else part.tracking

    def turns(self, step: int, steps: int, generator: torch.Generator) -> Iterator[Turn]:
        """The updates of one step in order: the student once, then those who follow it, each as often as it wants.

        The first update of the critic and of the adversary reuses the student's samples, so that a step with ratio n
        costs one roll-out with gradient and n - 1 without.
        """
        samples: list[Samples | None] = [None]
        batch = self._draw(step, steps, generator)

        def student() -> Loss:
            self._alone("student")
            if self.method.rollout is not None:
                samples[0] = self.method.rollout(self.networks, batch, generator)
            value, numbers = total(self.method.terms, self.networks, batch, samples[0], generator)
            return value, numbers if samples[0] is None else {**numbers, "samples/spread": spread(samples[0].clean)}

        yield ("student",), student
        ratios = {name: self.tracking(name).ratio for name in self.modules if name != "student"}
        for k in range(max(ratios.values(), default=0)):
            if k:
                batch = self._draw(step, steps, generator)
            given = self._again(batch, None if k else samples[0], generator)
            for names, terms in self._followers(k, ratios):
                yield names, self._turn(names, terms, batch, given, generator)
        self._alone(*self.modules)  # as before the step

    def after(self, step: int) -> None:
        """What follows the updates of step `step` (from 1): the slow student moves, the critic is pulled."""
        student, target = self.modules["student"], self.method.target
        if "target" in self.slow and target is not None and target.moves(step):
            towards(self.slow["target"], student, target.share(step))
        critic = self.method.critic
        if critic is not None and critic.tracking.pull:
            followed = self.modules["critic"]
            own = followed.network if isinstance(followed, StepConditioned) else followed
            towards(own, student, critic.tracking.pull)

    def _draw(self, step: int, steps: int, generator: torch.Generator) -> Batch:
        try:
            batch = self.batches(generator)
        except (StopIteration, IndexError) as error:
            raise FewstepError(
                f"the data ended at step {step} of {steps}",
                hint="Batches are drawn from a generator, for ever: let the stream begin anew.",
            ) from error
        return replace(batch, step=step, steps=steps)

    def _again(self, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Samples | None:
        """The student's samples without gradient: those of its own update, or fresh ones."""
        if self.method.rollout is None:
            return None
        if samples is None:
            with torch.no_grad():
                return self.method.rollout(self.networks, batch, generator)
        return replace(samples, clean=samples.clean.detach(), state=samples.state.detach())

    def _followers(self, k: int, ratios: Mapping[str, int]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Term]]]:
        critic, adversary = self.method.critic, self.method.adversary
        joint = adversary is not None and adversary.with_critic
        turn = {name: k < ratio for name, ratio in ratios.items()}
        if critic is not None and turn["critic"]:
            if joint and adversary is not None and turn["adversary"]:
                yield ("critic", "adversary"), {"critic": critic.term, "adversary": adversary.term}
                return
            yield ("critic",), {"critic": critic.term}
        if adversary is not None and turn["adversary"]:
            yield ("critic", "adversary") if joint else ("adversary",), {"adversary": adversary.term}

    def _turn(
        self,
        names: tuple[str, ...],
        terms: Mapping[str, Term],
        batch: Batch,
        samples: Samples | None,
        generator: torch.Generator,
    ) -> Callable[[], Loss]:
        def loss() -> Loss:
            self._alone(*names)
            value, numbers = total(terms, self.networks, batch, samples, generator)
            return value, {k: v for k, v in numbers.items() if k != "loss"}

        return loss

    def _alone(self, *names: str) -> None:
        """Gradients reach these networks only, whatever the terms back-propagate through."""
        for name, parameters in self._free.items():
            for parameter in parameters:
                parameter.requires_grad_(name in names)


def spread(samples: Tensor) -> Tensor:
    """Standard deviation over the batch, averaged over coordinates: falls when the student collapses."""
    return samples.detach().float().std(0, correction=0).mean()


def total(
    terms: Mapping[str, Term], networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator
) -> Loss:
    """Sum of the terms; numbers are named after them: `loss`, `NAME` and `NAME/NUMBER`."""
    value: Tensor | None = None
    numbers: dict[str, Tensor] = {}
    for name, term in terms.items():
        part, logged = term(networks, batch, samples, generator)
        numbers |= {name: part.detach(), **{f"{name}/{key}": number for key, number in logged.items()}}
        value = part if value is None else value + part
    if value is None:
        raise FewstepError("a network has no terms", hint="Give it one.")
    return value, {"loss": value.detach(), **numbers}


@torch.no_grad()
def towards(moved: nn.Module, goal: nn.Module, share: float) -> None:
    """Weights of `moved` go this share of the way to those of `goal`; buffers are copied.

    Raises:
        FewstepError: the networks differ.
    """
    own, other = (list(network.state_dict().values()) for network in (moved, goal))
    pairs = list(zip(own, other, strict=False))
    if len(own) != len(other) or any(a.shape != b.shape for a, b in pairs):
        raise FewstepError("only a network of the same architecture can follow another", hint="Use pull 0.")
    floats = [(a, b) for a, b in pairs if a.is_floating_point()]
    if share == 1.0:
        for a, b in floats:
            a.copy_(b)
    else:
        torch._foreach_lerp_([a for a, _ in floats], [b.to(a.dtype) for a, b in floats], share)
    for a, b in pairs:
        if not a.is_floating_point():
            a.copy_(b)


def assemble(
    method: Method,
    teacher: Denoiser,
    start: nn.Module,
    wrap: Wrap,
    batches: Callable[[torch.Generator], Batch],
    shape: tuple[int, ...],
    *,
    student: nn.Module | None = None,
    twin: Callable[[nn.Module, str], nn.Module] | None = None,
    reference: Denoiser | None = None,
    reward: SampleReward | None = None,
) -> Engine:
    """The engine of a method: student, critic and slow student begin as copies of `start`.

    Args:
        teacher: frozen; its process and prediction are those of the others.
        start: weights at the start, usually the teacher's own module. It is not changed.
        wrap: from a module to a network.
        batches: as in `Engine`.
        shape: of one sample.
        student: another module for the student (smaller, quantized, with a second time) and its slow twin.
        twin: makes the copy for a role of that name; a deep copy unless given (LoRA on a shared base gives adapters).
        reference: the student as it begins, where the method needs it; a frozen copy unless given (LoRA: the base).
        reward: of samples, where the method needs it.

    Raises:
        FewstepError: the method wants a student with two times and `student` is not given, or its batches lack a need.
    """
    if method.two_times and student is None:
        raise FewstepError("this method's student takes two times", hint="Give a student with `target_time`.")
    copied = twin or (lambda module, _: copy.deepcopy(module))

    def model(module: nn.Module, two: bool) -> Denoiser:
        return Denoiser(wrap(module), teacher.process, teacher.prediction, two)

    modules: dict[str, nn.Module] = {"student": copied(start, "student") if student is None else student}
    networks: dict[str, Any] = {"teacher": teacher, "student": model(modules["student"], method.two_times)}
    if "reference" in method.needs:
        frozen = reference or model(copy.deepcopy(modules["student"]).requires_grad_(False), method.two_times)
        networks["reference"] = frozen
    networks["reward"] = reward
    slow: dict[str, nn.Module] = {}
    if method.critic is not None:
        modules["critic"], calls = copied(start, "critic"), method.critic.calls
        if calls:
            modules["critic"] = StepConditioned(modules["critic"], calls)
        networks["critic"] = replace(model(modules["critic"], False), calls=calls)
    if method.target is not None and method.target.live:
        networks["target"] = networks["student"]
    elif method.target is not None:
        slow["target"] = copied(modules["student"], "target").requires_grad_(False)
        networks["target"] = model(slow["target"], method.two_times)
    for module in modules.values():
        module.train()
    if method.adversary is not None:
        modules["adversary"] = method.adversary.make(Networks(**networks), shape)
        networks["adversary"] = modules["adversary"]
    _check_needs(method, batches, reward)
    return Engine(method, Networks(**networks), modules, slow, batches)


def _check_processes(networks: Networks) -> None:
    """States at equal times go from one network to another: all must mean the same noise by a time."""
    own = repr(networks.student.process)
    for name in ("teacher", "critic", "target", "reference"):
        other = getattr(networks, name)
        if other is not None and repr(other.process) != own:
            raise FewstepError(
                f"the student's process is {own}, the {name}'s is another",
                value=repr(other.process),
                hint="Open both with the scheduler that the teacher was trained with; predictions may differ.",
            )


def _check_needs(method: Method, batches: Callable[[torch.Generator], Batch], reward: SampleReward | None) -> None:
    """One batch is looked at before anything is trained."""
    batch = batches(torch.Generator().manual_seed(0))
    absent = {"data": batch.clean is None, "store": batch.path is None, "pairs": batch.rejected is None}
    absent["reward"] = reward is None
    if batch.condition is not None:
        absent["guidance"] = batch.negative is None
    lacking = sorted(need for need in method.needs if absent.get(need, False))
    if lacking:
        raise FewstepError(
            f"this method needs {' and '.join(lacking)}, which it was not given",
            hint="data: give a data set; store: make one of the teacher's trajectories; guidance: conditions; pairs: "
            "votes; reward: a function of pictures.",
        )
