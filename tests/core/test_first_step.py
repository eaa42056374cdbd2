import pytest
import torch

from fewstep.errors import PlanError
from fewstep.executor import sample
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import VE, RectifiedFlow, VPContinuous, VPDiscrete
from fewstep.solvers import FACTS, SOLVERS, analytic_first_step, grids
from fewstep.testing.mixture import Mixture
from tests.core.toys import SHAPE, golden, toy

EPSILON = Prediction("epsilon")
DISCRETE = VPDiscrete.from_betas("scaled_linear", beta_start=0.00085, beta_end=0.012)
DETERMINISTIC = sorted(name for name in SOLVERS if not FACTS[name].stochastic)


def plan_of(name, process=DISCRETE, prediction=EPSILON):
    grid = grids.given([t * process.noisiest for t in (0.95, 0.6, 0.4, 0.25, 0.1)], end=0.05 * process.noisiest)
    return SOLVERS[name](process, prediction, grid)


def run(plan, network, shape, count=2):
    """Final states in double precision, all plans from the same noise."""
    z = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0)).double()
    state = plan.prior_scale * z + plan.prior_offset
    return sample(plan, network, seeds=range(count), shape=shape, state=state, dtype=torch.float64)


def patched(plan, network, formula):
    """The network with the formula (raw output of a state) in place of its first call."""
    calls = []

    def run(x, time):
        calls.append(time)
        return formula(x, plan.rows[0]) if len(calls) == 1 else network(x, time)

    return run


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_rest_of_the_plan_runs_as_if_the_formula_had_been_the_network(name):
    """For every solver: multistep, singlestep and corrected rows that read the first state or output."""
    plan = plan_of(name)
    for kind, formula in (
        ("zero", lambda x, row: x / row.sigma / row.input_scale),
        ("gaussian", lambda x, row: row.sigma * (x / row.input_scale) / (row.alpha**2 * 0.49 + row.sigma**2)),
        ("mean", lambda x, row: (x / row.input_scale - row.alpha * 0.3) / row.sigma),
    ):
        shorter = analytic_first_step(plan, kind, data_std=0.7, mean=0.3 if kind == "mean" else None)
        assert shorter.steps == plan.steps - 1
        wanted = run(plan, patched(plan, toy, formula), SHAPE)
        found = run(shorter, toy, SHAPE)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_a_first_step_that_turns_the_state_round_starts_from_mirrored_noise():
    """Q-Sched's scalars can do that where the first time has almost no signal; the law of the noise is symmetric."""
    process, formula = VPContinuous(), lambda x, row: x / row.sigma / row.input_scale
    grid = grids.given([t * process.noisiest for t in (1.0, 0.6, 0.3)], end=0.05 * process.noisiest)
    plan = SOLVERS["ddim"](process, EPSILON, grid).scaled([1.0] * 3, [1.2, 1.0, 1.0])
    z = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    mirrored = {"seeds": range(2), "shape": SHAPE, "state": -plan.prior_scale * z, "dtype": torch.float64}
    wanted = sample(plan, patched(plan, toy, formula), **mirrored)
    torch.testing.assert_close(run(analytic_first_step(plan), toy, SHAPE), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "velocity", "score", "edm"])
@pytest.mark.parametrize("process", [VPContinuous(), RectifiedFlow(3.0), VE()], ids=repr)
def test_gaussian_data_do_not_miss_the_first_call(process, kind):
    """The formula is the perfect network of such data, whatever the network's output means."""
    prediction = Prediction(kind)
    data = Mixture.gaussian([0.4, 0.4], [0.49, 0.49])
    plan = plan_of("dpm_solver_pp_2m", process, prediction)
    shorter = analytic_first_step(plan, "gaussian", data_std=0.7, mean=0.4)
    network = data.network(process, prediction)
    wanted, found = (run(p, network, (2,)) for p in (plan, shorter))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_a_mean_image_is_kept_in_the_file(tmp_path):
    mean = torch.tensor([0.4, -1.0, 2.0, 0.1]).double().reshape(4, 1, 1)
    shorter = analytic_first_step(plan_of("unipc"), "mean", mean=mean)
    shorter.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == shorter
    assert again.origin["first_step"] == "mean"
    point = Mixture.gaussian([0.4, -1.0, 2.0, 0.1], [0.0] * 4)
    network = point.network(DISCRETE, EPSILON)
    flat = analytic_first_step(plan_of("unipc"), "mean", mean=mean.reshape(4))
    # for data in that point the formula is the network
    torch.testing.assert_close(run(flat, network, (4,)), run(plan_of("unipc"), network, (4,)), rtol=1e-9, atol=1e-9)


def test_a_first_step_at_pure_noise():
    """Zero terminal signal: the formula is exact for any data of that mean, because x0 is independent of the state."""
    process, prediction = RectifiedFlow(), Prediction("velocity")
    data = golden()
    plan = SOLVERS["dpm_solver_pp_2m"](process, prediction, grids.uniform(process, 5))
    shorter = analytic_first_step(plan, "mean", mean=float(data.mean()))
    network = data.network(process, prediction)
    wanted, found = (run(p, network, (1,), 5) for p in (plan, shorter))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_mistakes_are_named():
    plan = plan_of("dpm_solver_pp_2m")
    with pytest.raises(PlanError, match="Did you mean 'gaussian'"):
        analytic_first_step(plan, "gausian")
    with pytest.raises(PlanError, match="mean="):
        analytic_first_step(plan, "mean")
    with pytest.raises(PlanError, match="data_std"):
        analytic_first_step(plan, "gaussian", data_std=0.0)
    with pytest.raises(PlanError, match="single row"):
        analytic_first_step(SOLVERS["ddim"](DISCRETE, EPSILON, grids.given([900.0])))
    with pytest.raises(PlanError, match="adds noise"):
        analytic_first_step(plan_of("euler_ancestral"))
    channels = torch.tensor([1.0, 1.1, 0.9, 1.0]).double().reshape(4, 1, 1)
    with pytest.raises(PlanError, match="per element"):
        analytic_first_step(plan.scaled([channels] * 5, [1.0] * 5))
    # Runge-Kutta from pure noise to the mean: the second stage forgets nothing, a leap to clean data would
    leap = SOLVERS["ddim"](DISCRETE, EPSILON, grids.given([900.0, 500.0]))
    rows = (leap.rows[0], leap.rows[1])
    forgetful = leap.replace(
        rows=(
            type(rows[0])(**{**vars(rows[0]), "state": {0: -1 / rows[0].sigma}, "output": {0: 1.0}}),
            type(rows[1])(**{**vars(rows[1]), "state": {0: 1.0}}),
        )
    )
    with pytest.raises(PlanError, match="forgets"):
        analytic_first_step(forgetful, "zero")
