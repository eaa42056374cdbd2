"""The closed-form statements of arXiv 2402.03845 on fields whose gauge part is known."""

import pytest
import torch

from fewstep.denoiser import Denoiser
from fewstep.diagnostics import conservativity, flow, naive_error, weak_error
from fewstep.errors import FewstepError
from fewstep.metrics.distances import energy_distance
from fewstep.prediction import Prediction
from fewstep.process import VE, RectifiedFlow, VPDiscrete
from fewstep.testing.mixture import Mixture

THREE = Mixture(
    torch.tensor([0.4, 0.35, 0.25]),
    torch.tensor([[-2.0, 0.0], [1.5, 1.5], [1.0, -2.0]]),
    torch.tensor([[0.25, 0.09], [0.09, 0.36], [0.16, 0.16]]),
)
TURN = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
SIGMA = 0.5


def perfect(mixture=THREE, process=VE(20.0), prediction=Prediction("epsilon")):
    return Denoiser(mixture.network(process, prediction), process, prediction)


def gauge(strength, mixture=THREE):
    """(I + strength A) times the exact noise prediction: exact marginals, no gradient."""
    exact = perfect(mixture)
    turn = torch.eye(2, dtype=torch.float64) + strength * TURN
    return Denoiser(lambda x, time: exact.network(x, time) @ turn.T, exact.process, exact.prediction)


def rotation(strength):
    """The exact noise prediction plus a rotation of the state, which breaks the gauge condition."""
    exact = perfect()

    def network(x, time):
        sigma = exact.process.from_network_time(time)
        return exact.network(x, time) - sigma * strength * (x @ TURN.T) / (1 + sigma**2)

    return Denoiser(network, exact.process, exact.prediction)


def scaled(factor):
    exact = perfect()
    return Denoiser(lambda x, time: factor * exact.network(x, time), exact.process, exact.prediction)


@pytest.mark.parametrize("process", [VE(20.0), RectifiedFlow(), VPDiscrete.from_betas()])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_true_score_has_no_gap_in_any_process(process, kind):
    denoiser = perfect(process=process, prediction=Prediction(kind))
    found = conservativity(denoiser, THREE.sample(20), process.time(0.5), generator=torch.Generator().manual_seed(0))
    assert found.gap.high < 1e-12
    assert found.shuffled.low > 0.01
    assert 0 < found.noise_share.mean < 1


def test_the_gap_grows_with_the_gauge_as_its_closed_form():
    data, generator = THREE.sample(2000), torch.Generator().manual_seed(1)
    x = data + SIGMA * torch.randn(data.shape, generator=generator, dtype=torch.float64)
    exact = perfect()
    basis = 1e-5 * torch.eye(2, dtype=torch.float64)
    ends = [[exact.predict(x + way * e, SIGMA, "epsilon") for way in (1, -1)] for e in basis]
    columns = [(above - below) / 2e-5 for above, below in ends]
    hessian = torch.stack(columns, 2)
    gaps = []
    for strength in (0.0, 0.5, 1.0):
        jacobian = (torch.eye(2, dtype=torch.float64) + strength * TURN) @ hessian
        expected = float((jacobian - jacobian.mT).square().sum() / (2 * jacobian.square().sum()))
        found = conservativity(gauge(strength), data, SIGMA, generator=torch.Generator().manual_seed(2))
        assert found.gap.mean == pytest.approx(expected, abs=0.02)
        gaps.append(found.gap.mean)
    assert gaps[0] < 1e-9 < gaps[1] < gaps[2]


def test_an_antisymmetric_field_has_the_largest_gap():
    turning = Denoiser(lambda x, time: x @ TURN.T, VE(20.0), Prediction("epsilon"))
    found = conservativity(turning, THREE.sample(20), SIGMA, generator=torch.Generator().manual_seed(0))
    assert found.gap.mean == pytest.approx(2)
    assert found.noise_share.mean == pytest.approx(0)


def test_a_gauge_moves_samples_but_not_their_distribution():
    data, held_out = THREE.sample(1000, seed=1), THREE.sample(1000, seed=2)
    start = 20 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = {g: flow(gauge(g), start, (1.0, 20.0), (1.0, 0.02), 40) for g in (0.0, 1.0)}
    null = energy_distance(data, held_out)
    spread = energy_distance(THREE.sample(1000, seed=3), THREE.sample(1000, seed=4))
    assert float((ends[1.0] - ends[0.0]).norm(dim=1).mean()) > 1
    for samples in ends.values():
        assert energy_distance(samples, data) < 4 * max(null, spread, 1e-3)
    wrong = flow(rotation(0.5), start, (1.0, 20.0), (1.0, 0.02), 40)
    assert energy_distance(wrong, data) > 5 * max(energy_distance(s, data) for s in ends.values())


def test_weak_error_sees_what_changes_samples_and_nothing_else():
    data = THREE.sample(20000)
    fields = {"exact": perfect(), "gauge": gauge(1.0), "scaled": scaled(1.2), "rotation": rotation(0.5)}
    weak = {n: weak_error(f, data, SIGMA, generator=torch.Generator().manual_seed(3)) for n, f in fields.items()}
    naive = {
        n: naive_error(f, perfect(), data[:4000], SIGMA, torch.Generator().manual_seed(3)).mean
        for n, f in fields.items()
    }
    error = {name: found.error.mean for name, found in weak.items()}
    noise = 3 * weak["gauge"].floor
    assert abs(error["exact"]) < noise
    assert abs(error["gauge"]) < noise
    assert error["scaled"] > 3 * noise
    assert error["rotation"] > 5 * noise
    assert naive["exact"] == 0
    assert naive["gauge"] > 100 * noise  # the naive error calls a harmless field bad
    for name in ("scaled", "rotation"):
        assert error[name] <= naive[name]


def test_weak_error_of_a_linear_mistake_matches_its_integral():
    """One Gaussian, eps wrong by a constant vector c: the features' mean is E[u . c sin(w . x + b)], in closed form."""
    gaussian, offset = Mixture.gaussian([0.0, 0.0], [1.0, 1.0]), torch.tensor([0.3, -0.2], dtype=torch.float64)
    exact = perfect(gaussian)
    wrong = Denoiser(lambda x, time: exact.network(x, time) + offset, exact.process, exact.prediction)
    found = weak_error(wrong, gaussian.sample(10000), 1.0, features=1000, generator=torch.Generator().manual_seed(0))
    # x ~ N(0, 2 I): E sin(w.x + b) = exp(-|w|^2) sin b; the mean over b of its square is exp(-2 |w|^2) / 2
    octave = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    shrink = torch.exp(-2 * (2**octave / 2**0.5) ** 2).mean()
    expected = float(offset.square().sum() / 2 * shrink)
    assert found.error.mean == pytest.approx(expected, rel=0.2)


def test_too_little_data_is_refused():
    with pytest.raises(FewstepError, match="two samples"):
        conservativity(perfect(), THREE.sample(1), SIGMA)
    with pytest.raises(FewstepError, match="ten samples"):
        weak_error(perfect(), THREE.sample(4), SIGMA)
