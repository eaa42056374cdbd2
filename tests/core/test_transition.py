"""The kernel of a sampler's step: a Gaussian whose draws and densities are known in closed form."""

import pytest
import torch
from torch.distributions import Independent, Normal

from fewstep.process import VE, RectifiedFlow, VPDiscrete
from fewstep.transition import Transition, ddim_step, transition

PROCESSES = [VPDiscrete.from_betas(), RectifiedFlow(3.0), VE()]


def states(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_density_is_that_of_independent_normals_of_each_samples_deviation():
    mean, x = states(0, 4, 2, 3), states(1, 4, 2, 3)
    std = torch.tensor([0.1, 0.7, 1.0, 5.0], dtype=torch.float64).reshape(4, 1, 1)
    wanted = Independent(Normal(mean, std.expand_as(mean)), 2).log_prob(x)
    found = Transition(mean, std).log_prob(x, "sum")
    assert found.shape == (4,)
    assert torch.allclose(found, wanted)


def test_a_draws_log_probability_is_that_of_its_noise():
    """log p(mean + std z) = log N(z) - n log std: what a policy gradient over the steps of a sampler multiplies."""
    noise, std = states(2, 5, 7), torch.full((5, 1), 0.3, dtype=torch.float64)
    law = Transition(states(3, 5, 7), std)
    wanted = Normal(0.0, 1.0).log_prob(noise).sum(1) - 7 * std[:, 0].log()
    assert torch.allclose(law.log_prob(law.draw(noise), "sum"), wanted)


def test_the_gradient_of_the_density_is_that_of_the_mean():
    """d log p / d mean = (x - mean) / std^2."""
    mean = states(4, 3, 2).requires_grad_()
    x, std = states(5, 3, 2), torch.tensor([[0.2], [1.0], [3.0]], dtype=torch.float64)
    (found,) = torch.autograd.grad(Transition(mean, std).log_prob(x, "sum").sum(), mean)
    assert torch.allclose(found, (x - mean.detach()) / std**2)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_step_from_exact_noise_keeps_the_marginal_of_the_process(process, share):
    """From x_t = alpha x0 + sigma e with x0 known, the next state has mean alpha_s x0 and variance sigma_s^2."""
    count, top = 3, process.noisiest
    t, s = (torch.full((count,), part * top, dtype=torch.float64) for part in (0.8, 0.3))
    clean, std = states(6, count, 2), share * process.sigma(s)
    (a, b), alpha = process.scales(t, clean), process.scales(s, clean)[0]
    still = transition(process, a * clean, clean, t, s, std)
    moved = transition(process, a * clean + b, clean, t, s, std)  # one unit of noise more
    assert torch.allclose(still.mean, alpha * clean)
    variance = (moved.mean - still.mean) ** 2 + moved.std**2
    assert torch.allclose(variance, (process.sigma(s) ** 2)[:, None].expand_as(variance))
    if share == 0:
        x = a * clean + b
        assert torch.allclose(transition(process, x, clean, t, s, std).draw(states(7, count, 2)),
                              ddim_step(process, x, clean, t, s))  # fmt: skip
