import dataclasses
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.errors import FewstepError, NonFiniteError
from fewstep.executor import Noise, sample
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import VE, RectifiedFlow, VPContinuous, VPDiscrete
from fewstep.solvers import SOLVERS, Grid, ddim, dpm_solver_pp_2m, grids, lcm
from fewstep.testing.mixture import Mixture
from tests.core.toys import SHAPE, golden, levels, toy

EPSILON = Prediction("epsilon")
PROCESS = VPDiscrete.from_betas("scaled_linear", beta_start=0.00085, beta_end=0.012)


def plan_of(name="dpm_solver_pp_2m", process=PROCESS, prediction=EPSILON):
    return SOLVERS[name](process, prediction, grids.given([900.0, 620.0, 350.0, 120.0], end=0.0))


# --- random numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_a_sample_is_the_same_in_any_batch(name):
    network = golden().network(PROCESS, EPSILON)
    plan = plan_of(name)
    together = sample(plan, network, seeds=range(7), shape=(1,))
    for i in range(7):
        assert torch.equal(sample(plan, network, seeds=[i], shape=(1,)), together[i : i + 1])
    shuffled = sample(plan, network, seeds=[5, 0, 3], shape=(1,))
    assert torch.equal(shuffled, together[[5, 0, 3]])


def test_one_generator_per_sample():
    first = Noise([4, 9]).draw((2, 3))
    assert torch.equal(first[0], torch.randn(2, 3, generator=torch.Generator().manual_seed(4)))
    assert torch.equal(first[1], torch.randn(2, 3, generator=torch.Generator().manual_seed(9)))
    assert Noise([]).draw((2, 3)).shape == (0, 2, 3)


def test_two_samples_with_one_seed_are_equal():
    out = sample(plan_of("lcm"), toy, seeds=[3, 3, 4], shape=SHAPE)
    assert torch.equal(out[0], out[1])
    assert not torch.equal(out[0], out[2])


def test_the_prior_of_variance_exploding_plans():
    process = VE(80.0)
    plan = ddim(process, EPSILON, Grid(torch.tensor([80.0, 2.0]).double()))
    seen = []
    sample(plan, lambda x, t: seen.append(x) or x, seeds=[0], shape=(5,))
    assert torch.equal(seen[0], 80 * Noise([0]).draw((5,)))


# --- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [0, 2])
def test_nan_is_named_with_its_row(row):
    times = [r.network_time for r in plan_of().rows]

    def network(x, time):
        return x * float("nan") if float(time) == times[row] else toy(x, time)

    with pytest.raises(NonFiniteError, match=rf"'main' returned NaN or infinity in row {row} \(time {times[row]:g}\)"):
        sample(plan_of(), network, seeds=[0], shape=SHAPE)


def test_a_network_that_is_not_given_is_named():
    with pytest.raises(FewstepError, match=r"row 0 runs a network that was not given .*'main'"):
        sample(plan_of(), {"other": toy}, seeds=[0], shape=SHAPE)


def test_rows_choose_their_network():
    plan = plan_of("ddim")
    rows = [dataclasses.replace(r, network="late") if k > 1 else r for k, r in enumerate(plan.rows)]
    split = plan.replace(rows=tuple(rows))
    calls = []
    networks = {n: (lambda x, t, n=n: calls.append(n) or toy(x, t)) for n in ("main", "late")}
    out = sample(split, networks, seeds=[1], shape=SHAPE)
    assert calls == ["main", "main", "late", "late"]
    assert torch.equal(out, sample(plan, toy, seeds=[1], shape=SHAPE))


# --- callback, hooks, anchors -------------------------------------------------------------------------------------


def test_the_callback_sees_every_state():
    seen = []
    out = sample(plan_of(), toy, seeds=[1], shape=SHAPE, callback=lambda p: seen.append((p.done, p.steps, p.state)))
    assert [(done, steps) for done, steps, _ in seen] == [(k + 1, 4) for k in range(4)]
    assert torch.equal(seen[-1][2], out)


