"""What a scheduler does counts, not its name or configuration; a refusal says what happened and a mend that works."""

import re

import diffusers as d
import pytest
import torch

from fewstep.errors import PlanError
from fewstep.executor import sample
from fewstep.pipelines.probing import plan_of_scheduler
from tests.core.toys import SHAPE, STABLE_DIFFUSION, departure, run_diffusers, toy

SD = STABLE_DIFFUSION
ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}


class MyEuler(d.EulerDiscreteScheduler):
    """A user's subclass."""


class MyFlow(d.FlowMatchEulerDiscreteScheduler):
    def step(self, model_output, timestep, sample, **options):
        return super().step(model_output, timestep, sample, **options)


@pytest.mark.parametrize(
    "scheduler",
    [
        d.EulerDiscreteScheduler.from_config(d.DDIMScheduler(clip_sample=True, **SD).config),
        d.FlowMatchEulerDiscreteScheduler.from_config({"clip_sample": True, "thresholding": True, "shift": 2.0}),
        d.DPMSolverMultistepScheduler.from_config({"clip_sample": True, **SD}),
        MyEuler(**SD),
        MyFlow(shift=3.0),
    ],
    ids=lambda s: type(s).__name__,
)
def test_settings_that_a_class_ignores_and_subclasses_are_no_reason_to_refuse(scheduler):
    plan = plan_of_scheduler(scheduler, 4)
    assert departure(sample(plan, toy, seeds=[1], shape=SHAPE), run_diffusers(scheduler, 4, toy, [1])) < 2e-5


@pytest.mark.parametrize(
    ("scheduler", "steps", "reason"),
    [
        (d.DDIMScheduler(**ZERO), 4, "its own step 0 .* gives NaN or infinity"),
        (d.LCMScheduler(**{**SD, "rescale_betas_zero_snr": True}), 4, "gives NaN or infinity"),
        (d.DPMSolverMultistepInverseScheduler(algorithm_type="sde-dpmsolver++", **SD), 5, "gives NaN or infinity"),
        (d.DDPMScheduler(variance_type="learned_range", clip_sample=False), 5, "variance that its network predicts"),
        (d.DDPMScheduler(variance_type="learned", clip_sample=False), 5, "variance that its network predicts"),
        (d.DDIMScheduler(20, steps_offset=1, clip_sample=False), 20, r"its step 0 \(time 20\) fails with IndexError"),
        (d.DDIMScheduler(clip_sample=True, thresholding=True), 4, "thresholding=True and clip_sample=True"),
        (d.UnCLIPScheduler(clip_sample=True), 4, "clip_sample=True, which is not linear"),
        (d.LCMScheduler(clip_sample=True, clip_sample_range=500.0, **SD), 4, "clip_sample=True, which is not linear"),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "config") else None,
)
def test_the_mend_of_a_refusal_works(scheduler, steps, reason):
    with pytest.raises(PlanError, match=reason) as caught:
        plan_of_scheduler(scheduler, steps)
    settings = re.search(r"from_config\(scheduler\.config, (.*)\)\.", str(caught.value))
    mended = type(scheduler).from_config(scheduler.config, **eval(f"dict({settings[1]})"))
    assert plan_of_scheduler(mended, steps).steps == steps


def test_a_missing_shift_is_not_blamed_on_the_step_count():
    with pytest.raises(PlanError, match=r"refused 4 steps.*fewstep\.plan_of") as caught:
        plan_of_scheduler(d.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 4)
    assert "step count" not in str(caught.value)
    with pytest.raises(PlanError, match="Choose another step count"):
        plan_of_scheduler(d.DDIMScheduler(), 2000)


def test_outputs_of_another_sign_are_refused():
    """MiniMax predicts data minus noise, which is no prediction of this library."""
    with pytest.raises(PlanError, match="do not mean velocity: .* 1 data \\+ -1 noise"):
        plan_of_scheduler(d.MiniMaxH3Scheduler(), 5)


@pytest.mark.parametrize("data", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("made", [d.EDMEulerScheduler, d.EDMDPMSolverMultistepScheduler])
def test_edm_outputs_have_the_sign_of_their_scheduler(made, kind, data):
    scheduler = made(prediction_type=kind, sigma_data=data)
    plan = plan_of_scheduler(scheduler, 5)
    assert departure(sample(plan, toy, seeds=[1], shape=SHAPE), run_diffusers(scheduler, 5, toy, [1])) < 2e-5
    scheduler.set_timesteps(5)
    x, n = torch.randn(2, 1, 2, 2, 2, dtype=torch.float64)
    for row, sigma in zip(plan.rows, scheduler.sigmas, strict=False):
        p, m = plan.prediction.sample(float(row.alpha), float(row.sigma))
        torch.testing.assert_close(p * x + m * n, scheduler.precondition_outputs(x, n, sigma), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_an_edm_plan_starts_late_as_its_scheduler_does(kind):
    scheduler = d.EDMDPMSolverMultistepScheduler(prediction_type=kind)
    plan = plan_of_scheduler(scheduler, 6)
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(2)
    x = first = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(2)) * 2.5
    for time in scheduler.timesteps[2:]:
        x = scheduler.step(toy(scheduler.scale_model_input(x, time), time), time, x, return_dict=False)[0]
    late = plan.starting_at(2)
    assert departure(sample(late, toy, seeds=[1], shape=SHAPE, state=first), x) < 2e-5
    assert plan_of_scheduler(scheduler, 6) == plan


@pytest.mark.parametrize("made", [d.KDPM2DiscreteScheduler, d.HeunDiscreteScheduler])
def test_a_row_between_two_levels_stands_where_the_row_before_leads(made):
    plan = plan_of_scheduler(made(**SD), 4)
    for row, following in zip(plan.rows[:-1:2], plan.rows[1::2], strict=True):
        (change,) = row.output.values()  # Euler: x + (sigma' - sigma) n
        assert float(following.sigma) == pytest.approx(float(row.sigma) + change, rel=1e-4)
