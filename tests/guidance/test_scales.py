"""Scales of classifier-free guidance: both conventions, intervals, CFG++, rescaling and autoguidance."""

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from fewstep.denoiser import Guided
from fewstep.errors import FewstepError
from fewstep.executor import sample
from fewstep.guidance import cfg_plus_plus, guidance_interval, guidance_scale
from fewstep.plan import Plan
from fewstep.prediction import KINDS, Prediction
from fewstep.process import RectifiedFlow, VPContinuous
from fewstep.solvers import ddim, dpm_solver_pp_2m, grids
from fewstep.testing.mixture import Mixture

PROCESS, VELOCITY = RectifiedFlow(), Prediction("velocity")
WITHIN, WITHOUT = Mixture.line([1.0], [1.0], [0.5]), Mixture.line([0.5, 0.5], [-1.0, 1.0], [0.5, 0.5])


def network(process=PROCESS, prediction=VELOCITY, counted=None):
    """The exact network of the class at label 1 and of the whole at label 0."""
    within, without = WITHIN.network(process, prediction), WITHOUT.network(process, prediction)

    def network(x, time, labels):
        if counted is not None:
            counted.append(len(x))
        return torch.where(labels[:, None] == 1, within(x, time), without(x, time))

    return network


def guided(count=5, **options):
    labels = torch.ones(count, dtype=torch.long)
    given = {"process": PROCESS, "prediction": VELOCITY, "counted": None}
    given |= {name: options.pop(name) for name in list(options) if name in given}
    return Guided(network(**given), {"labels": labels}, {"labels": 0 * labels}, **options)


def run(plan, guided, count=5):
    return sample(plan, guided, seeds=range(count), shape=(1,), dtype=torch.float64)


def test_both_conventions_mean_the_same_step():
    x, time = torch.randn(5, 1, dtype=torch.float64), torch.tensor(600.0)
    within, without = (WITHIN.network(PROCESS, VELOCITY)(x, time), WITHOUT.network(PROCESS, VELOCITY)(x, time))
    for w in (0.0, 1.5, 4.0):
        paper = (1 + w) * within - w * without
        torch.testing.assert_close(guided(scale=guidance_scale(w, "paper"))(x, time), paper)
    for scale in (0.0, 0.4, 3.0):
        torch.testing.assert_close(
            guided(scale=guidance_scale(scale, "diffusers"))(x, time), without + scale * (within - without)
        )
    with pytest.raises(FewstepError, match="convention"):
        guidance_scale(1.0, "papers")


def test_an_interval_guides_its_rows_alone_and_pays_for_them_alone():
    plan = ddim(PROCESS, VELOCITY, grids.uniform(PROCESS, 4))
    counted = []
    run(guidance_interval(plan, 3.0, 0.5, 2.0), guided(counted=counted))
    assert counted == [5, 5, 10, 5]  # sigma / alpha is infinite, 3, 1, 1/3
    with pytest.raises(FewstepError, match="no row"):
        guidance_interval(plan, 3.0, 50.0, 60.0)


@pytest.mark.parametrize("kind", KINDS)
def test_cfg_plus_plus_is_its_published_step(kind):
    """x0 by the guided noise, then noised anew with the unconditional one, written out in epsilon."""
    process, prediction, scale = VPContinuous(), Prediction(kind), 0.6
    plan = ddim(process, prediction, grids.uniform(process, 5))
    found = run(cfg_plus_plus(plan, scale), guided(process=process, prediction=prediction))
    noises = [law.network(process, Prediction("epsilon")) for law in (WITHIN, WITHOUT)]
    times = torch.cat([torch.linspace(1, 0.2, 5, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    alphas, sigmas = process.alpha(times), process.sigma(times)
    x = torch.cat([torch.randn(1, 1, generator=torch.Generator().manual_seed(s)) for s in range(5)]).double()
    x = x * plan.prior_scale
    for k in range(5):
        within, without = (noise(x, process.network_time(times[k])) for noise in noises)
        mixed = without + scale * (within - without)
        x = alphas[k + 1] * (x - sigmas[k] * mixed) / alphas[k] + sigmas[k + 1] * without
    torch.testing.assert_close(found, x)


def test_cfg_plus_plus_survives_a_file(tmp_path):
    plan = cfg_plus_plus(ddim(PROCESS, VELOCITY, grids.uniform(PROCESS, 4)), 0.8)
    plan.save(tmp_path / "plan.json")
    assert torch.equal(run(Plan.load(tmp_path / "plan.json"), guided()), run(plan, guided()))


def test_cfg_plus_plus_refuses_plans_that_it_is_not_defined_for():
    memory = dpm_solver_pp_2m(PROCESS, VELOCITY, grids.uniform(PROCESS, 4))
    noisy = ddim(PROCESS, VELOCITY, grids.uniform(PROCESS, 4), eta=1.0)
    for plan in (memory, noisy):
        with pytest.raises(FewstepError, match="first-order"):
            cfg_plus_plus(plan, 0.6)
    with pytest.raises(FewstepError, match="interpolates"):
        cfg_plus_plus(ddim(PROCESS, VELOCITY, grids.uniform(PROCESS, 4)), 7.5)


def test_rescaling_is_that_of_diffusers():
    torch.manual_seed(0)
    within, without = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)

    def network(x, time, words):
        return torch.where(words == 1, within.repeat(len(x) // 2, 1, 1, 1), without.repeat(len(x) // 2, 1, 1, 1))

    words = torch.ones(2, 1, 1, 1)
    found = Guided(network, {"words": words}, {"words": 0 * words}, 5.0, rescale=0.7)(within, torch.tensor(1.0))
    theirs = rescale_noise_cfg(without + 5.0 * (within - without), within, guidance_rescale=0.7)
    torch.testing.assert_close(found, theirs)
    with pytest.raises(FewstepError, match="share"):
        Guided(network, {}, rescale=1.5)


def test_autoguidance_leads_away_from_the_weak_network():
    x, time = torch.randn(5, 1), torch.tensor(600.0)
    strong, weak = WITHIN.network(PROCESS, VELOCITY), WITHOUT.network(PROCESS, VELOCITY)
    found = Guided(strong, {}, weak=weak, scale=2.0)(x, time)
    torch.testing.assert_close(found, weak(x, time) + 2.0 * (strong(x, time) - weak(x, time)))
    assert torch.equal(Guided(strong, {}, weak=weak)(x, time), strong(x, time))
