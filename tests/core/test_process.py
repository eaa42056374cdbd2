import dataclasses
import math

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import (
    TIME_CONDITIONINGS,
    VE,
    Cosine,
    General,
    RectifiedFlow,
    TimeConditioning,
    VPContinuous,
    VPDiscrete,
    betas,
)
from fewstep.solvers import ddim, grids

VP = [VPDiscrete.from_betas(), VPContinuous(), Cosine(), Cosine(offset=0.0)]
FLOW = [RectifiedFlow(), RectifiedFlow(shift=3.0), RectifiedFlow(shift=0.5)]
ALL = [*VP, *FLOW, VE()]
share = st.floats(0.001, 0.999)


@pytest.mark.parametrize("process", ALL, ids=repr)
@given(share=share)
def test_time_is_the_inverse_of_lam(process, share):
    t = share * process.noisiest
    # near t = 0 a unit of rounding in lam is a larger one in t: compare in lam, which is what solvers step in
    assert process.lam(process.time(process.lam(t))) == pytest.approx(process.lam(t), abs=1e-12, rel=1e-12)
    slope = abs(process.lam(t * 1.0001) - process.lam(t)) / (t * 0.0001)
    assert abs(process.time(process.lam(t)) - t) < 1e-12 * max(1.0, process.noisiest) + 1e-14 / slope


@pytest.mark.parametrize("process", ALL, ids=repr)
@given(share=share)
def test_network_time_is_inverted(process, share):
    t = share * process.noisiest
    assert process.from_network_time(process.network_time(t)) == pytest.approx(t, rel=1e-12)


CLOCKS = {
    "c_noise": lambda a, s: np.log(s / a) / 4,
    "sigma": lambda a, s: s / a,
    "log_sigma": lambda a, s: np.log(s / a),
    "log_snr": lambda a, s: np.log(a**2 / s**2),
    "angle": lambda a, s: 2 / np.pi * np.arctan2(s, a),
}


@pytest.mark.parametrize("name", TIME_CONDITIONINGS)
@pytest.mark.parametrize("process", ALL, ids=repr)
def test_networks_are_told_time_as_they_were_trained(process, name):
    named = dataclasses.replace(process, time_conditioning=name)
    for share in (0.05, 0.4, 0.9):
        t = share * process.noisiest
        assert named.network_time(t) == pytest.approx(CLOCKS[name](named.alpha(t), named.sigma(t)), rel=1e-9)
        assert named.from_network_time(named.network_time(t)) == pytest.approx(t, rel=1e-9)
        assert (named.alpha(t), named.sigma(t)) == (process.alpha(t), process.sigma(t))


def test_any_function_may_tell_the_time_and_plans_carry_it():
    """The labels of the first score networks: 0 at the noisiest of N levels in geometric order (arXiv 1907.05600)."""
    steps, low, high = 10, np.log(0.01), np.log(50.0)
    index = TimeConditioning(
        lambda lam: (high + lam) / (high - low) * (steps - 1), lambda label: label * (high - low) / (steps - 1) - high
    )
    levels = np.geomspace(50.0, 0.01, steps)
    plan = ddim(VE(50.0, time_conditioning=index), Prediction("score"), grids.given(levels.tolist()))
    assert [row.network_time for row in plan.rows] == pytest.approx(list(range(steps)), abs=1e-9)
    plan = ddim(VE(50.0, time_conditioning="sigma"), Prediction("score"), grids.given(levels.tolist()))
    assert [row.network_time for row in plan.rows] == pytest.approx(levels.tolist(), rel=1e-12)
    assert VE().network_time(80.0) == pytest.approx(np.log(80.0) / 4)  # EDM stays the default
    with pytest.raises(FewstepError, match="log_sigma"):
        VE(time_conditioning="log sigma").network_time(1.0)


@pytest.mark.parametrize("process", VP, ids=repr)
@given(share=st.floats(0, 1))
def test_variance_preserving(process, share):
    t = share * process.noisiest
    assert process.alpha(t) ** 2 + process.sigma(t) ** 2 == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("process", FLOW, ids=repr)
@given(share=st.floats(0, 1))
def test_flows_are_straight(process, share):
    assert process.alpha(share) + process.sigma(share) == pytest.approx(1, abs=1e-14)


@given(shift=st.floats(0.1, 10), t=st.floats(0.01, 0.99))
def test_shift_divides_the_signal_to_noise_ratio(shift, t):
    """arXiv 2403.03206, section 5.3.2: shifting multiplies sigma / alpha by the shift."""
    assert RectifiedFlow(shift).lam(t) == pytest.approx(RectifiedFlow().lam(t) - np.log(shift), abs=1e-10)


@pytest.mark.parametrize("process", ALL, ids=repr)
def test_floats_and_tensors_of_any_shape_agree(process):
    t = torch.linspace(0.1, 0.9, 6).double().reshape(2, 3) * process.noisiest
    for name in ("alpha", "sigma", "lam", "network_time"):
        values = getattr(process, name)(t)
        assert values.shape == t.shape
        assert values.dtype == torch.float64
        assert float(values[1, 2]) == getattr(process, name)(float(t[1, 2]))