def test_clipping_the_data_estimate():
    """DDIM with clip_sample=True of diffusers, which also recomputes nothing else (use_clipped_model_output=False)."""
    limit = 0.4
    plan = plan_of("ddim")
    clipped = plan.replace(rows=tuple(dataclasses.replace(r, hook=f"clip_sample:{limit}") for r in plan.rows))
    x = Noise([2]).draw(SHAPE).double()
    expected = x
    for k, row in enumerate(plan.rows):
        raw = toy(expected, row.network_time)
        data = ((expected - row.sigma * raw) / row.alpha).clamp(-limit, limit)
        noise = (expected - row.alpha * data) / row.sigma
        ends = (plan.rows[k + 1].alpha, plan.rows[k + 1].sigma) if k < 3 else (plan.final_alpha, plan.final_sigma)
        expected = ends[0] * data + ends[1] * noise
    ours = sample(clipped, toy, seeds=[2], shape=SHAPE, dtype=torch.float64)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_an_unknown_hook_is_named():
    plan = plan_of("ddim")
    with pytest.raises(FewstepError, match="Did you mean 'clip_sample'"):
        plan.replace(rows=tuple(dataclasses.replace(r, hook="clip_sampel:1") for r in plan.rows))


def test_an_anchor_is_added_where_the_rows_say():
    plan = plan_of("ddim")
    rows = tuple(dataclasses.replace(r, anchor=0.25 if k == 3 else 0.0) for k, r in enumerate(plan.rows))
    anchor = torch.randn(1, *SHAPE)
    plain = sample(plan, toy, seeds=[0], shape=SHAPE)
    torch.testing.assert_close(
        sample(plan.replace(rows=rows), toy, seeds=[0], shape=SHAPE, anchor=anchor), plain + 0.25 * anchor
    )


# --- gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddim", "dpm_solver_pp_2m", "lcm"])
def test_gradients_of_scalars_and_times_equal_finite_differences(name):
    network = golden().network(PROCESS, EPSILON)
    start = torch.linspace(-1, 1, 3).double().reshape(3, 1)

    def loss(scales, outputs):
        plan = plan_of(name).scaled(scales.unbind(), outputs.unbind())
        return sample(plan, network, seeds=range(3), shape=(1,), state=start, dtype=torch.float64).square().sum()

    inputs = [torch.linspace(0.95, 1.05, 4).double().requires_grad_() for _ in range(2)]
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-6)


def test_gradients_with_respect_to_the_time_grid():
    process = VPContinuous()
    mixture = golden()
    start = torch.linspace(-1, 1, 3).double().reshape(3, 1)

    def network(x, time):
        return mixture.output(x, *levels(process, process.from_network_time(time)), EPSILON)

    def loss(times):
        plan = dpm_solver_pp_2m(process, EPSILON, Grid(times, 1e-2))
        return sample(plan, network, seeds=range(3), shape=(1,), state=start, dtype=torch.float64).square().sum()

    def frozen(times, at):
        """The same with the network asked at fixed times: coefficients alone carry the gradient."""
        plan = dpm_solver_pp_2m(process, EPSILON, Grid(times, 1e-2))
        fixed = iter(at)
        return (
            sample(
                plan, lambda x, _: network(x, next(fixed)), seeds=range(3), shape=(1,), state=start, dtype=torch.float64
            )
            .square()
            .sum()
        )

    times = torch.tensor([0.9, 0.6, 0.3, 0.1]).double()
    at = [process.network_time(t) for t in times.clone().unbind()]
    leaf = times.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    for k in range(4):
        moved = torch.zeros(4).double()
        moved[k] = 1e-6
        difference = (frozen(times + moved, at) - frozen(times - moved, at)) / 2e-6
        assert float(gradient[k]) == pytest.approx(float(difference), rel=1e-5, abs=1e-7)


# --- the loop -----------------------------------------------------------------------------------------------------


class NoReading(TorchDispatchMode):
    """Fails on whatever makes the host wait for the device, or copies to it, once armed."""

    armed = False

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        waits = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "_to_copy", "lift_fresh")
        if self.armed and function._schema.name.split("::")[1] in waits:
            raise AssertionError(f"{function} inside the loop")
        return function(*arguments, **(keywords or {}))


def test_the_guard_notices_reading_and_copying():
    with NoReading() as mode:
        x = torch.randn(3)
        mode.armed = True
        for waiting in (
            lambda: float(x[0]),
            lambda: bool((x > 0).all()),
            lambda: x.double(),
            lambda: torch.tensor(1.0),
        ):
            with pytest.raises(AssertionError, match="inside the loop"):
                waiting()
        mode.armed = False


