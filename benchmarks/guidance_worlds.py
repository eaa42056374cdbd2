"""Two exact worlds for guidance: trajectories of a point mass, and the law of a sampler whose score is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.executor import sample
from fewstep.guidance import corrected, reward_gradient, steer, target
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow, VPContinuous
from fewstep.solvers import ddim, grids
from fewstep.testing.mixture import Mixture
from fewstep.transition import transition

FLOW, VELOCITY = RectifiedFlow(), Prediction("velocity")
HORIZON = 16
GOAL, NEAR = (4.0, 0.0), 0.1
OBSTACLE, RADIUS = (2.0, 0.0), 0.6


def point_mass(push: float = 0.15, speed: float = 0.3) -> Mixture:
    """Law of trajectories (2 HORIZON): p' = p + v, v' = v + a with a ~ N(0, push^2), from rest at 0; exactly Gaussian.

    The first velocity is N((0.25, 0), speed^2); places are x_1, y_1, x_2, y_2, ...
    """
    steps = torch.arange(1, HORIZON + 1, dtype=torch.float64)
    reach = (steps[:, None] - torch.arange(1, HORIZON, dtype=torch.float64)).clamp(min=0)  # of every push
    one = speed**2 * torch.outer(steps, steps) + push**2 * reach @ reach.T + 1e-4 * torch.eye(HORIZON)
    mean = torch.stack([0.25 * steps, 0 * steps], 1).flatten()
    return Mixture.gaussian(mean, torch.kron(one, torch.eye(2, dtype=torch.float64)))


def places(x: Tensor) -> Tensor:
    """Trajectories (B, 2 HORIZON) as (B, HORIZON, 2)."""
    return x.reshape(len(x), HORIZON, 2)


def penetration(x: Tensor) -> Tensor:
    """How deep trajectories enter the obstacle, summed over time (B,)."""
    away = (places(x) - torch.tensor(OBSTACLE).to(x)).square().sum(2).add(1e-12).sqrt()
    return (RADIUS - away).clamp(min=0).sum(1)


def missed(x: Tensor) -> Tensor:
    """Squared distance from the goal at the end (B,)."""
    return (places(x)[:, -1] - torch.tensor(GOAL).to(x)).square().sum(1)


def control(law: Mixture, count: int, steps: int, seed: int) -> dict[str, dict[str, float]]:
    """Ways to reach the goal around the obstacle; `unlikely`: squared Mahalanobis distance from the law, per number."""
    plain = Denoiser(law.network(FLOW, VELOCITY), FLOW, VELOCITY)
    avoid = reward_gradient(lambda x: -20 * penetration(x))
    goal = corrected(plain, target(lambda x: x[:, -2], GOAL[0], NEAR))
    goal = corrected(goal, target(lambda x: x[:, -1], GOAL[1], NEAR))
    both = lambda x: -missed(x) / (2 * NEAR**2) - 20 * penetration(x)  # noqa: E731
    quiet = ddim(FLOW, VELOCITY, grids.uniform(FLOW, steps))
    noisy = ddim(FLOW, VELOCITY, grids.uniform(FLOW, steps), eta=1.0)
    arms: dict[str, Callable[[], Tensor]] = {
        "untouched": lambda: drawn(quiet, plain, count, seed),
        "goal": lambda: drawn(quiet, goal, count, seed),
        "goal and obstacle": lambda: drawn(quiet, corrected(goal, avoid), count, seed),
        "goal and obstacle, without the Jacobian": lambda: drawn(
            quiet, corrected(plain, reward_gradient(lambda x: both(x) * NEAR, through=False)), count, seed
        ),
        "particles": lambda: steer(
            noisy, plain, both, seeds=range(seed, seed + count), shape=(2 * HORIZON,)
        ).samples.double(),
        "goal by gradient, obstacle by particles": lambda: steer(
            noisy, goal, lambda x: -20 * penetration(x), seeds=range(seed, seed + count), shape=(2 * HORIZON,)
        ).samples.double(),
    }
    inverse = torch.linalg.inv(law.covariances[0])
    found = {}
    for name, draw in arms.items():
        x = draw()
        away = x - law.means[0]
        found[name] = {
            "reached": float((missed(x) < 0.3**2).double().mean()),
            "hit": float((penetration(x) > 0).double().mean()),
            "both": float(((missed(x) < 0.3**2) & (penetration(x) == 0)).double().mean()),
            "unlikely": float(torch.einsum("bi,ij,bj->b", away, inverse, away).mean() / away.shape[1]),
        }
    return found


def drawn(plan: Plan, denoiser: Denoiser, count: int, seed: int) -> Tensor:
    return sample(
        plan, denoiser.network, seeds=range(seed, seed + count), shape=(2 * HORIZON,), dtype=torch.float64
    ).detach()


# --- the bound ------------------------------------------------------------------------------------------------------


def score_error_bound(
    law: Mixture, error: float, steps: int = 200, points: int = 1201, first: float = -4.0, last: float = 3.0
) -> dict[str, float]:
    """KL of the data (at the last noise level) from the law of ancestral samples, and its bound (arXiv 2404.07771).

        KL(q || p) <= KL(q_T || N(0, 1)) + integral of E_q |eps_hat - eps|^2 over half the log-SNR + discretisation

    The noise estimate is the exact one of a mixture on a line plus error * sin(2 x). The law of the samples is carried
    on a grid of points through the Gaussian kernel of every step, so that nothing is drawn.
    """
    process = VPContinuous()
    grid = torch.linspace(-5, 5, points, dtype=torch.float64)
    width, x = float(grid[1] - grid[0]), grid[:, None]
    times = process.time(torch.linspace(first, last, steps + 1, dtype=torch.float64))

    def density(k: int) -> Tensor:
        return law.log_density(x, process.alpha(times[k]), process.sigma(times[k])).exp()

    p = torch.exp(-0.5 * grid**2) / math.sqrt(2 * math.pi)
    prior = _kl(density(0), p, width)
    spent = torch.zeros((), dtype=torch.float64)
    for k in range(steps):
        alpha, sigma = process.alpha(times[k]), process.sigma(times[k])
        rho, less = sigma / alpha, process.sigma(times[k + 1]) / process.alpha(times[k + 1])
        wrong = error * torch.sin(2 * x)
        noise = law.estimates(x, alpha, sigma)[1] + wrong
        std = process.sigma(times[k + 1]) * (1 - (less / rho) ** 2).sqrt()
        step = transition(
            process, x, (x - sigma * noise) / alpha, times[k].expand(points), times[k + 1].expand(points),
            std.expand(points),
        )  # fmt: skip
        spent = spent + (density(k) * wrong[:, 0] ** 2).sum() * width * (rho / less).log()
        kernel = torch.exp(-0.5 * ((grid[None] - step.mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
        p = (p * width) @ kernel
    kl = _kl(density(steps), p, width)
    return {"kl": kl, "prior": prior, "score": float(spent), "bound": prior + float(spent)}


def _kl(q: Tensor, p: Tensor, width: float) -> float:
    some = q > 1e-14
    return float((q[some] * (q[some].log() - p[some].clamp(min=1e-300).log())).sum() * width)
