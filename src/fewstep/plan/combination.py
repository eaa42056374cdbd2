"""Linear combinations of the states x_j and raw outputs n_j: the algebra in which solvers write their updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

Coefficient = float | Tensor
"""A number, or a tensor that broadcasts against one sample (per channel: shape (C, 1, 1))."""


def number(value: Coefficient) -> float:
    """A scalar coefficient as a plain float; a learned one loses its gradient."""
    return float(value.detach()) if isinstance(value, Tensor) else value


def is_exactly(value: Coefficient, number: float) -> bool:
    """Whether a coefficient is this number (a tensor never is: reading it would wait for the device)."""
    return not isinstance(value, Tensor) and value == number


@dataclass(frozen=True, eq=False)
class Combination:
    """sum_j state[j] x_j + sum_j output[j] n_j; supports +, -, and scaling by a coefficient."""

    state: Mapping[int, Coefficient] = field(default_factory=dict)
    output: Mapping[int, Coefficient] = field(default_factory=dict)

    def __add__(self, other: Combination) -> Combination:
        return Combination(_sum(self.state, other.state), _sum(self.output, other.output))

    def __sub__(self, other: Combination) -> Combination:
        return self + (-1.0) * other

    def __mul__(self, factor: Coefficient) -> Combination:
        return Combination(
            {j: factor * c for j, c in self.state.items()}, {j: factor * c for j, c in self.output.items()}
        )

    __rmul__ = __mul__

    def __truediv__(self, factor: Coefficient) -> Combination:
        return self * (1 / factor)


def state(j: int) -> Combination:
    """The state x_j."""
    return Combination(state={j: 1.0})


def output(j: int) -> Combination:
    """The raw network output n_j."""
    return Combination(output={j: 1.0})


def _sum(left: Mapping[int, Coefficient], right: Mapping[int, Coefficient]) -> dict[int, Coefficient]:
    total = dict(left)
    for j, c in right.items():
        total[j] = total[j] + c if j in total else c
    return total