@pytest.mark.parametrize("scale", [1.0, torch.full((4, 1, 1), 1.1)])
@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_nothing_in_the_loop_waits_for_the_device(name, scale):
    calls_of = plan_of(name).steps
    plan = plan_of(name).scaled([scale] * calls_of, [1.0] * calls_of)
    calls = []

    def network(x, time):
        mode.armed = True  # from the first call on ...
        calls.append(time)
        if len(calls) == calls_of:  # ... to the last
            mode.armed = False
        return x * 0.5

    with NoReading() as mode:
        sample(plan, network, seeds=[0, 1], shape=SHAPE)
    assert len(calls) == calls_of


@pytest.mark.parametrize(("name", "kept"), [("ddim", 1), ("dpm_solver_pp_2m", 2)])
def test_outputs_are_freed_once_no_row_reads_them(name, kept):
    alive = []

    def network(x, time):
        assert sum(r() is not None for r in alive) <= kept
        out = toy(x, time)
        alive.append(weakref.ref(out))
        return out

    plan = SOLVERS[name](PROCESS, EPSILON, grids.trailing(PROCESS, 10))
    with torch.no_grad():
        sample(plan, network, seeds=[0], shape=SHAPE)


def test_the_networks_tensors_are_not_changed():
    given = torch.randn(1, *SHAPE)
    before = given.clone()
    sample(plan_of(), lambda x, t: given, seeds=[0], shape=SHAPE)
    assert torch.equal(given, before)


# --- the exact testbed itself -------------------------------------------------------------------------------------


def random_mixture(dimension, full, seed=0):
    g = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(3, dimension, generator=g, dtype=torch.float64)
    root = torch.randn(3, dimension, dimension, generator=g, dtype=torch.float64)
    covariance = (
        root @ root.mT / dimension if full else torch.rand(3, dimension, generator=g, dtype=torch.float64) + 0.1
    )
    return Mixture(torch.tensor([0.2, 0.5, 0.3]), means, covariance)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("alpha", "sigma"), [(0.8, 0.6), (1.0, 3.0), (0.3, 0.7)])
