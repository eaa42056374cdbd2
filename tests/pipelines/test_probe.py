import copy

import diffusers as d
import pytest
import torch

from fewstep.errors import PlanError
from fewstep.executor import sample
from fewstep.pipelines.probing import plan_of_scheduler
from tests.core.toys import SHAPE, STABLE_DIFFUSION, departure, run_diffusers, toy

LINEAR = [
    (d.DDIMScheduler, {"clip_sample": False}, 5, {}),
    (d.DDIMScheduler, {"clip_sample": False, "timestep_spacing": "trailing"}, 4, {"step": {"eta": 0.7}}),
    (d.DDPMScheduler, {"clip_sample": False}, 6, {}),
    (d.EulerDiscreteScheduler, {}, 5, {}),
    (d.EulerDiscreteScheduler, {"use_karras_sigmas": True}, 5, {}),
    (d.EulerAncestralDiscreteScheduler, {}, 5, {}),
    (d.HeunDiscreteScheduler, {}, 4, {}),
    (d.LMSDiscreteScheduler, {}, 6, {}),
    (d.PNDMScheduler, {}, 6, {}),
    (d.PNDMScheduler, {"skip_prk_steps": True}, 6, {}),
    (d.DEISMultistepScheduler, {}, 6, {}),
    (d.UniPCMultistepScheduler, {}, 6, {}),
    (d.UniPCMultistepScheduler, {"solver_order": 3}, 8, {}),
    (d.DPMSolverMultistepScheduler, {}, 8, {}),
    (d.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, 6, {}),
    (d.DPMSolverMultistepScheduler, {"solver_order": 3, "use_karras_sigmas": True}, 10, {}),
    (d.DPMSolverSinglestepScheduler, {}, 6, {}),
    (d.LCMScheduler, {}, 4, {}),
    (d.TCDScheduler, {}, 4, {"step": {"eta": 0.3}}),
]
FLOW = [
    (d.FlowMatchEulerDiscreteScheduler, {"shift": 3.0}, 5, {}),
    (d.FlowMatchEulerDiscreteScheduler, {}, 3, {"set_timesteps": {"sigmas": [1.0, 0.6, 0.3]}}),
    (d.FlowMatchEulerDiscreteScheduler, {"use_dynamic_shifting": True}, 4, {"set_timesteps": {"mu": 0.8}}),
    (d.FlowMatchHeunDiscreteScheduler, {}, 4, {}),
    (d.EDMEulerScheduler, {}, 5, {}),
    (d.EDMDPMSolverMultistepScheduler, {}, 5, {}),
]
CASES = [(k, {**STABLE_DIFFUSION, **c}, n, s) for k, c, n, s in LINEAR] + FLOW


def name(value):
    return value.__name__ if isinstance(value, type) else None


@pytest.mark.parametrize(("kind", "config", "steps", "settings"), CASES, ids=name)
def test_the_plan_runs_as_the_scheduler(kind, config, steps, settings):
    plan = plan_of_scheduler(kind(**config), steps, **settings)
    own = "sigmas" in settings.get("set_timesteps", {})
    expected = run_diffusers(kind(**config), None if own else steps, toy, [1, 2], **settings)
    ours = sample(plan, toy, seeds=[1, 2], shape=SHAPE)
    assert departure(ours, expected) < 2e-5
    assert plan.steps == len(plan.rows) >= steps
    assert plan.origin["scheduler"] == kind.__name__


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", [d.DDIMScheduler, d.DPMSolverMultistepScheduler, d.UniPCMultistepScheduler])
def test_other_predictions(scheduler, kind):
    extra = {"clip_sample": False} if scheduler is d.DDIMScheduler else {}
    config = {**STABLE_DIFFUSION, **extra, "prediction_type": kind}
    plan = plan_of_scheduler(scheduler(**config), 5)
    assert plan.prediction.kind == kind
    expected = run_diffusers(scheduler(**config), 5, toy, [4])
    assert departure(sample(plan, toy, seeds=[4], shape=SHAPE), expected) < 2e-5


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (d.DDIMScheduler, {"clip_sample": True}),
        (d.DDPMScheduler, {"clip_sample": False, "thresholding": True}),
        (d.DPMSolverMultistepScheduler, {"thresholding": True}),
    ],
)
def test_clipping_is_refused_with_the_mend(kind, config):
    switch = "thresholding" if config.get("thresholding") else "clip_sample"
    with pytest.raises(PlanError, match=rf"{switch}=True, which is not linear.*from_config"):
        plan_of_scheduler(kind(**config), 4)


