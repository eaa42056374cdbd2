"""Optimisation by conditional diffusion: the closed forms of a Gaussian with a linear score."""

import pytest
import torch
from sklearn.linear_model import Ridge

from fewstep.denoiser import Denoiser
from fewstep.errors import FewstepError
from fewstep.executor import sample
from fewstep.guidance import LinearSurrogate, corrected, pseudo_labels, regret, ridge, target
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.solvers import ddim, grids
from fewstep.testing.mixture import Mixture

MEAN = torch.tensor([0.5, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
SLOPE = torch.tensor([1.0, 2.0], dtype=torch.float64)
SCORE = LinearSurrogate(SLOPE, torch.tensor(0.7, dtype=torch.float64))
DATA = Mixture.gaussian(MEAN, COVARIANCE)


def directed(value, std, count=3000):
    process, prediction = RectifiedFlow(), Prediction("velocity")
    plain = Denoiser(DATA.network(process, prediction), process, prediction)
    plan = ddim(process, prediction, grids.uniform(process, 40))
    network = corrected(plain, target(SCORE, value, std)).network
    return sample(plan, network, seeds=range(count), shape=(2,), dtype=torch.float64)


@pytest.mark.parametrize("value", [2.0, 6.0])
def test_sampling_given_a_target_has_the_mean_of_the_closed_form(value):
    """E f = f(mu) + b2 (a - f(mu)) / (b2 + nu^2), and the covariance does not depend on a."""
    std = 0.6
    along = COVARIANCE @ SLOPE
    b2, middle = SLOPE @ along, SCORE(MEAN[None])[0]
    found = directed(value, std)
    mean = MEAN + along * (value - middle) / (b2 + std**2)
    torch.testing.assert_close(found.mean(0), mean, atol=0.05, rtol=0)
    reached = middle + b2 * (value - middle) / (b2 + std**2)
    assert float(SCORE(found).mean()) == pytest.approx(float(reached), abs=0.06)
    torch.testing.assert_close(found.T.cov(), COVARIANCE - torch.outer(along, along) / (b2 + std**2), atol=0.05, rtol=0)


def test_ridge_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 2, 3, generator=generator).double(), torch.randn(30, generator=generator).double()
    ours, theirs = ridge(x, y, 2.5), Ridge(2.5).fit(x.flatten(1).numpy(), y.numpy())
    torch.testing.assert_close(ours(x), torch.tensor(theirs.predict(x.flatten(1).numpy())))
    with pytest.raises(FewstepError, match="one score per sample"):
        ridge(x, y[:3])


def test_pseudo_labels_have_the_noise_that_was_asked_for():
    x = DATA.sample(20_000)
    noise = pseudo_labels(SCORE, x, 0.4, torch.Generator().manual_seed(1)) - SCORE(x)
    assert float(noise.std()) == pytest.approx(0.4, rel=0.02)
    assert abs(float(noise.mean())) < 0.01


def test_regret_is_the_sum_of_what_was_missed_and_of_the_surrogates_error():
    wrong = LinearSurrogate(SLOPE * torch.tensor([1.0, 0.5]), SCORE.offset)
    data, samples = DATA.sample(300), DATA.sample(200, seed=1) + 3
    found = regret(samples, 9.0, SCORE, wrong, data)
    assert found["regret"] == pytest.approx(found["missed"] + found["surrogate_gap"])
    assert found["regret"] == pytest.approx(9.0 - float(SCORE(samples).mean()))
    assert found["surrogate_gap"] == pytest.approx(-float(samples[:, 1].mean()))
    assert regret(DATA.sample(200, seed=1), 9.0, SCORE, wrong, data)["off_support"] < 1.6 < found["off_support"]
