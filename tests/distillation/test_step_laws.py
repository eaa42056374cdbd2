"""The step kernel: one law that is drawn from and whose density is asked, for every kind of step and every process."""

import itertools
import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from fewstep.denoiser import Denoiser
from fewstep.distillation.chain import Chain, ancestral_steps, eta_steps, evenly, flow_sde_steps
from fewstep.distillation.core import Batch
from fewstep.errors import FewstepError
from fewstep.executor import Noise, sample, step_laws
from fewstep.prediction import Prediction
from fewstep.process import VE, RectifiedFlow, VPDiscrete
from fewstep.solvers import SOLVERS, grids
from fewstep.testing.mixture import Mixture
from fewstep.transition import Transition

CASES = [(VPDiscrete.from_betas(), "epsilon"), (RectifiedFlow(3.0), "velocity"), (VE(), "edm")]
LAWS = {"renoise": {}, "ctm": {"fresh": 0.4}, "eta .3": {"law": eta_steps(0.3)}, "eta 1": {"law": eta_steps(1.0)},
        "ancestral": {"law": ancestral_steps()}, "flow sde": {"law": flow_sde_steps(0.7)}}  # fmt: skip
PAIRS = [(p, kind, law) for (p, kind), law in itertools.product(CASES, LAWS) if law != "flow sde" or kind == "velocity"]
IDS = [f"{kind} {law}" for _, kind, law in PAIRS]
SHAPE = (2, 3)


def student_of(process, kind):
    def network(x, time):
        return torch.sin(1.3 * x + 0.01 * time.reshape(-1, 1, 1).to(x))

    return Denoiser(network, process, Prediction(kind))


def chain_of(process, law):
    times = tuple(float(t) for t in grids.uniform(process, 4).times) if process.alpha(process.noisiest) != 1 else None
    return Chain(times, **LAWS[law]) if times else Chain(evenly(process, 4).times, **LAWS[law])


def walked(process, kind, law):
    """A plan of a chain, the states and outputs of a run of it, and the chain."""
    student, chain = student_of(process, kind), chain_of(process, law)
    plan, seen, states, outputs = chain.plan(process, student.prediction), [], [], []

    def network(x, time):
        outputs.append(student.network(x, time.expand(len(x))))
        return outputs[-1]

    first = plan.prior_scale * torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    states.append(first)
    sample(plan, network, seeds=range(5), shape=SHAPE, state=first, dtype=torch.float64,
           callback=lambda progress: seen.append(progress.state.clone()))  # fmt: skip
    return student, chain, plan, states + seen, outputs


@pytest.mark.parametrize(("process", "kind", "law"), PAIRS, ids=IDS)
def test_rows_and_chain_have_one_law_with_the_density_of_torch(process, kind, law):
    """All rows but the last, which makes the clean prediction: same mean and deviation, and torch's density."""
    student, chain, plan, states, outputs = walked(process, kind, law)
    laws = step_laws(plan, states, outputs)
    assert sorted(laws) == [0, 1, 2]
    for k, found in laws.items():
        t = torch.full((5,), chain.times[k], dtype=torch.float64)
        wanted = chain.transition(process, k, states[k], student(states[k], t))
        assert torch.allclose(found.mean, wanted.mean, atol=1e-6, rtol=1e-6)
        assert float(found.std) == pytest.approx(float(wanted.std.flatten()[0]), rel=1e-9)
        normal = Independent(Normal(found.mean, found.std.expand_as(found.mean)), 2).log_prob(states[k + 1])
        assert torch.allclose(found.log_prob(states[k + 1], "sum"), normal)
        assert torch.allclose(found.log_prob(states[k + 1], "mean"), normal / math.prod(SHAPE))


@pytest.mark.parametrize("kind", ["euler_ancestral", "sde_dpm_solver_pp", "lcm"])
def test_rows_of_solvers_have_laws_wherever_they_draw(kind):
    """Also rows that read earlier outputs: the noise that was drawn is (next - mean) / std, of unit variance."""
    process = VPDiscrete.from_betas()
    plan = SOLVERS[kind](process, Prediction("epsilon"), grids.uniform(process, 6))
    network, outputs, states = (
        Mixture.gaussian([0.5] * 400, [0.3] * 400).network(process, Prediction("epsilon")),
        [],
        [],
    )

    def noted(x, time):
        outputs.append(network(x, time))
        return outputs[-1]

    end = sample(plan, noted, seeds=[0, 1], shape=(400,), dtype=torch.float64,
                 callback=lambda progress: states.append(progress.state.clone()))  # fmt: skip
    first = sample(plan, noted, seeds=[0, 1], shape=(400,), dtype=torch.float64, until=1)
    assert torch.equal(first, states[0])
    states.insert(0, Noise([0, 1]).draw((400,)).double() * plan.prior_scale)
    laws = step_laws(plan, states, outputs)
    assert laws
    assert max(laws) < plan.steps - 1
    for k, law in laws.items():
        drawn = (states[k + 1] - law.mean) / law.std
        assert float(drawn.mean()) == pytest.approx(0, abs=0.15)
        assert float(drawn.std()) == pytest.approx(1, abs=0.1)
    assert end.shape == (2, 400)


