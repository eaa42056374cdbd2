"""DMD2 and latent consistency written as one would without fewstep: one flow, no parts, no options, one loop each.

What `distillation_cost.py` holds the engine against: the same networks, the same calls of them with equal batches, the
same losses, optimizers, clipping and averages; nothing that watches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Network = Callable[..., Tensor]
"""(state (B, ...), network time (B,), **condition) -> velocity (B, ...)."""
CLOCK = 1000.0
"""Network time per unit of the flow's time."""


class Plain:
    """What both loops share: copies of the teacher, AdamW, clipping, an average of the student."""

    def __init__(
        self, module: nn.Module, wrap: Callable[[nn.Module], Network], draw: Callable[[], Any], rate: float = 1e-5
    ) -> None:
        self.teacher, self.wrap, self.draw = wrap(module), wrap, draw
        self.modules = {"student": copy.deepcopy(module).requires_grad_(True)}
        self.rate, self.optimizers = rate, {}
        self.student = wrap(self.modules["student"])
        self.average = [p.detach().clone() for p in self.modules["student"].parameters()]
        self._add("student")

    def _add(self, name: str, module: nn.Module | None = None) -> Network:
        if module is not None:
            self.modules[name] = copy.deepcopy(module).requires_grad_(True)
        parameters = self.modules[name].parameters()
        self.optimizers[name] = torch.optim.AdamW(parameters, lr=self.rate, betas=(0.9, 0.999), fused=True)
        return self.wrap(self.modules[name])

    def update(self, name: str, loss: Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.modules[name].parameters(), 10.0)
        self.optimizers[name].step()
        self.optimizers[name].zero_grad(set_to_none=True)

    @torch.no_grad()
    def follow(self, kept: list[Tensor], decay: float) -> None:
        torch._foreach_lerp_(kept, [p.detach() for p in self.modules["student"].parameters()], 1 - decay)


def over(t: Tensor, like: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * (like.ndim - 1)).to(like)


class DMD2(Plain):
    """arXiv 2405.14867 without its adversary: backward simulation, a random call per batch, `ratio` critic updates."""

    def __init__(self, *given: Any, steps: int = 4, ratio: int = 5, floor: float = 1e-5, **more: Any) -> None:
        super().__init__(*given, **more)
        self.critic = self._add("critic", self.modules["student"])
        self.times, self.ratio, self.floor = [1 - k / steps for k in range(steps)], ratio, floor

    def clean(self, network: Network, x: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return x - over(t, x) * network(x, CLOCK * t, **condition)

    def sample(self, shape: torch.Size, condition: dict[str, Tensor]) -> Tensor:
        call = int(torch.randint(len(self.times), (1,)))
        x = torch.randn(shape)
        for k in range(call + 1):
            t = torch.full((len(x),), self.times[k])
            if k == call:
                return self.clean(self.student, x, t, condition)
            with torch.no_grad():
                clean = self.clean(self.student, x, t, condition)
            x = (1 - self.times[k + 1]) * clean + self.times[k + 1] * torch.randn_like(x)
        raise AssertionError

    def step(self) -> None:
        data, condition = self.draw()
        made = self.sample(data.shape, condition)
        with torch.no_grad():
            t = 0.02 + 0.96 * torch.rand(len(made))
            noisy = (1 - over(t, made)) * made + over(t, made) * torch.randn_like(made)
            real = self.clean(self.teacher, noisy, t, condition)
            fake = self.clean(self.critic, noisy, t, condition)
            away = (made - real).abs().flatten(1).mean(1).clamp(min=self.floor)
            direction = (fake - real) / over(away, made)
        self.update("student", 0.5 * (made - (made - direction).detach()).square().mean())
        for k in range(self.ratio):
            if k:
                data, condition = self.draw()
                with torch.no_grad():
                    made = self.sample(data.shape, condition)
            made = made.detach()
            t, noise = 0.001 + 0.999 * torch.rand(len(made)), torch.randn_like(made)
            noisy = (1 - over(t, made)) * made + over(t, made) * noise
            self.update("critic", (self.critic(noisy, CLOCK * t, **condition) - (noise - made)).square().mean())
        self.follow(self.average, 0.999)


class LCM(Plain):
    """arXiv 2310.04378: a jump to the data against the slow student's after one Euler step of the teacher."""

    def __init__(self, *given: Any, parts: int = 50, **more: Any) -> None:
        super().__init__(*given, **more)
        slow = copy.deepcopy(self.modules["student"]).requires_grad_(False)
        self.slow, self.kept, self.parts = self.wrap(slow), list(slow.parameters()), parts

    def jump(self, network: Network, x: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        scaled = 10 * CLOCK * t
        square = scaled.square() + 0.25
        clean = x - over(t, x) * network(x, CLOCK * t, **condition)
        return over(0.25 / square, x) * x + over(scaled / square.sqrt(), x) * clean

    def step(self) -> None:
        data, condition = self.draw()
        t = torch.randint(1, self.parts + 1, (len(data),)) / self.parts
        s = t - 1 / self.parts
        x = (1 - over(t, data)) * data + over(t, data) * torch.randn_like(data)
        given = self.jump(self.student, x, t, condition)
        with torch.no_grad():
            before = x - over(t - s, x) * self.teacher(x, CLOCK * t, **condition)
            wanted = self.jump(self.slow, before, s, condition)
        loss = (((given - wanted).square() + 1e-6).sqrt() - 1e-3).mean()
        self.update("student", loss)
        self.follow(self.kept, 0.95)
        self.follow(self.average, 0.999)


LOOPS: dict[str, type[DMD2] | type[LCM]] = {"dmd2": DMD2, "lcm": LCM}
