import numpy as np
import pytest
import torch

from fewstep.errors import PlanError
from fewstep.prediction import Prediction
from fewstep.process import VPDiscrete
from fewstep.search import least_squares
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
    x, q, full = (torch.randn(4, 16, 8, generator=generator) for _ in range(3))
    s, m = least_squares(PLAN, x, q, full)
    for k, row in enumerate(PLAN.rows):
        a, b = row.state[k], row.output[k]
        left = np.stack([a * x[k].double().numpy().ravel(), b * q[k].double().numpy().ravel()], 1)
        right = a * x[k].double().numpy().ravel() + b * full[k].double().numpy().ravel()
        expected = np.linalg.solve(left.T @ left, left.T @ right)
        assert np.allclose([float(s[k]), float(m[k])], expected, atol=1e-9)


def test_a_perfect_network_gets_the_identity():
    x, full = torch.randn(4, 8, 6), torch.randn(4, 8, 6)
    s, m = least_squares(PLAN, x, full, full)
    assert torch.allclose(s, torch.ones(4).double(), atol=1e-6)
    assert torch.allclose(m, torch.ones(4).double(), atol=1e-6)


def test_shapes_are_checked():
    with pytest.raises(PlanError, match="4 rows"):
        least_squares(PLAN, torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, 2))
