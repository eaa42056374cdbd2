"""Which layer gets how many bits: a multiple-choice knapsack solved by HiGHS (MixDQ, arXiv 2405.17873, section 4.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fewstep.errors import FewstepError

_SECONDS = 60.0  # HiGHS proves most tables of a thousand layers in under a second


@dataclass(frozen=True)
class LayerOption:
    """One way to store and run a layer.

    bytes: what its tensors take, scales and bias included.
    bops: bit operations of one network call: multiply-adds times weight bits times activation bits.
    damage: what this option alone costs in quality; lower is better, and damages of layers are taken to add up.
    """

    scheme: str
    bytes: int
    damage: float
    bops: int = 0


@dataclass(frozen=True)
class Allocation:
    """An option per layer. `proven` tells whether no other choice within the budgets has less damage."""

    choice: Mapping[str, LayerOption]
    proven: bool = True

    @property
    def bytes(self) -> int:
        """Bytes of all layers."""
        return sum(option.bytes for option in self.choice.values())

    @property
    def bops(self) -> int:
        """Bit operations of one network call."""
        return sum(option.bops for option in self.choice.values())

    @property
    def damage(self) -> float:
        """Sum of the damages."""
        return sum(option.damage for option in self.choice.values())

    @property
    def schemes(self) -> dict[str, str]:
        """Scheme of every layer."""
        return {name: option.scheme for name, option in self.choice.items()}


Options = Mapping[str, Sequence[LayerOption]]


def allocate(options: Options, bytes_budget: int, bops_budget: int | None = None) -> Allocation:
    """The choice of least total damage whose bytes and bit operations stay within the budgets, to the byte.

    Raises:
        FewstepError: a layer without options, or a budget below the smallest possible.
    """
    names = list(options)
    for name in names:
        if not options[name]:
            raise FewstepError("a layer has no option to choose from", value=name)
    if not names:
        return Allocation({})
    check_budget("bytes", bytes_budget, sum(min(o.bytes for o in options[n]) for n in names))
    if bops_budget is not None:
        check_budget("bit operations", bops_budget, sum(min(o.bops for o in options[n]) for n in names))
    flat = [option for name in names for option in options[name]]
    owner = np.repeat(np.arange(len(names)), [len(options[name]) for name in names])
    limits: list[tuple[np.ndarray, float]] = [(np.array([o.bytes for o in flat], float), bytes_budget)]
    if bops_budget is not None:
        limits.append((np.array([o.bops for o in flat], float), bops_budget))
    return _solved(names, flat, owner, limits, (bytes_budget, bops_budget))


def check_budget(what: str, budget: float, smallest: float) -> None:
    """Raise a FewstepError that names the smallest possible budget if this one lies below."""
    if budget < smallest:
        least = f"{smallest:,.0f}" if smallest >= 100 else f"{smallest:g}"
        hint = f"The smallest possible is {least}: allow more, or candidates with fewer bits."
        raise FewstepError(f"the budget of {what} is too small", value=budget, hint=hint)


def _solved(
    names: list[str],
    flat: list[LayerOption],
    owner: np.ndarray,
    limits: list[tuple[np.ndarray, float]],
    budgets: tuple[int, int | None],
) -> Allocation:
    """Solve, check in exact integers, and tighten by what the solver's tolerance let through, if it did."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix

    damage = np.array([option.damage for option in flat])
    if not np.isfinite(damage).all():
        broken = flat[int(np.argmin(np.isfinite(damage)))]
        raise FewstepError("a damage is not finite", value=broken, hint="Measure the sensitivity again.")
    cost = damage / max(float(np.abs(damage).max()), 1e-300) * 1e4  # the solver stops at gaps of 1e-6
    pick = csr_matrix((np.ones(len(flat)), (owner, np.arange(len(flat)))))
    slack = [0.0] * len(limits)
    while True:
        rows = [LinearConstraint(pick, 1, 1)]
        for (weight, budget), less in zip(limits, slack, strict=True):
            unit = max(float(weight.max()), 1.0)
            rows.append(LinearConstraint(weight[None] / unit, ub=(budget - less) / unit))
        options = {"mip_rel_gap": 0.0, "time_limit": _SECONDS}
        found = milp(cost, constraints=rows, integrality=np.ones(len(flat)), bounds=Bounds(0, 1), options=options)
        if found.x is None:
            hint = "Both budgets cannot hold together: allow more bytes or more bit operations."
            raise FewstepError("no choice of bits meets the budgets", value=budgets, hint=hint)
        chosen = [flat[int(i)] for i in _picked(found.x, owner, len(names))]
        result = Allocation(dict(zip(names, chosen, strict=True)), proven=found.status == 0)
        over = [result.bytes - budgets[0], 0 if budgets[1] is None else result.bops - budgets[1]][: len(limits)]
        if max(over) <= 0:
            return result
        slack = [less + max(excess, 0) for less, excess in zip(slack, over, strict=True)]


def _picked(x: np.ndarray, owner: np.ndarray, count: int) -> list[int]:
    return [int(np.flatnonzero(owner == k)[np.argmax(x[owner == k])]) for k in range(count)]


def sweep(
    options: Options,
    groups: Mapping[str, str],
    weights: Mapping[str, int],
    bytes_budget: int,
    ratios: Sequence[float],
    bops_budget: int | None = None,
) -> list[tuple[float, Allocation]]:
    """Allocations with a budget for each of two groups of layers, one for each ratio of their average bits.

    Damages are compared inside a group only, since the groups have different metrics: the ratio k = B_content /
    B_quality is the exchange rate, to be decided on images. With r = W_content / W_quality weights, content gets
    k r / (k r + 1) of the bytes (repository of arXiv 2405.17873). Quality gets all that content leaves, so that no
    byte of the budget is lost; so it is with bit operations, shared by multiply-adds. Equal allocations are given
    once; ratios that leave a group less than its smallest are left out.

    Args:
        options: of every layer.
        groups: `content` or `quality` for every layer. With one of them empty the ratios play no role.
        weights: number of weights of every layer.

    Raises:
        FewstepError: no ratio leaves both groups enough.
    """
    content = {n: o for n, o in options.items() if groups[n] == "content"}
    quality = {n: o for n, o in options.items() if groups[n] != "content"}
    if not content or not quality:
        return [(1.0, allocate(options, bytes_budget, bops_budget))]
    r = sum(weights[n] for n in content) / max(sum(weights[n] for n in quality), 1)
    found: dict[tuple[str, ...], tuple[float, Allocation]] = {}
    for k in ratios:
        pair = _pair(content, quality, k * r / (k * r + 1), bytes_budget, bops_budget)
        if pair is not None:
            merged = {name: pair[0].choice.get(name) or pair[1].choice[name] for name in options}
            both = Allocation(merged, pair[0].proven and pair[1].proven)
            found.setdefault(tuple(both.schemes.values()), (k, both))
    if not found:
        # the budget may be feasible although no ratio is: then the joint solution is the only one to offer
        return [(1.0, allocate(options, bytes_budget, bops_budget))]
    return list(found.values())


def _pair(
    content: Options, quality: Options, share: float, bytes_budget: int, bops_budget: int | None
) -> tuple[Allocation, Allocation] | None:
    most = [sum(max(o.bops for o in options) for options in group.values()) for group in (content, quality)]
    compute = None if bops_budget is None else int(bops_budget * most[0] / max(sum(most), 1))
    try:
        first = allocate(content, int(bytes_budget * share), compute)
        left = None if bops_budget is None else bops_budget - first.bops
        return first, allocate(quality, bytes_budget - first.bytes, left)
    except FewstepError:
        return None