def test_schedulers_that_need_a_foreign_history_are_refused():
    with pytest.raises(PlanError, match="IPNDMScheduler cannot be read as a plan"):
        plan_of_scheduler(d.IPNDMScheduler(), 4)


class Squashed(d.DDIMScheduler):
    """A scheduler that is nonlinear and does not say so."""

    def step(self, model_output, timestep, sample, **rest):
        return super().step(model_output.clamp(-20, 20), timestep, sample, **rest)


class Shifted(d.DDIMScheduler):
    """Adds a constant."""

    def step(self, model_output, timestep, sample, **rest):
        return super().step(model_output, timestep, sample + 0.01, **rest)


class Mixing(d.DDIMScheduler):
    """Not elementwise."""

    def step(self, model_output, timestep, sample, **rest):
        return super().step(model_output - model_output.mean(), timestep, sample, **rest)


@pytest.mark.parametrize("kind", [Squashed, Shifted, Mixing])
def test_hidden_nonlinearity_is_found(kind):
    with pytest.raises(PlanError, match=f"{kind.__name__} cannot be read as a plan"):
        plan_of_scheduler(kind(clip_sample=False), 4)


@pytest.mark.parametrize("kind", [d.UniPCMultistepScheduler, d.EulerAncestralDiscreteScheduler])
def test_the_scheduler_is_left_untouched(kind):
    scheduler = kind(**STABLE_DIFFUSION)
    scheduler.set_timesteps(7)
    before = copy.deepcopy(scheduler)
    state = torch.get_rng_state()
    plan_of_scheduler(scheduler, 4)
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in vars(before).items():
        now = vars(scheduler)[key]
        assert torch.equal(value, now) if isinstance(value, torch.Tensor) else str(value) == str(now), key


def test_bad_arguments_are_named():
    scheduler = d.DDIMScheduler(clip_sample=False)
    with pytest.raises(PlanError, match="step takes no argument 'etta'.*Did you mean 'eta'"):
        plan_of_scheduler(scheduler, 4, step={"etta": 1.0})
    with pytest.raises(PlanError, match="set_timesteps takes no argument 'sigma'"):
        plan_of_scheduler(scheduler, 4, set_timesteps={"sigma": [1.0]})
    for steps in (0, -3, 2.5, True):
        with pytest.raises(PlanError, match="positive whole number"):
            plan_of_scheduler(scheduler, steps)
    with pytest.raises(PlanError, match="refused 2000 steps"):
        plan_of_scheduler(scheduler, 2000)


@pytest.mark.parametrize(
    ("kind", "final"),
    [
        (d.DPMSolverMultistepScheduler(**STABLE_DIFFUSION), (1.0, 0.0)),
        (d.LCMScheduler(**STABLE_DIFFUSION), (1.0, 0.0)),
        (d.FlowMatchEulerDiscreteScheduler(), (1.0, 0.0)),
        (d.EulerDiscreteScheduler(**STABLE_DIFFUSION), (1.0, 0.0)),
    ],
)
def test_where_the_plan_ends(kind, final):
    plan = plan_of_scheduler(kind, 4)
    # LCM's boundary scaling leaves a little of the state, 1e-7
    assert (plan.final_alpha, plan.final_sigma) == pytest.approx(final, abs=1e-5)


def test_old_schedulers_end_at_the_first_table_entry():
    scheduler = d.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **STABLE_DIFFUSION)
    plan = plan_of_scheduler(scheduler, 5)
    first = float(scheduler.alphas_cumprod[0])
    assert (plan.final_alpha, plan.final_sigma) == pytest.approx((first**0.5, (1 - first) ** 0.5), rel=1e-5)
