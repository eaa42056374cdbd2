import math
from functools import cache

import numpy as np
import pytest
import torch

from fewstep.denoiser import Denoiser
from fewstep.errors import FewstepError, IdentityError, PlanError
from fewstep.executor import sample
from fewstep.plan import Identity, Plan
from fewstep.prediction import Prediction
from fewstep.process import VE, RectifiedFlow, VPContinuous
from fewstep.solvers import Grid, grids, unipc
from fewstep.solvers.dpm_solver_v3 import dpm_solver_v3
from fewstep.solvers.estimation import estimate_statistics
from fewstep.solvers.statistics import ModelStatistics
from fewstep.testing.mixture import Mixture
from tests.core.toys import golden, levels, run_from

EPSILON, VP = Prediction("epsilon"), VPContinuous()


def constant(l, s, b, count=121):  # noqa: E741
    lam = torch.linspace(-30, 30, count).double()
    return ModelStatistics(lam, *(torch.full((count,), float(v)) for v in (l, s, b)))


def grid_of(process, lam):
    times = process.time(torch.as_tensor(lam, dtype=torch.float64))
    return Grid(times[:-1], float(times[-1]))


def coefficients(plan):
    """Every coefficient of every row under its name; those that are left out are 0."""
    return [{n: v for n, v in row.coefficients() if v != 0} for row in plan.rows]


def run(plan, network, start):
    """The final states in double precision."""
    return sample(plan, network, seeds=range(len(start)), shape=start.shape[1:], state=start, dtype=torch.float64)


# --- special cases: the data and the noise form -----------------------------------------------------------------


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("form", "l", "s"), [("data", 1, 0), ("noise", 0, -1)])
@pytest.mark.parametrize("process", [VP, RectifiedFlow(3.0), VE()], ids=repr)
def test_statistics_of_a_fixed_form_give_its_solver(process, form, l, s, order, lower):  # noqa: E741
    grid = grid_of(process, [-2.1, -1.3, -0.9, 0.2, 1.0, 1.9, 2.0])
    statistics = constant(l, s, 0)
    for corrector in (False, True):
        theirs = unipc(
            process, EPSILON, grid, order=order, form=form, rule="exact", corrector=corrector, lower_order_final=lower
        )
        ours = dpm_solver_v3(
            process, EPSILON, grid, statistics=statistics, order=order, corrector="full" if corrector else "none",
            corrector_pseudo=False, lower_order_final=lower,
        )  # fmt: skip
        for mine, wanted in zip(coefficients(ours), coefficients(theirs), strict=True):
            assert mine == pytest.approx(wanted, rel=1e-8, abs=1e-10)


def test_clean_and_pure_noise_ends_are_first_order():
    process, prediction = RectifiedFlow(3.0), Prediction("velocity")
    statistics = constant(0.4, -0.3, 0.7)
    plan = dpm_solver_v3(process, prediction, grids.uniform(process, 6), statistics=statistics, corrector="full")
    point = Mixture.gaussian([0.7, -1.3], [0.0, 0.0])
    end = sample(plan, point.network(process, prediction), seeds=[0, 1], shape=(2,), dtype=torch.float64)
    torch.testing.assert_close(end, point.means.expand(2, 2), rtol=1e-9, atol=1e-9)


# --- what the statistics buy: Gaussian data in one step ----------------------------------------------------------

MEANS, VARIANCES = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.04, 1.0, 4.0]).double()
GAUSSIAN = Mixture.gaussian(MEANS, VARIANCES)


def exact_statistics(lam, s):
    """l and f' = s f + b of independent Gaussians (VP), where f = -sigma^2 mean / v depends on lambda alone."""
    alpha2 = torch.sigmoid(2 * lam).unsqueeze(1)
    v = alpha2 * VARIANCES + 1 - alpha2
    f = -(1 - alpha2) * MEANS / v
    # d sigma^2 / d lambda = -2 alpha^2 sigma^2, and v' = 2 alpha^2 sigma^2 (variance - 1)
    slope = 2 * alpha2 * (1 - alpha2) * MEANS / v**2 * (v + (1 - alpha2) * (VARIANCES - 1))
    return ModelStatistics(lam, (1 - alpha2) / v, torch.full_like(f, s), slope - s * f)


