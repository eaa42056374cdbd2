import numpy as np
import pytest
import torch

from fewstep.errors import PlanError
from fewstep.prediction import Prediction
from fewstep.process import VPDiscrete
from fewstep.schedules.tuning import least_squares
from fewstep.solvers import ddim, grids

PROCESS = VPDiscrete.from_betas()
PLAN = ddim(PROCESS, Prediction("epsilon"), grids.trailing(PROCESS, 4))


def test_recovers_a_known_distortion_exactly():
    generator = torch.Generator().manual_seed(0)
    x, full = (torch.randn(4, 32, 3, 5, 5, generator=generator) for _ in range(2))
    # q = (F - c x) / g is undone by m = g and by adding m b c / a to s
    g, c = 0.8, 0.1
    quantized = (full - c * x) / g
    s, m = least_squares(PLAN, x, quantized, full)
    for k, row in enumerate(PLAN.rows):
        a, b = row.state[k], row.output[k]
        assert float(m[k]) == pytest.approx(g, abs=1e-5)
        assert float(s[k]) == pytest.approx(1 + b * c / a, abs=1e-5)


def test_equals_the_normal_equations():
    generator = torch.Generator().manual_seed(1)
    x, error, full = (torch.randn(4, 16, 8, generator=generator) for _ in range(3))
    q = 0.8 * full + 0.4 * error
    s, m = least_squares(PLAN, x, q, full)
    for k, row in enumerate(PLAN.rows):
        a, b = row.state[k], row.output[k]
        left = np.stack([a * x[k].double().numpy().ravel(), b * q[k].double().numpy().ravel()], 1)
        right = a * x[k].double().numpy().ravel() + b * full[k].double().numpy().ravel()
        expected = np.linalg.solve(left.T @ left, left.T @ right)
        assert np.allclose([float(s[k]), float(m[k])], expected, atol=1e-9)


def test_an_output_that_points_the_wrong_way_is_left_out_and_named():
    """Unconstrained, its scale is negative: the sampler would then walk on the network's errors."""
    generator = torch.Generator().manual_seed(2)
    x, full = (torch.randn(4, 64, 8, generator=generator) for _ in range(2))
    quantized = full.clone()
    quantized[2] = -0.5 * full[2] + 0.1 * torch.randn(64, 8, generator=generator)
    with pytest.warns(UserWarning, match="row 2"):
        s, m = least_squares(PLAN, x, quantized, full)
    assert float(m[2]) == 0
    a, b = PLAN.rows[2].state[2], PLAN.rows[2].output[2]
    state = a * x[2].double().flatten()
    best = float(state @ (state + b * full[2].double().flatten()) / (state @ state))
    assert float(s[2]) == pytest.approx(best, rel=1e-9)
    assert torch.allclose(m[[0, 1, 3]], torch.ones(3).double(), atol=1e-5)


def test_a_perfect_network_gets_the_identity():
    x, full = torch.randn(4, 8, 6), torch.randn(4, 8, 6)
    s, m = least_squares(PLAN, x, full, full)
    assert torch.allclose(s, torch.ones(4).double(), atol=1e-6)
    assert torch.allclose(m, torch.ones(4).double(), atol=1e-6)


def test_shapes_are_checked():
    with pytest.raises(PlanError, match="4 rows"):
        least_squares(PLAN, torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, 2))