@pytest.mark.parametrize(("process", "kind"), CASES, ids=[kind for _, kind in CASES])
def test_eta_runs_from_ddim_to_noising_anew_and_keeps_the_marginal(process, kind):
    """With the noise of the state known, mean and deviation are those of x_s = alpha_s x0 + sigma_s e for every eta."""
    times = evenly(process, 3).times
    clean = torch.randn(4, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    t = torch.full((4,), times[1], dtype=torch.float64)
    (a, b), (a_next, b_next) = process.scales(t, clean), process.scales(t * 0 + times[2], clean)
    for eta in (1e-9, 0.4, 1.0):
        chain = Chain(times, law=eta_steps(eta))
        still = chain.transition(process, 1, a * clean, clean)
        moved = chain.transition(process, 1, a * clean + b, clean)
        assert torch.allclose(still.mean, a_next * clean)
        assert torch.allclose((moved.mean - still.mean) ** 2 + moved.std**2, (b_next**2).expand_as(clean))
        assert float(moved.std[0, 0]) == pytest.approx(float(b_next[0, 0]) * math.sin(eta * math.pi / 2), abs=1e-12)


def test_the_ancestral_step_is_that_of_k_diffusion():
    """In sigma units: up^2 = to^2 (from^2 - to^2) / from^2, mean x + (x - x0) / from (down - from)."""
    process, sigmas = VE(), (5.0, 2.0)
    x, clean = torch.tensor([[1.5]], dtype=torch.float64), torch.tensor([[-0.4]], dtype=torch.float64)
    times = tuple(process.time(-math.log(sigma)) for sigma in sigmas)
    law = Chain(times, law=ancestral_steps()).transition(process, 0, x, clean)
    up = math.sqrt(4 * (25 - 4) / 25)
    down = math.sqrt(4 - up**2)
    assert float(law.std) == pytest.approx(up)
    assert float(law.mean) == pytest.approx(1.5 + (1.5 + 0.4) / 5 * (down - 5))


def test_a_small_step_of_the_flow_sde_keeps_the_variance_of_the_marginal():
    """Of Gaussian data with its exact prediction: the error is of second order in the step, noise and all."""
    process, errors = RectifiedFlow(), []
    for du in (0.04, 0.02):
        u, v = 0.6, 0.25  # x_u ~ N(0, (1-u)^2 v + u^2)
        law = Chain((u, u - du), law=flow_sde_steps(0.7))
        var = (1 - u) ** 2 * v + u**2
        x = torch.tensor([[1.0]], dtype=torch.float64)
        step = law.transition(process, 0, x, (1 - u) * v / var * x)
        found = float(step.mean) ** 2 * var + float(step.std) ** 2
        errors.append(abs(found - ((1 - u + du) ** 2 * v + (u - du) ** 2)))
    assert errors[1] < 0.3 * errors[0]


def test_the_flow_sde_is_clamped_where_there_is_no_signal():
    """Flow-GRPO takes the level at u = 1 from the next noise scale: g = eta sqrt(1 / (1 - u'))."""
    law = Chain((1.0, 0.75), law=flow_sde_steps(0.7)).transition(
        RectifiedFlow(), 0, torch.ones(1, 1), torch.zeros(1, 1)
    )
    assert float(law.std) == pytest.approx(0.7 * math.sqrt(1 / 0.25) * math.sqrt(0.25))


def test_every_sample_has_noise_of_its_own():
    chain, student = Chain((1.0, 0.5)), Denoiser(lambda x, time: 0 * x, RectifiedFlow(), Prediction("sample"))
    generator = torch.Generator().manual_seed(0)
    states = [chain.roll_out(student, _batch(64), torch.zeros(64, 1), torch.full((64,), 1), generator).state]
    assert float(states[0].std()) == pytest.approx(0.5, rel=0.3)
    assert len(states[0].unique()) == 64


def _batch(size):
    return Batch(size, (1,))


def test_divergences_of_laws_are_those_of_normals():
    a, b = (torch.randn(3, 4, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (0, 1))
    std = torch.tensor([[0.3], [1.0], [2.0]], dtype=torch.float64)
    wanted = [
        torch.distributions.kl_divergence(MultivariateNormal(p, s**2 * eye), MultivariateNormal(q, s**2 * eye))
        for p, q, s, eye in ((a[i], b[i], std[i], torch.eye(4, dtype=torch.float64)) for i in range(3))
    ]
    assert torch.allclose(Transition(a, std).kl(Transition(b, std), "sum"), torch.stack(wanted))


def test_what_has_no_density_says_so():
    deterministic = Chain((1.0, 0.5), fresh=0.0)
    assert not deterministic.stochastic
    law = deterministic.transition(RectifiedFlow(), 0, torch.ones(1, 1), torch.ones(1, 1))
    with pytest.raises(FewstepError, match="no density"):
        law.log_prob(torch.ones(1, 1), "mean")
    with pytest.raises(FewstepError, match="eta must lie"):
        eta_steps(0.0)
    with pytest.raises(FewstepError, match="these steps are of flows"):
        Chain((999.0, 500.0), law=flow_sde_steps()).transition(CASES[0][0], 0, torch.ones(1, 1), torch.ones(1, 1))
    with pytest.raises(FewstepError, match="a law of its steps"):
        Chain((1.0, 0.5), 0.3, eta_steps(0.5))