@pytest.mark.parametrize("process", ALL, ids=repr)
def test_gradients_with_respect_to_time(process):
    t = (torch.tensor([0.31, 0.72]).double() * process.noisiest).requires_grad_()
    names = ("alpha", "sigma", "lam")
    assert torch.autograd.gradcheck(lambda t: tuple(getattr(process, n)(t) for n in names), (t,), eps=1e-6, atol=1e-5)
    lam = process.lam(t).detach().requires_grad_()
    assert torch.autograd.gradcheck(process.time, (lam,), eps=1e-6, atol=1e-5)


def test_the_noisiest_time_of_a_table_has_a_gradient():
    """One-sided, as between the last two entries of the table."""
    process = VPDiscrete.from_betas()
    at = torch.tensor([process.noisiest, process.noisiest - 1e-6], dtype=torch.float64, requires_grad=True)
    process.lam(at).sum().backward()
    assert float(at.grad[0]) == pytest.approx(float(at.grad[1]), rel=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_betas_and_alphas_are_those_of_diffusers(schedule):
    ends = {} if schedule == "squaredcos_cap_v2" else {"beta_start": 0.00085, "beta_end": 0.012}
    theirs = diffusers.DDPMScheduler(beta_schedule=schedule, **ends)
    torch.testing.assert_close(betas(schedule, **ends), theirs.betas.double(), rtol=1e-5, atol=1e-7)
    # their cumulative product is rounded in float32 a thousand times; ours is not
    ours = torch.tensor(VPDiscrete.from_betas(schedule, **ends).alphas_cumprod)
    torch.testing.assert_close(ours, theirs.alphas_cumprod, rtol=1e-3, atol=1e-8)
    exact = VPDiscrete.from_scheduler(theirs)
    t = torch.arange(1000).double()
    torch.testing.assert_close(exact.alpha(t) ** 2, theirs.alphas_cumprod.double(), rtol=1e-13, atol=1e-300)


def test_beta_schedules_in_float64_against_numpy():
    want = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    process = VPDiscrete.from_betas("scaled_linear", beta_start=0.00085, beta_end=0.012)
    np.testing.assert_allclose(process.alphas_cumprod, want, rtol=1e-13)


def test_log_alpha_is_linear_between_steps():
    process = VPDiscrete.from_betas()
    middle = np.log(process.alpha(500.25))
    assert middle == pytest.approx(0.75 * np.log(process.alpha(500.0)) + 0.25 * np.log(process.alpha(501.0)), abs=1e-14)


def test_zero_terminal_signal():
    theirs = diffusers.DDIMScheduler(rescale_betas_zero_snr=True)
    process = VPDiscrete.from_scheduler(theirs)
    assert process.alpha(999.0) == 0
    assert process.sigma(999.0) == 1
    assert process.lam(999.0) == -np.inf
    assert process.time(process.lam(998.5)) == pytest.approx(998.5, abs=1e-9)
    assert process.alpha(998.5) == pytest.approx(process.alpha(998.0) / 2, rel=1e-12)


def test_edm_conventions():
    """arXiv 2206.00364, table 1: c_noise = log(sigma) / 4."""
    assert VE().alpha(3.0) == 1
    assert VE().sigma(3.0) == 3
    assert VE().network_time(3.0) == pytest.approx(np.log(3) / 4)


@given(share=share)
def test_general_finds_the_inverse_of_a_known_process(share):
    flow = RectifiedFlow()
    process = General(lambda t: 1 - t, lambda t: t)
    assert process.time(process.lam(share)) == pytest.approx(share, abs=1e-14)
    assert process.lam(share) == pytest.approx(flow.lam(share), abs=1e-12)


def test_add_noise_is_that_of_diffusers():
    theirs = diffusers.DDPMScheduler()
    clean, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    times = torch.tensor([0, 500, 999])
    ours = VPDiscrete.from_scheduler(theirs).add_noise(clean, noise, times)
    torch.testing.assert_close(ours, theirs.add_noise(clean, noise, times), rtol=1e-5, atol=1e-6)


def test_user_mistakes_are_named():
    with pytest.raises(FewstepError, match="scaled_linear"):
        betas("scaled_linar")
    with pytest.raises(FewstepError, match="fall strictly"):
        VPDiscrete((0.5, 0.5, 0.1))
    with pytest.raises(FewstepError, match="FlowMatchEulerDiscreteScheduler has no alphas_cumprod"):
        VPDiscrete.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler())


@pytest.mark.parametrize("process", ALL, ids=repr)
def test_the_angle_is_that_of_the_scales_and_has_an_inverse(process):
    t = torch.tensor([0.05, 0.4, 0.9]).double() * process.noisiest
    angle = process.angle(t)
    assert torch.allclose(angle.tan(), process.sigma(t) / process.alpha(t), rtol=1e-9)
    assert torch.allclose(process.time_of_angle(angle), t, rtol=1e-8)
    assert process.time_of_angle(0.0) == 0
    assert process.time_of_angle(math.pi / 2) == process.noisiest
