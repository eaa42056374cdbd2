"""Langevin dynamics at one noise level, and predictor-corrector sampling, which takes such steps between levels."""

from __future__ import annotations

import torch

from fewstep.errors import PlanError
from fewstep.plan import Combination, Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers.grids import Grid
from fewstep.solvers.integrals import choice
from fewstep.solvers.registry import solver
from fewstep.solvers.stages import Stages, Update, plain

PREDICTORS = ("ancestral", "ode", "hold")


@solver(order=1, source="arXiv 2011.13456", calls=2, stochastic=True)
def predictor_corrector(
    process: Process,
    prediction: Prediction,
    grid: Grid,
    *,
    corrections: int = 1,
    snr: float = 0.16,
    predictor: str = "ancestral",
    euler: bool = False,
) -> Plan:
    """Predictor-corrector sampling (arXiv 2011.13456, algorithm 1) on any process. Stochastic.

    After every step of the predictor but the last, `corrections` steps of Langevin dynamics at its end. With the score
    -eps / sigma and a step of e = 2 snr^2 sigma^2, a Langevin step is

        x_k' = x_k - e eps_k / sigma_k + sqrt(2 e) z                                     (`euler`)
        x_k' = alpha_k x0_k + sigma_k sqrt(1 - c^2) eps_k + c sigma_k z,  c = 2 snr      (else)
        x_{k+1} = alpha_{k+1} x0_k + sigma_{k+1} sqrt(1 - s^2) eps_k + sigma_{k+1} s z,  s^2 = 1 - rho_{k+1}^2 / rho_k^2

    The second agrees with the first up to c^4 and keeps the law of one point exactly, whatever c is; at c = 1 it noises
    the clean prediction anew. The paper takes snr |z| / |score| where here stands its value for one point, snr sigma:
    a step that depends on the state would be no row of a plan.

    Args:
        corrections: Langevin steps at every time but the first; each costs an evaluation.
        snr: r of the paper, which has 0.16 on CIFAR-10; in (0, 0.5].
        predictor: `ancestral` sampling, the `ode` (DDIM), or `hold`, which carries the state to the next level as is:
            annealed Langevin dynamics (arXiv 1907.05600), on processes without upper bound.
        euler: the steps of Euler and Maruyama, as published.

    Raises:
        PlanError: no corrections, an snr outside of (0, 0.5], an unknown predictor, or `hold` where alpha changes.
    """
    choice("predictor", predictor, PREDICTORS)
    if corrections < 1 or not 0 < snr <= 0.5:
        hint = "Use corrections=1, snr=0.16; ddim with eta has no corrections."
        raise PlanError("the corrector needs steps and a size", value=(corrections, snr), hint=hint)
    if predictor == "hold" and not process.unbounded:
        raise PlanError("annealed Langevin dynamics needs alpha = 1", value=repr(process), hint="Use VE.")
    counts = torch.full((len(grid),), corrections + 1)
    counts[0] = 1
    s = Stages(process, prediction, grid, times=grid.times.repeat_interleave(counts))
    updates: list[Update] = []
    for count in counts.tolist():
        updates += [_corrected(s, len(updates) + k, 2 * snr, euler) for k in range(count - 1)]
        updates.append(_predicted(s, len(updates), predictor))
    settings = {"corrections": corrections, "snr": snr, "predictor": predictor, "euler": euler}
    return s.plan(updates, "predictor_corrector", **settings)


def _corrected(s: Stages, k: int, c: float, euler: bool) -> Update:
    """A Langevin step at the noise level of node k."""
    kept = 1 - c**2 / 2 if euler else (1 - c**2) ** 0.5
    return plain(s.alpha[k]) * s.data(k) + plain(kept * s.sigma[k]) * s.noise(k), plain(c * s.sigma[k])


def _predicted(s: Stages, k: int, predictor: str) -> Update:
    """A step to the noise level of node k + 1."""
    data: Combination = plain(s.alpha[k + 1]) * s.data(k)
    if predictor == "hold" and not bool(s.sigma[k + 1] == 0):
        return s.x(k), 0.0
    if predictor == "ode" or bool(s.sigma[k + 1] == 0):
        return data + plain(s.sigma[k + 1]) * s.noise(k), 0.0
    shrink = s.sigma[k + 1] * s.alpha[k] / (s.alpha[k + 1] * s.sigma[k])
    fresh = s.sigma[k + 1] * (1 - shrink**2).clamp(min=0).sqrt()
    return data + plain(s.sigma[k + 1] * shrink) * s.noise(k), plain(fresh)
