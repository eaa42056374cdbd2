import itertools
import math

import pytest
import torch

from fewstep.errors import PlanError
from fewstep.executor import sample
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow, VPContinuous
from fewstep.schedules import Trajectory, gits
from fewstep.schedules.gits import _best_paths
from fewstep.solvers import ddim, grids, sde_dpm_solver_pp, unipc
from fewstep.testing.mixture import Mixture

MIXTURE = Mixture.line([0.3, 0.5, 0.2], [-2.0, 0.5, 3.0], [0.5, 0.3, 0.8])
PROCESS, EPSILON = VPContinuous(), Prediction()


def trajectory(rows=24, process=PROCESS, prediction=EPSILON, count=64):
    plan = ddim(process, prediction, grids.uniform(process, rows))
    return Trajectory.follow(plan, MIXTURE.network(process, prediction), seeds=range(count), shape=(1,))


def test_a_trajectory_ends_where_the_executor_ends():
    plan = unipc(PROCESS, EPSILON, grids.uniform(PROCESS, 9))
    network = MIXTURE.network(PROCESS, EPSILON)
    seen = Trajectory.follow(plan, network, seeds=[1, 2, 3], shape=(1,))
    assert torch.allclose(seen.final, sample(plan, network, seeds=[1, 2, 3], shape=(1,)), atol=1e-5)


def test_a_trajectory_of_a_stochastic_plan_is_refused():
    plan = sde_dpm_solver_pp(PROCESS, EPSILON, grids.uniform(PROCESS, 3))
    with pytest.raises(PlanError, match="deterministic"):
        Trajectory.follow(plan, MIXTURE.network(PROCESS, EPSILON), seeds=[1], shape=(1,))


def test_the_dynamic_programme_finds_what_enumeration_finds():
    draw = torch.Generator().manual_seed(0)
    nodes, coefficient = 6, 1.3
    cost = torch.rand(nodes, nodes + 1, generator=draw).tolist()
    paths = _best_paths(cost, 4, coefficient)
    for steps in range(1, 5):

        def total(inner):
            path = (0, *inner, nodes)
            return sum(coefficient**k * cost[i][j] for k, (i, j) in enumerate(itertools.pairwise(path)))

        best = min(itertools.combinations(range(1, nodes), steps - 1), key=total)
        assert paths[steps] == [0, *best]


@pytest.mark.parametrize("metric", ["l2", "l1", "dev"])
def test_chosen_rows_fall_and_start_at_the_noisiest(metric):
    for steps, rows in gits(trajectory(), [1, 3, 6], metric=metric).items():
        assert len(rows) == steps
        assert rows[0] == 0
        assert rows == sorted(set(rows))


def test_all_rows_are_chosen_when_all_may_be():
    assert gits(trajectory(rows=7), [7])[7] == list(range(7))


@pytest.mark.parametrize("process", [VPContinuous(), RectifiedFlow()], ids=["vp", "flow"])
def test_ddim_on_the_chosen_times_ends_nearer_than_on_even_ones(process):
    prediction = EPSILON if isinstance(process, VPContinuous) else Prediction("velocity")
    fine = trajectory(rows=60, process=process, prediction=prediction)
    network = MIXTURE.network(process, prediction)
    seeds = range(500, 700)
    truth = sample(fine.plan, network, seeds=seeds, shape=(1,))

    def error(grid):
        return float(
            (sample(ddim(process, prediction, grid), network, seeds=seeds, shape=(1,)) - truth).square().mean()
        )

    times = [float(fine.plan.rows[k].time) for k in gits(fine, [5])[5]]
    assert error(grids.given(times)) < 0.8 * error(grids.uniform(process, 5))


def test_more_steps_than_rows_are_refused():
    with pytest.raises(PlanError, match="7 rows"):
        gits(trajectory(rows=7), [8])
    with pytest.raises(PlanError, match="metric"):
        gits(trajectory(rows=7), [3], metric="l3")
    assert math.isfinite(float(trajectory(rows=7).final.sum()))
