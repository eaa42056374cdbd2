"""The exact worlds of benchmarks/guidance_worlds.py: the bound of the sample law, and control as conditioning."""

import pytest
import torch
from guidance_worlds import FLOW, GOAL, HORIZON, NEAR, VELOCITY, drawn, penetration, point_mass, score_error_bound

from fewstep.denoiser import Denoiser
from fewstep.guidance import corrected, target
from fewstep.solvers import ddim, grids
from fewstep.testing.mixture import Mixture


def test_the_sample_law_is_bounded_by_the_score_error():
    """KL(q || p) <= KL(q_T || prior) + integral |d eps|^2 d lambda; without error only the discretisation is left."""
    law = Mixture.line([0.3, 0.7], [-1.0, 1.0], [0.4, 0.3])
    found = {e: score_error_bound(law, e, steps=60, points=601, last=2.0) for e in (0.0, 0.1, 0.2)}
    left = found[0.0]["kl"]
    assert 0 <= left < 0.003
    for error in (0.1, 0.2):
        assert left < found[error]["kl"] <= found[error]["bound"] + left
    assert found[0.2]["score"] == pytest.approx(4 * found[0.1]["score"])
    assert found[0.2]["kl"] > 0.3 * found[0.2]["bound"]  # a bound that says something


def test_reaching_a_goal_is_the_conditional_law_of_trajectories():
    law = point_mass()
    goal = Denoiser(law.network(FLOW, VELOCITY), FLOW, VELOCITY)
    for axis in (0, 1):
        goal = corrected(goal, target(lambda x, axis=axis: x[:, axis - 2], GOAL[axis], NEAR))
    found = drawn(ddim(FLOW, VELOCITY, grids.uniform(FLOW, 30)), goal, 200, 0)
    ends, covariance = [2 * HORIZON - 2, 2 * HORIZON - 1], law.covariances[0]
    gain = covariance[:, ends] @ torch.linalg.inv(covariance[ends][:, ends] + NEAR**2 * torch.eye(2).double())
    mean = law.means[0] + gain @ (torch.tensor(GOAL).double() - law.means[0, ends])
    torch.testing.assert_close(found.mean(0), mean, atol=0.15, rtol=0)
    assert (found[:, ends] - torch.tensor(GOAL)).abs().mean() < 2 * NEAR


def test_penetration_counts_what_lies_within_the_obstacle():
    line = torch.stack([torch.linspace(0.25, 4, HORIZON), torch.zeros(HORIZON)], 1).reshape(1, -1)
    around = line.clone()
    around[:, 1::2] = 1.0
    assert float(penetration(around)) == 0
    assert float(penetration(line)) == pytest.approx(0.6 + 2 * 0.35 + 2 * 0.1, abs=1e-4)  # 0, 0.25, 0.5 from its middle