@pytest.mark.parametrize("s", [0.0, -1.0])
def test_gaussian_data_are_solved_in_one_step(s):
    statistics = exact_statistics(torch.linspace(-4, 4, 8001).double(), s)
    grid = grid_of(VP, [-4.0, 4.0])
    start = torch.tensor([[0.3, -1.0, 2.0], [1.5, 0.1, -0.4]]).double()
    wanted = GAUSSIAN.flow(start, *(levels(VP, VP.time(lam)) for lam in (-4.0, 4.0)))
    network = GAUSSIAN.network(VP, EPSILON)
    ours = run(dpm_solver_v3(VP, EPSILON, grid, statistics=statistics), network, start)
    assert float((ours - wanted).abs().max()) < 1e-6
    ddim = run(dpm_solver_v3(VP, EPSILON, grid, statistics=constant(1, 0, 0)), network, start)
    assert float((ddim - wanted).abs().max()) > 1


def test_statistics_are_measured_exactly_on_gaussian_data():
    """A diagonal Jacobian and a residual without variance: nothing is left to chance."""
    lam = torch.linspace(-1, 1, 41).double()
    denoiser = Denoiser(GAUSSIAN.network(VP, EPSILON), VP, EPSILON)
    found = estimate_statistics(denoiser, VP, GAUSSIAN.sample(4), lam, elementwise=True, batch=3, smooth=0)
    wanted = exact_statistics(lam, 0.0)
    torch.testing.assert_close(found.l, wanted.l, rtol=1e-9, atol=1e-9)
    assert float(found.s.abs().max()) == 0
    inner = slice(1, -1)  # one-sided differences of l at the ends
    torch.testing.assert_close(found.b[inner], wanted.b[inner], rtol=0, atol=0.01)
    assert found.samples == 4


# --- the mixture: statistics by quadrature, and what order each variant reaches -------------------------------------


@cache
def mixture_statistics(count=401):
    """l, s, b of the golden mixture by quadrature over its density, derivatives by finite differences."""
    mixture, lam = golden(), torch.linspace(-4, 4, count).double()
    x = torch.linspace(-9, 9, 2001).double().reshape(-1, 1)

    def noise(x, lam):
        return mixture.estimates(x, *levels(VP, VP.time(float(lam))))[1]

    slopes = []
    for at in lam:
        weight = mixture.log_density(x, *levels(VP, VP.time(float(at)))).exp()
        slope = (noise(x + 1e-4, at) - noise(x - 1e-4, at)).reshape(-1) / 2e-4
        slopes.append(float((weight * slope).sum() / weight.sum()) * levels(VP, VP.time(float(at)))[1])
    l = np.array(slopes)  # noqa: E741
    rates = np.gradient(l, lam.numpy())
    s, b = [], []
    for i, at in enumerate(lam):
        alpha, sigma = levels(VP, VP.time(float(at)))
        weight = mixture.log_density(x, alpha, sigma).exp()
        weight = weight / weight.sum()
        eps = noise(x, at)
        data = (x - sigma * eps) / alpha

        def f(d, at=at, data=data, eps=eps, i=i):
            a, r = levels(VP, VP.time(float(at) + d))
            state = a * data + r * eps
            return ((r * noise(state, float(at) + d) - (l[i] + rates[i] * d) * state) / a).reshape(-1)

        now, slope = f(0.0), (f(1e-4) - f(-1e-4)) / 2e-4
        mean, rise = (weight * now).sum(), (weight * slope).sum()
        covariance = (weight * now * slope).sum() - mean * rise
        s.append(float(covariance / ((weight * now**2).sum() - mean**2)))
        b.append(float(rise) - s[-1] * float(mean))
    return ModelStatistics(lam, torch.tensor(l), torch.tensor(s), torch.tensor(b))


