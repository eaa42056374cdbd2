"""A solver: Adams-Bashforth of order 2 on the data estimate, in the variable r = alpha / sigma."""

import torch

from fewstep.executor import sample
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import Process, RectifiedFlow
from fewstep.solvers import grids, solver
from fewstep.solvers.stages import Stages
from fewstep.testing.mixture import Mixture


@solver(order=2, source="Adams and Bashforth, 1883", history=2)
def adams_ratio(process: Process, prediction: Prediction, grid: grids.Grid) -> Plan:
    """x_{k+1} = sigma_{k+1} (x_k / sigma_k + h_k (x0_k + h_k / (2 h_{k-1}) (x0_k - x0_{k-1}))), h_k = r_{k+1} - r_k."""
    s = Stages(process, prediction, grid)
    updates = []
    for k in range(len(s)):
        if s.sigma[k + 1] == 0:  # clean: h is infinite, the estimate is all
            updates.append((s.data(k), 0.0))
            continue
        h = s.alpha[k + 1] / s.sigma[k + 1] - s.alpha[k] / s.sigma[k]
        estimate = s.data(k)
        if k:
            before = s.alpha[k] / s.sigma[k] - s.alpha[k - 1] / s.sigma[k - 1]
            estimate = estimate + h / (2 * before) * (s.data(k) - s.data(k - 1))
        updates.append((s.sigma[k + 1] * (s.x(k) / s.sigma[k] + h * estimate), 0.0))
    return s.plan(updates, "adams_ratio")


process, prediction = RectifiedFlow(), Prediction("velocity")
data, x = Mixture.line([0.3, 0.7], [-1.0, 1.0], [0.4, 0.6]), torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
exact, errors = data.flow(x, (0.2, 0.8), (0.7, 0.3)), []
for steps in (20, 40, 80):
    plan = adams_ratio(process, prediction, grids.given(torch.linspace(0.8, 0.3, steps + 1)[:-1].tolist(), end=0.3))
    made = sample(plan, data.network(process, prediction), seeds=range(9), shape=(1,), state=x, dtype=torch.float64)
    errors.append(float((made - exact).abs().max()))
print(f"twice the steps, error divided by {errors[0] / errors[1]:.1f} and {errors[1] / errors[2]:.1f}")
