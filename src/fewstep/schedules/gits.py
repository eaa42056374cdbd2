"""GITS: the best few nodes of a teacher's trajectory by dynamic programming (arXiv 2405.11326)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.errors import PlanError, nearest
from fewstep.schedules.trajectory import Trajectory

METRICS = ("l2", "l1", "dev")


def gits(
    trajectory: Trajectory, steps: Sequence[int], *, metric: str = "l2", coefficient: float = 1.15
) -> dict[int, list[int]]:
    """For each number of steps, the rows of the teacher at which to ask the network; no network is called.

    The cost of a jump is how far a first-order step from a teacher state misses the teacher's own state, in the space
    x / alpha; the cost of a path is the sum of its jumps, each multiplied by `coefficient` once per jump before it.

    Args:
        trajectory: a fine one; its rows are the candidates, its end is the end.
        metric: `l2`, `l1` (per sample, root mean square or mean absolute), or `dev`: by how much the jump leaves the
            chord between the two ends of the trajectory more, or less, than the teacher does.

    Raises:
        PlanError: an unknown metric, or more steps than the teacher has rows.
    """
    if metric not in METRICS:
        raise PlanError("unknown metric", value=metric, hint=nearest(metric, METRICS))
    nodes = trajectory.plan.steps
    for count in steps:
        if not 1 <= count <= nodes:
            hint = "Use a finer teacher, or fewer steps."
            raise PlanError(f"the teacher has {nodes} rows to choose from", value=count, hint=hint)
    paths = _best_paths(_costs(trajectory, metric).tolist(), max(steps), coefficient)
    return {count: paths[count] for count in steps}


def jump_errors(trajectory: Trajectory, span: int = 2) -> Tensor:
    """How far a first-order jump over `span` rows misses the teacher, per row it starts from, (K - span + 1,)."""
    return _costs(trajectory, "l2").diagonal(span)


def _costs(trajectory: Trajectory, metric: str) -> Tensor:
    """Mean cost of the jump from row i to node j, (K, K + 1); infinite unless i < j."""
    alpha, sigma = trajectory.levels()
    states = [*trajectory.states, trajectory.final]
    nodes = trajectory.plan.steps
    cost = torch.full((nodes, nodes + 1), math.inf, dtype=torch.float64)
    truth = torch.stack([states[j] / float(alpha[j]) for j in range(1, nodes + 1)]).flatten(2)
    bend = _away_from_chord(truth, truth[0], truth[-1]) if metric == "dev" else None
    rho = (sigma / alpha)[1:].to(truth.dtype)
    for i in range(nodes):
        jump = trajectory.data(i).flatten(1) + rho[i:].reshape(-1, 1, 1) * trajectory.noise(i).flatten(1)
        if bend is not None:
            miss = (_away_from_chord(jump, truth[0], truth[-1]) - bend[i:]).abs()
        else:
            away = jump - truth[i:]
            miss = away.square().mean(2).sqrt() if metric == "l2" else away.abs().mean(2)
        cost[i, i + 1 :] = miss.double().mean(1)
    return cost


def _away_from_chord(points: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Distance of each point (N, B, D) from the line through two states (B, D): (N, B)."""
    chord = torch.nn.functional.normalize(last - first, dim=1)
    offset = points - first
    along = (offset * chord).sum(-1, keepdim=True) * chord
    return (offset - along).norm(dim=-1)


def _best_paths(cost: list[list[float]], most: int, coefficient: float) -> dict[int, list[int]]:
    """Cheapest path of each length from row 0 to the end: value[k][i] = min_j cost[i][j] + coefficient value[k-1][j].

    A later jump is multiplied by the coefficient once per jump before it, as in the published recursion.
    """
    nodes = len(cost)
    value = [[math.inf] * (nodes + 1) for _ in range(most + 1)]
    best = [[-1] * (nodes + 1) for _ in range(most + 1)]
    value[0][nodes] = 0.0
    for k in range(1, most + 1):
        for i in range(nodes):
            for j in range(i + 1, nodes + 1):
                total = cost[i][j] + coefficient * value[k - 1][j]
                if total < value[k][i]:
                    value[k][i], best[k][i] = total, j
    paths = {}
    for k in range(1, most + 1):
        path, i = [], 0
        for left in range(k, 0, -1):
            path.append(i)
            i = best[left][i]
        paths[k] = path
    return paths