def rms(statistics, steps, order):
    """Root mean square error of a lambda-uniform grid from -4 to 4 over states in [-2.5, 2.5]."""
    mixture, x = golden(), torch.linspace(-2.5, 2.5, 201).double().reshape(-1, 1)
    plan = dpm_solver_v3(
        VP, EPSILON, grid_of(VP, torch.linspace(-4, 4, steps + 1)), statistics=statistics, order=order,
        lower_order_final=False,
    )  # fmt: skip
    wanted = mixture.flow(x, *(levels(VP, VP.time(lam)) for lam in (-4.0, 4.0)))
    return float((run(plan, mixture.network(VP, EPSILON), x) - wanted).square().mean().sqrt())


DATA, NOISE = constant(1, 0, 0), constant(0, -1, 0)


def test_golden_errors_of_first_order_on_the_mixture():
    """The paper's claim, in the numbers of an independent implementation: fitted statistics beat the data form."""
    fitted = mixture_statistics()
    for statistics, wanted in (
        (DATA, (0.716, 0.465, 0.371, 0.188)),
        (fitted.linear(), (0.341, 0.121, 0.100, 0.051)),
        (fitted, (0.403, 0.298, 0.211, 0.091)),
    ):
        found = [rms(statistics, n, 1) for n in (5, 8, 10, 20)]
        assert found == pytest.approx(wanted, rel=0.25)


def test_at_third_order_the_noise_form_beats_the_statistics():
    """What must be told honestly: with |s| h large the affine law hurts (the integral of s explodes)."""
    for steps in (5, 8, 10, 20):
        assert rms(NOISE, steps, 3) < rms(mixture_statistics(), steps, 3)
    assert [rms(NOISE, n, 3) for n in (5, 8, 10, 20)] == pytest.approx((0.151, 0.055, 0.033, 0.0078), rel=0.1)


@pytest.mark.parametrize("at", [-2.0, -0.5, 1.0, 2.0])
def test_statistics_measured_on_samples_are_those_of_the_density(at):
    lam = torch.linspace(at - 0.1, at + 0.1, 5).double()
    network = Denoiser(golden().network(VP, EPSILON), VP, EPSILON)
    found = estimate_statistics(network, VP, golden().sample(64000), lam, batch=32000, smooth=1)
    l, s, b = (float(v) for v in mixture_statistics().at(lam[2]))  # noqa: E741
    assert float(found.l[2]) == pytest.approx(l, abs=0.005)
    assert float(found.s[2]) == pytest.approx(s, abs=0.06)
    assert float(found.b[2]) == pytest.approx(b, abs=0.03)


# --- any statistics: the order holds whatever they are ---------------------------------------------------------------


def wavy(lam):
    """Smooth statistics that belong to no model."""
    return ModelStatistics(lam, 0.5 + 0.4 * torch.sin(lam), 0.6 * torch.cos(2 * lam), 0.5 * torch.sin(lam + 1))


def error(steps, seeds, correct_last=False, **options):
    """Largest error on the golden mixture from lambda -2 to 2, the first `seeds` new states being exact."""
    m, x = golden(), torch.linspace(-2, 2, 9).double().reshape(9, 1)
    lam = torch.linspace(-2, 2, steps + 1).double()
    if correct_last:  # the corrected state is never made: a vanishing step shows it
        lam = torch.cat([lam, torch.tensor([2 + 1e-9], dtype=torch.float64)])
    plan = dpm_solver_v3(
        VP, EPSILON, grid_of(VP, lam), statistics=wavy(torch.linspace(-3, 3, 301).double()), lower_order_final=False,
        **options,
    )  # fmt: skip
    scales = [levels(VP, VP.time(float(at))) for at in lam]
    exact = {0: x, **{k: m.flow(x, scales[0], scales[k]) for k in range(1, seeds + 1)}}
    out = run_from(plan, m.network(VP, EPSILON), exact)
    return float((out - m.flow(x, scales[0], scales[steps])).abs().max())