def test_mixture_score_is_the_gradient_of_its_density(full, alpha, sigma):
    mixture = random_mixture(3, full)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(mixture.log_density(x, alpha, sigma).sum(), x)
    torch.testing.assert_close(mixture.score(x.detach(), alpha, sigma), gradient, rtol=1e-9, atol=1e-9)
    data, noise = mixture.estimates(x.detach(), alpha, sigma)
    torch.testing.assert_close(alpha * data + sigma * noise, x.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("full", [False, True])
def test_mixture_density_against_scipy(full):
    from scipy.stats import multivariate_normal

    mixture = random_mixture(3, full)
    x = torch.randn(6, 3, dtype=torch.float64)
    expected = 0.0
    for w, mu, c in zip(mixture.weights, mixture.means, mixture.covariances, strict=True):
        c = c if full else torch.diag(c)
        law = multivariate_normal((0.7 * mu).numpy(), (0.49 * c + 0.25 * torch.eye(3)).numpy())
        expected = expected + float(w) * torch.as_tensor(law.pdf(x.numpy()))
    torch.testing.assert_close(mixture.log_density(x, 0.7, 0.5).exp(), expected, rtol=1e-9, atol=1e-14)


def test_mixture_ends_are_finite():
    mixture = random_mixture(3, True)
    x = torch.randn(4, 3, dtype=torch.float64)
    data, noise = mixture.estimates(x, 0.0, 1.0)
    torch.testing.assert_close(data, mixture.mean().expand(4, 3))
    torch.testing.assert_close(noise, x)
    data, noise = mixture.estimates(x, 1.0, 0.0)
    torch.testing.assert_close(data, x)
    assert bool((noise == 0).all())


@pytest.mark.parametrize("full", [False, True])
def test_mixture_samples_have_its_moments(full):
    mixture = random_mixture(3, full)
    drawn = mixture.sample(40_000)
    assert torch.equal(drawn, mixture.sample(40_000))
    scale = mixture.covariance().diagonal().sqrt()
    assert float(((drawn.mean(0) - mixture.mean()) / scale).abs().max()) < 5 / 200
    off = (torch.cov(drawn.T) - mixture.covariance()) / scale.outer(scale)
    assert float(off.abs().max()) < 0.05


def test_gaussian_flow_solves_the_ode():
    """Against a stiff integrator of scipy on dx/dlambda of the probability flow, in a rotated basis."""
    from scipy.integrate import solve_ivp

    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]]).double()
    gaussian = Mixture.gaussian([0.5, -1.0], covariance)
    x = torch.tensor([[0.3, 1.2]]).double()

    def slope(t, y):  # rectified flow: dx/dt = eps - x0
        data, noise = gaussian.estimates(torch.as_tensor(y).reshape(1, 2), 1 - t, t)
        return (noise - data).reshape(-1).numpy()

    end = solve_ivp(slope, (0.9, 0.1), x[0].numpy(), method="DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
    torch.testing.assert_close(gaussian.flow(x, (0.1, 0.9), (0.9, 0.1))[0], torch.as_tensor(end), rtol=1e-8, atol=1e-9)


def test_mixture_flow_solves_the_ode_on_a_line():
    from scipy.integrate import solve_ivp

    mixture = golden()

    def slope(t, y):
        data, noise = mixture.estimates(torch.as_tensor(y).reshape(-1, 1), 1 - t, t)
        return (noise - data).reshape(-1).numpy()

    x = torch.linspace(-2, 2, 7).double()
    end = solve_ivp(slope, (0.9, 0.05), x.numpy(), method="DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
    ours = mixture.flow(x.reshape(-1, 1), (0.1, 0.9), (0.95, 0.05)).reshape(-1)
    torch.testing.assert_close(ours, torch.as_tensor(end), rtol=1e-7, atol=1e-8)


@settings(max_examples=25)
@given(x=st.floats(-30, 30), share=st.floats(0.05, 0.95))
def test_mixture_flow_is_reversible_far_into_the_tails(x, share):
    mixture, start, end = golden(), (0.05, 0.95), (share, 1 - share)
    there = mixture.flow(torch.tensor([[x]], dtype=torch.float64), start, end)
    assert float(mixture.flow(there, end, start)) == pytest.approx(x, abs=1e-9)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "velocity", "score", "edm"])
@pytest.mark.parametrize("process", [PROCESS, VPContinuous(), VE(), RectifiedFlow(3.0)], ids=repr)
def test_the_perfect_network_says_what_its_prediction_means(process, kind):
    mixture, prediction = random_mixture(2, True), Prediction(kind)
    x, t = torch.randn(4, 2, dtype=torch.float64), 0.4 * process.noisiest
    alpha, sigma = levels(process, t)
    network = mixture.network(process, prediction)
    time = torch.tensor(process.network_time(t), dtype=torch.float64)
    raw = network(x * prediction.input_scale(alpha, sigma), time)
    data = prediction.convert(raw, x, alpha, sigma, Prediction("sample"))
    torch.testing.assert_close(data, mixture.estimates(x, alpha, sigma)[0], rtol=1e-9, atol=1e-9)
    batched = network(x * prediction.input_scale(alpha, sigma), time.expand(4))
    torch.testing.assert_close(batched, raw)


def test_mixture_mistakes_are_named():
    with pytest.raises(FewstepError, match="sum to 1"):
        Mixture.line([0.5, 0.6], [0.0, 1.0], [1.0, 1.0])
    with pytest.raises(FewstepError, match="negative eigenvalue"):
        Mixture.gaussian([0.0, 0.0], torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(FewstepError, match="weights"):
        Mixture(torch.ones(2) / 2, torch.zeros(3, 1), torch.ones(3, 1))
    with pytest.raises(FewstepError, match="no closed form beyond one dimension"):
        random_mixture(2, False).flow(torch.randn(1, 2), (0.5, 0.5), (1.0, 0.1))


def test_plans_are_values():
    assert plan_of() == plan_of()
    assert plan_of() != lcm(PROCESS, EPSILON, grids.distilled(PROCESS, 4))
    assert isinstance(plan_of().scaled([1.0] * 4, [1.0] * 4), Plan)
