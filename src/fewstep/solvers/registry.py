"""The decorator by which a solver states what is known of it, and the tables of all solvers that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fewstep.plan import Plan
from fewstep.registry import Registry, View

Function = TypeVar("Function", bound=Callable[..., Plan])


@dataclass(frozen=True)
class SolverFacts:
    """What is known of a solver at its default options.

    Args:
        order: order of convergence. A solver of `history` p reaches it when the first p - 1 states are of that
            accuracy; with its own low-order start, order 2 at most.
        source: where it was published.
        calls: network evaluations per time of the grid; the last may need fewer.
        history: how many estimates an update reads.
        stochastic: whether its plans draw noise.
        discrete: whether it counts the steps of a discrete process, and runs on no other.
        needs: options that hold numbers which were learned, measured or searched for.
    """

    order: int
    source: str
    calls: int = 1
    history: int = 1
    stochastic: bool = False
    discrete: bool = False
    needs: tuple[str, ...] = ()


KNOWN: Registry[tuple[Callable[..., Plan], SolverFacts]] = Registry(
    "solver", "fewstep.solvers", decorator="fewstep.solvers.solver", source=lambda known: known[0]
)
"""Every solver and what is known of it, by name, those of other packages too."""

SOLVERS: View[Callable[..., Plan]] = View(KNOWN, lambda known: None if known[1].needs else known[0])
"""Every solver that needs nothing but (process, prediction, grid), by name; it is tested because it is here."""

PARAMETRIC: View[Callable[..., Plan]] = View(KNOWN, lambda known: known[0] if known[1].needs else None)
"""Every solver made of numbers that were learned, measured or searched for, by name."""

FACTS: View[SolverFacts] = View(KNOWN, lambda known: known[1])
"""What is known of each of both, by name."""


def solver(
    *,
    order: int,
    source: str,
    calls: int = 1,
    history: int = 1,
    stochastic: bool = False,
    discrete: bool = False,
    needs: tuple[str, ...] = (),
) -> Callable[[Function], Function]:
    """Decorator of a function (process, prediction, grid, **options) -> Plan: it joins the tables with these facts.

    Args are those of `SolverFacts`.

    Raises:
        ValueError: another solver has that name.
    """
    facts = SolverFacts(order, source, calls, history, stochastic, discrete, needs)

    def join(function: Function) -> Function:
        KNOWN.register(function.__name__)((function, facts))
        return function

    return join