@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_convergence(order):
    coarse, fine = (error(n, order - 1, order=order) for n in (84, 168))
    assert math.log2(coarse / fine) > (order - 0.15 if order > 1 else 0.75)


@pytest.mark.parametrize("order", [1, 2])
def test_the_corrector_raises_the_order(order):
    options = {"order": order, "corrector": "full", "corrector_pseudo": False, "correct_last": True}
    # without exact states: the corrector raises the low-order start too
    coarse, fine = (error(n, 0, **options) for n in (84, 168))
    assert math.log2(coarse / fine) > order + 1 - 0.2


def test_pseudo_differences_use_the_nearest_points():
    """At order 2 there is nothing to choose; at order 3 the first slope comes from one point alone."""
    statistics = wavy(torch.linspace(-3, 3, 301).double())
    grid = grid_of(VP, torch.linspace(-2, 2, 7))
    for order, same in ((2, True), (3, False)):
        full, pseudo = (
            dpm_solver_v3(VP, EPSILON, grid, statistics=statistics, order=order, pseudo=p) for p in (False, True)
        )
        assert (coefficients(full) == coefficients(pseudo)) is same
    assert error(168, 2, order=3, pseudo=True) < error(84, 2, order=3, pseudo=True) / 3.5  # order 2 at least


def test_half_corrects_only_the_noisy_states():
    statistics, grid = constant(0.5, 0.2, 0.1), grids.given([0.9, 0.7, 0.4, 0.2], end=0.05)
    full, half, none = (
        dpm_solver_v3(VP, EPSILON, grid, statistics=statistics, corrector=c) for c in ("full", "half", "none")
    )
    assert half.rows[1] != none.rows[1]
    assert coefficients(half)[1] == coefficients(full)[1]  # corrects the state at time 0.7
    assert coefficients(half)[2:] == coefficients(none)[2:]


# --- gradients, files, mistakes --------------------------------------------------------------------------------------


