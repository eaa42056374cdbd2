"""The random numbers of a scheduler as symbols, and rows whose noise is independent.

`Draws` answers the draws of one thread while `step()` runs; other threads, which may be sampling, keep drawing numbers.
`with_fresh_noise` rewrites rows that use a draw again (SA-Solver's corrector, Brownian bridges): what was drawn before
is already in the states, so it is expressed by them, and what is left is independent noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.pipelines.probing.unreadable import UnreadableError

NORMAL = frozenset(getattr(torch.ops.aten, name) for name in ("randn", "randn_like", "normal_"))
"""The operators that draw standard normal numbers (`torch.randn`, `torch.randn_like`, `Tensor.normal_`)."""
CONDITION = 1e4
"""Rows that amplify a state more than this to cancel their old noise would amplify its rounding as well."""


class Draws(TorchDispatchMode):
    """Answers every draw of normal numbers in this thread with the next unit vector instead.

    size: elements of the tensors that the scheduler works on.
    first: element that stands for the first draw.
    room: draws that have an element; further ones are only counted, and answered with zeros.

    Raises (while active):
        UnreadableError: the numbers are not standard normal, of another size, or of a generator of the scheduler's own.
    """

    def __init__(self, size: int, first: int, room: int) -> None:
        super().__init__()
        self.size, self.first, self.room = size, first, room
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        own = kwargs.pop("generator", None)
        if func.overloadpacket not in NORMAL or (func.overloadpacket == torch.ops.aten.normal_ and len(args) > 1):
            raise UnreadableError(f"it draws random numbers that are not standard normal ({func.overloadpacket})")
        if own is not None:
            raise UnreadableError("it draws its noise from a generator of its own")
        kwargs.pop("pin_memory", None)
        drawn = torch.zeros(args[0], **kwargs) if isinstance(args[0], list) else args[0]
        drawn = torch.zeros_like(drawn, **kwargs) if func.overloadpacket == torch.ops.aten.randn_like else drawn.zero_()
        return self._symbol(drawn)

    def _symbol(self, drawn: Tensor) -> Tensor:
        if drawn.numel() != self.size:
            raise UnreadableError(f"it draws noise of the shape {tuple(drawn.shape)}, not one number per element")
        if self.count < self.room:
            drawn.view(-1)[self.first + self.count] = 1.0
        self.count += 1
        return drawn


@dataclass(frozen=True, eq=False)
class StepCoefficients:
    """What one step adds up: coefficients of the states (K,), of the outputs (K,) and of all draws (D,), float64."""

    state: Tensor
    output: Tensor
    draws: Tensor


def with_fresh_noise(updates: list[StepCoefficients]) -> list[StepCoefficients]:
    """The same updates, such that the draws of each are orthogonal to, and so independent of, all earlier ones.

    With x_{j+1} = (states and outputs) + w_j, the part of a later update along w_j is replaced by the states and
    outputs that w_j is the difference of (Gram-Schmidt). The law of the path stays the same.

    Raises:
        UnreadableError: a row would have to amplify a state beyond `CONDITION` for that.
    """
    fresh: list[StepCoefficients] = []
    used = torch.zeros_like(updates[0].draws, dtype=torch.bool)
    for k, update in enumerate(updates):
        state, output, draws = update.state.clone(), update.output.clone(), update.draws.clone()
        if bool(draws[used].any()):  # noise that an earlier row added
            earlier = torch.stack([one.draws for one in fresh])
            sizes = (earlier**2).sum(1)
            parts = torch.where(sizes > 0, earlier @ draws / sizes, 0.0)
            if float(parts.abs().max()) > CONDITION:
                raise UnreadableError(f"row {k} uses noise again that the states hardly show")
            for j in parts.nonzero().flatten().tolist():
                state[j + 1] += parts[j]
                state -= parts[j] * fresh[j].state
                output -= parts[j] * fresh[j].output
                draws -= parts[j] * fresh[j].draws
        fresh.append(StepCoefficients(state, output, draws))
        used |= draws != 0
    return fresh
