import math

import pytest
import torch

from fewstep.denoiser import Denoiser
from fewstep.diagnostics import (
    flow_dimension,
    likelihood_dimension,
    local_spectrum,
    plateau,
    spectrum_dimension,
    trace_dimension,
)
from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import VE, Cosine, RectifiedFlow
from fewstep.testing.mixture import Mixture

LEVELS = [20.0, 8.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01]


def plane():
    """Variances 1 and 1/2 in two directions of R^5, none in the others, in a rotated basis."""
    basis = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    return Mixture.gaussian(torch.zeros(5), basis @ torch.diag(torch.tensor([1, 0.5, 0, 0, 0]).double()) @ basis.T)


def perfect(mixture, process, kind="epsilon"):
    return Denoiser(mixture.network(process, Prediction(kind)), process, Prediction(kind))


@pytest.mark.parametrize(
    ("process", "kind"), [(VE(80.0), "epsilon"), (RectifiedFlow(), "velocity"), (Cosine(), "sample")]
)
def test_trace_of_a_plane_is_the_sum_of_its_shrunk_variances(process, kind):
    data = plane().sample(200)
    for rho in (1.0, 0.1, 0.01):
        found = trace_dimension(
            perfect(plane(), process, kind), data, process.time(-math.log(rho)), probes=10,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        assert float(found.mean()) == pytest.approx(1 / (1 + rho**2) + 0.5 / (0.5 + rho**2), abs=0.1)


@pytest.mark.parametrize(("process", "kind"), [(VE(80.0), "epsilon"), (RectifiedFlow(), "velocity")])
def test_singular_values_of_the_flow_split_into_tangent_and_normal(process, kind):
    first = process.time(-math.log(LEVELS[0]))
    x = process.alpha(first) * plane().sample(4) + process.sigma(first) * torch.randn(4, 5, dtype=torch.float64)
    found = flow_dimension(perfect(plane(), process, kind), x, LEVELS, steps=2)
    expected = torch.tensor([0.0, 0, 1, 1, 1]).double().expand(4, -1)
    torch.testing.assert_close(found.slopes, expected, atol=0.01, rtol=0)
    assert found.dimension.tolist() == [2] * 4
    # the flow of a Gaussian stretches each axis by sqrt((s^2 + rho^2) / (s^2 + rho0^2))
    variances = torch.tensor([1, 0.5, 0, 0, 0]).double()
    stretch = ((variances + LEVELS[-1] ** 2) / (variances + LEVELS[0] ** 2)).sqrt().sort(descending=True).values
    torch.testing.assert_close(found.singular[-1], stretch.expand(4, -1), rtol=2e-3, atol=0)


def test_a_constant_gauge_does_not_hide_the_plane():
    process = VE(80.0)
    exact, turn = perfect(plane(), process), torch.eye(5, dtype=torch.float64)
    turn[0, 1], turn[1, 0], turn[2, 4], turn[4, 2] = 1, -1, 1, -1
    bent = Denoiser(lambda x, time: exact.network(x, time) @ turn.T, process, exact.prediction)
    x = 20 * torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert flow_dimension(bent, x, LEVELS, steps=2).dimension.tolist() == [2] * 2


def test_plateau_is_where_nothing_changes():
    rho = [0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 10.0, 100.0, 1000.0]
    assert plateau(rho, [7.0, 4.0, 2.2, 2.0, 2.05, 1.4, 0.3, 0.0, 0.0]) == 3
    with pytest.raises(FewstepError, match="dimension"):
        plateau(rho, [0.0] * 9)
    with pytest.raises(FewstepError, match="three"):
        plateau(rho[:2], [1.0, 1.0])


def test_levels_must_fall():
    with pytest.raises(FewstepError, match="fall"):
        flow_dimension(perfect(plane(), VE(80.0)), torch.zeros(1, 5).double(), [1.0, 2.0])


def test_distances_alone_find_the_dimension_of_flat_data():
    data = plane().sample(3000)
    assert float(likelihood_dimension(data[:200], data).mean()) == pytest.approx(2, abs=0.25)
    assert spectrum_dimension(local_spectrum(data[:200], data)).tolist() == [2] * 200
    with pytest.raises(FewstepError, match="k must"):
        likelihood_dimension(data, data, k=3000)
