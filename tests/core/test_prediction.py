import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import FewstepError
from fewstep.prediction import KINDS, Prediction

LEVELS = [(0.8, 0.6), (0.3, 0.7), (1.0, 2.5), (0.05, 0.99)]
x0, eps = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)


def meaning(kind, alpha, sigma):
    """What each kind is defined as, written down independently of the library."""
    x = alpha * x0 + sigma * eps
    if kind == "edm":  # arXiv 2206.00364, eq. 7 and table 1, for the rescaled state x / alpha of noise sigma / alpha
        data, noise = 0.5, sigma / alpha
        skip = data**2 / (noise**2 + data**2)
        out = noise * data / (noise**2 + data**2) ** 0.5
        return (x0 - skip * x / alpha) / out
    return {
        "epsilon": eps,
        "sample": x0,
        "v_prediction": alpha * eps - sigma * x0,
        "velocity": eps - x0,
        "score": -eps / sigma,
    }[kind]


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
@pytest.mark.parametrize(("source", "target"), itertools.product(KINDS, KINDS))
def test_every_pair_converts_to_its_definition_and_back(source, target, alpha, sigma):
    x = alpha * x0 + sigma * eps
    raw = meaning(source, alpha, sigma)
    turned = Prediction(source).convert(raw, x, alpha, sigma, Prediction(target))
    torch.testing.assert_close(turned, meaning(target, alpha, sigma), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        Prediction(target).convert(turned, x, alpha, sigma, Prediction(source)), raw, rtol=1e-11, atol=1e-11
    )


@given(alpha=st.floats(0.05, 1), sigma=st.floats(0.05, 10), kind=st.sampled_from(KINDS))
def test_weights_say_what_the_output_is(alpha, sigma, kind):
    a, b = Prediction(kind).weights(alpha, sigma)
    torch.testing.assert_close(a * x0 + b * eps, meaning(kind, alpha, sigma), rtol=1e-9, atol=1e-9)


@given(sigma=st.floats(0.002, 80), data=st.floats(0.1, 2))
def test_edm_preconditioning_of_its_paper(sigma, data):
    """Table 1: c_skip, c_out and c_in for alpha = 1."""
    edm = Prediction("edm", sigma_data=data)
    skip, out = edm.sample(1.0, sigma)
    assert skip == pytest.approx(data**2 / (sigma**2 + data**2))
    assert out == pytest.approx(sigma * data / (sigma**2 + data**2) ** 0.5)
    assert edm.input_scale(1.0, sigma) == pytest.approx(1 / (sigma**2 + data**2) ** 0.5)


def test_tensors_broadcast_like_floats():
    alpha, sigma = torch.rand(2, 1, 1).double() + 0.1, torch.rand(2, 1, 1).double() + 0.1
    p, m = Prediction("v_prediction").sample(alpha, sigma)
    whole = p * x0 + m * eps
    for i in range(2):
        p, m = Prediction("v_prediction").sample(float(alpha[i]), float(sigma[i]))
        torch.testing.assert_close(whole[i], p * x0[i] + m * eps[i])


def test_no_information_is_an_error_and_not_infinity():
    with pytest.raises(FewstepError, match="epsilon network says nothing"):
        Prediction("epsilon").sample(0.0, 1.0)
    with pytest.raises(FewstepError, match="sample network says nothing"):
        Prediction("sample").noise(1.0, 0.0)
    assert Prediction("v_prediction").sample(0.0, 1.0) == (0.0, -1.0)
    assert Prediction("velocity").sample(0.0, 1.0) == (1.0, -1.0)


def test_an_unknown_kind_suggests_the_nearest():
    with pytest.raises(FewstepError, match="Did you mean 'epsilon'"):
        Prediction("epsilom")