def test_gradients_reach_the_grid():
    statistics = wavy(torch.linspace(-3, 3, 301).double())
    network = lambda x, time: torch.tanh(1.3 * x + 0.2)  # noqa: E731  without time, which is told as a number

    def end(logits):
        grid = grids.learnable(VP, logits, float(VP.time(1.5)), first=float(VP.time(-2.0)), end=float(VP.time(2.0)))
        plan = dpm_solver_v3(VP, EPSILON, grid, statistics=statistics, order=3, corrector="full")
        return run(plan, network, torch.linspace(-2, 2, 5).double().reshape(5, 1)).square().sum()

    logits = torch.tensor([0.2, -0.1, 0.4], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(end(logits), logits)
    with torch.no_grad():
        steps = 1e-5 * torch.eye(3, dtype=torch.float64)
        expected = torch.stack([(end(logits + d) - end(logits - d)) / 2e-5 for d in steps])
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_statistics_and_plans_per_element_survive_the_disk(tmp_path):
    generator = torch.Generator().manual_seed(0)
    lam = torch.linspace(-8, 8, 41).double()
    l, s, b = (torch.rand(41, 2, 3, 3, generator=generator).double() for _ in range(3))  # noqa: E741
    ModelStatistics(lam, l, s, b, model="abc", guidance=7.5, samples=9, seed=3).save(tmp_path / "s.safetensors")
    statistics = ModelStatistics.load(tmp_path / "s.safetensors")
    assert (statistics.model, statistics.guidance, statistics.samples, statistics.seed) == ("abc", 7.5, 9, 3)
    assert torch.equal(statistics.b, b)
    plan = dpm_solver_v3(VP, EPSILON, grids.uniform(VP, 5), statistics=statistics, corrector="full")
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    network = lambda x, t: torch.tanh(x)  # noqa: E731
    ours, theirs = (sample(p, network, seeds=[0, 1], shape=(2, 3, 3)) for p in (plan, again))
    assert torch.equal(ours, theirs)
    assert float(ours.std()) > 0
    with pytest.raises(IdentityError, match="guidance"):
        plan.check(Identity(model="abc", guidance=5.0))
    averaged = statistics.averaged()
    assert averaged.shape == ()
    torch.testing.assert_close(averaged.l[7], l[7].mean())


def test_one_value_per_element_is_one_solver_per_element():
    lam = torch.linspace(-3, 3, 61).double()
    first, second = wavy(lam), ModelStatistics(lam, 0 * lam + 1, 0 * lam, 0 * lam)
    both = ModelStatistics(lam, *(torch.stack([getattr(first, n), getattr(second, n)], 1) for n in ("l", "s", "b")))
    grid, x = grid_of(VP, [-2.0, -1.0, 0.5, 2.0]), torch.tensor([[0.3, -0.8]]).double()
    network = lambda x, t: torch.tanh(x)  # noqa: E731
    together = run(dpm_solver_v3(VP, EPSILON, grid, statistics=both), network, x)
    apart = [run(dpm_solver_v3(VP, EPSILON, grid, statistics=s), network, x) for s in (first, second)]
    torch.testing.assert_close(together, torch.cat([apart[0][:, :1], apart[1][:, 1:]], 1), rtol=1e-12, atol=1e-12)


def test_mistakes_are_named(tmp_path):
    lam = torch.linspace(-3, 3, 7).double()
    zero = torch.zeros(7)
    with pytest.raises(PlanError, match="rise"):
        ModelStatistics(lam.flip(0), zero, zero, zero)
    with pytest.raises(PlanError, match="one shape"):
        ModelStatistics(lam, zero, zero, torch.zeros(7, 2))
    with pytest.raises(PlanError, match="finite"):
        ModelStatistics(lam, zero, zero, zero * math.nan)
    with pytest.raises(PlanError, match="cover half log-SNR -3 to 3"):
        dpm_solver_v3(VP, EPSILON, grid_of(VP, [-4.0, 0.0, 1.0]), statistics=ModelStatistics(lam, zero, zero, zero))
    steep = ModelStatistics(lam, zero, zero + 1e4, zero)
    with pytest.raises(PlanError, match="too fast"):
        dpm_solver_v3(VP, EPSILON, grid_of(VP, [-2.0, 0.0, 1.0]), statistics=steep)
    for option in ({"order": 4}, {"corrector": "ful"}):
        with pytest.raises(PlanError, match=next(iter(option))):
            dpm_solver_v3(VP, EPSILON, grid_of(VP, [-2.0, 0.0, 1.0]), statistics=DATA, **option)
    with pytest.raises(FewstepError, match="need data"):
        estimate_statistics(lambda x, t: x, VP, torch.zeros(0, 2), lam)
    with pytest.raises(FewstepError, match="cannot read"):
        ModelStatistics.load(tmp_path / "absent.safetensors")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(FewstepError, match="cannot read"):
        ModelStatistics.load(tmp_path / "other.json")


def test_the_batch_size_changes_nothing_and_a_small_unet_can_be_measured():
    from diffusers import UNet2DModel

    from fewstep.denoiser import Backbone

    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(32, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    denoiser = Denoiser(Backbone(net), VP, EPSILON)
    clean = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    lam = torch.linspace(-2, 2, 3).double()
    small, large = (
        estimate_statistics(denoiser, VP, clean, lam, elementwise=True, batch=n, seed=4, guidance=1.0) for n in (2, 3)
    )
    assert small.shape == (1, 8, 8)
    assert small.model is not None
    torch.testing.assert_close(small.l, large.l, rtol=2e-3, atol=2e-3)
    for name in ("s", "b"):  # fractions of variances over three samples, in float32
        torch.testing.assert_close(getattr(small, name), getattr(large, name), rtol=0.05, atol=0.05)
    # the Jacobian product agrees with a difference quotient of the network
    numerical = estimate_statistics(denoiser, VP, clean, lam, elementwise=True, batch=3, seed=4, method="difference")
    torch.testing.assert_close(numerical.l, large.l, rtol=0.02, atol=2e-3)
