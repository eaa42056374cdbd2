"""Samplers are changed as diffusers' users do; what a scheduler does counts, and steps keep their meaning."""

import copy

import diffusers as d
import pytest
import torch

from fewstep.errors import FewstepError, IdentityError
from fewstep.pipelines import PipelineSampler, attach, load_pipeline, plan_of, process_of, save_pipeline
from fewstep.solvers import ddim, grids
from tests.pipelines import tiny_pipelines as tiny
from tests.pipelines.test_image_to_image import draw, opened

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


class Mine(d.FlowMatchEulerDiscreteScheduler):
    """A user's own class."""


@pytest.mark.parametrize(
    ("scheduler", "made"),
    [
        (d.DDIMScheduler(clip_sample=False, **tiny.BETAS), d.EulerDiscreteScheduler),
        (d.DDIMScheduler(prediction_type="v_prediction", **tiny.BETAS), d.UniPCMultistepScheduler),
        (d.UniPCMultistepScheduler(**FLOW), d.DPMSolverMultistepScheduler),
        (d.FlowMatchEulerDiscreteScheduler(shift=2.5), d.FlowMatchHeunDiscreteScheduler),
        (Mine(shift=2.5), d.FlowMatchEulerDiscreteScheduler),
    ],
    ids=lambda s: getattr(s, "__name__", type(s).__name__),
)
def test_a_sampler_made_from_the_configuration_under_a_plan_is_that_of_the_scheduler(scheduler, made, tmp_path):
    pipe = tiny.stable_diffusion(tmp_path)
    pipe.scheduler = scheduler
    scheduler.save_pretrained(tmp_path / "scheduler")
    process = process_of(pipe)
    attach(pipe, ddim(*process, grids.uniform(process[0], 3)))
    save_pipeline(pipe, tmp_path / "out")
    stored = type(scheduler).from_pretrained(tmp_path / "scheduler")  # a file does not say what was a default
    for one, origin in ((pipe, scheduler), (load_pipeline(tmp_path / "out"), stored)):
        wanted = made.from_config(origin.config)
        found = made.from_config(one.scheduler.config)
        assert {k: found.config[k] for k in wanted.config if not k.startswith("_")} == {
            k: v for k, v in wanted.config.items() if not k.startswith("_")
        }
        assert process_of(one) == process
        one.scheduler = found
        assert process_of(one) == process
        attach(one, ddim(*process, grids.uniform(process[0], 2)))
        assert "plan" not in one.scheduler.config["replaced"]


@pytest.mark.parametrize(
    ("scheduler", "shift"),
    [
        (d.FlowMatchEulerDiscreteScheduler.from_config({**FLOW, "shift": 8.0}), 8.0),
        (d.UniPCMultistepScheduler.from_config({**FLOW, "shift": 8.0}), 3.0),
        (d.FlowMatchEulerDiscreteScheduler(shift=8.0, use_karras_sigmas=True), 8.0),
        (d.FlowMatchEulerDiscreteScheduler(shift=8.0, shift_terminal=0.1), 8.0),
        (d.FlowMatchLCMScheduler(shift=8.0), 8.0),
        (d.DEISMultistepScheduler(**FLOW), 3.0),
        (Mine(shift=1.7), 1.7),
    ],
    ids=lambda s: type(s).__name__,
)
def test_the_shift_is_what_the_scheduler_does(scheduler, shift, tmp_path):
    pipe = tiny.sd3(tmp_path)
    pipe.scheduler = scheduler
    assert process_of(pipe)[0].shift == shift
    if hasattr(scheduler, "set_shift"):
        scheduler.set_shift(5.0)
        assert process_of(pipe)[0].shift == 5.0
        attach(pipe, ddim(*process_of(pipe), grids.uniform(process_of(pipe)[0], 3)))
        assert process_of(pipe)[0].shift == 5.0


def test_flow_settings_that_a_class_ignores_make_no_flow(tmp_path):
    pipe = tiny.stable_diffusion(tmp_path)
    known = process_of(pipe)
    pipe.scheduler = d.DDIMScheduler.from_config({**pipe.scheduler.config, "use_flow_sigmas": True, "shift": 3.0})
    assert process_of(pipe) == known
    pipe.scheduler = d.EulerDiscreteScheduler.from_config({**tiny.BETAS, "use_dynamic_shifting": True})
    assert process_of(pipe)[0] == known[0]


def test_asking_a_pipeline_leaves_it_as_it_was(tmp_path):
    pipe = tiny.flux(tmp_path)
    before, config = copy.deepcopy(vars(pipe.scheduler)), pipe.config
    known = set(vars(pipe))
    plan_of(pipe, 3, **tiny.CALLS["flux"])
    process_of(pipe, **tiny.CALLS["flux"])
    assert set(vars(pipe)) == known
    assert pipe.config == config
    assert str(vars(pipe.scheduler)) == str(before)


MANY = [
    (d.PNDMScheduler(skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False, **tiny.BETAS), 6, 7),
    (d.PNDMScheduler(**tiny.BETAS), 6, 15),
    (d.HeunDiscreteScheduler(**tiny.BETAS), 6, 11),
    (d.KDPM2DiscreteScheduler(**tiny.BETAS), 6, 11),
]


@pytest.mark.parametrize(("scheduler", "steps", "rows"), MANY, ids=lambda s: type(s).__name__)
def test_steps_of_several_evaluations_are_called_as_before(scheduler, steps, rows, tmp_path):
    pipe = tiny.stable_diffusion(tmp_path)
    pipe.scheduler = scheduler
    wanted = tiny.draw(pipe, "sd", ["a"], [1], steps=steps)
    plan = plan_of(pipe, steps, **tiny.CALLS["sd"])
    assert plan.steps == rows
    with torch.no_grad():
        assert torch.allclose(PipelineSampler(pipe, 1.0, tiny.CALLS["sd"])(plan, ["a"], [1]), wanted, atol=1e-4)
    attach(pipe, plan)
    for count in (steps, rows):
        assert torch.allclose(tiny.draw(pipe, "sd", ["a"], [1], steps=count), wanted, atol=1e-4)
    assert plan_of(pipe, steps).steps == plan_of(pipe, rows).steps == rows
    with pytest.raises(IdentityError, match=f"num_inference_steps={steps}"):
        tiny.draw(pipe, "sd", ["a"], [1], steps=steps + 20)


@pytest.mark.parametrize(("scheduler", "steps", "rows"), MANY, ids=lambda s: type(s).__name__)
def test_a_late_start_is_that_of_the_scheduler(scheduler, steps, rows, tmp_path):
    pipe, call = opened("StableDiffusionImg2ImgPipeline", tmp_path)
    pipe.scheduler = scheduler
    seen = []

    def note(_pipe, _i, time, values):
        seen.append(float(time))
        return {}

    wanted = draw(pipe, {**call, "callback_on_step_end": note}, steps=steps)
    times, _ = seen[:], seen.clear()
    attach(pipe, plan_of(pipe, steps, guidance_scale=1.0, **call))
    found = draw(pipe, {**call, "callback_on_step_end": note}, steps=steps)
    assert seen == pytest.approx(times)
    if isinstance(scheduler, d.HeunDiscreteScheduler):  # PNDM's own late start repeats a step at the wrong time
        assert torch.allclose(found, wanted, atol=1e-4)
    with pytest.raises(IdentityError, match=f"num_inference_steps={steps}"):
        draw(pipe, call, steps=rows)


def test_lcm_pipelines_keep_their_schedule_and_their_last_estimate(tmp_path):
    pipe = tiny.lcm(tmp_path)
    call = {**tiny.CALLS["lcm"], "original_inference_steps": 40}
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "pt", **call}
    wanted = pipe("a", generator=generator, **options).images
    plan = plan_of(pipe, 4, **call)
    assert plan.origin["original_inference_steps"] == 40
    attach(pipe, plan)
    assert torch.allclose(pipe("a", generator=generator.manual_seed(0), **options).images, wanted, atol=1e-5)
    with pytest.raises(FewstepError, match="original_inference_steps"):
        pipe("a", **{**options, "original_inference_steps": 20})
    state = torch.randn(1, 4, 8, 8)
    pipe.scheduler.set_timesteps(4)
    following, data = pipe.scheduler.step(state, pipe.scheduler.timesteps[0], state, return_dict=False)
    p, m = plan.prediction.sample(float(plan.rows[0].alpha), float(plan.rows[0].sigma))
    torch.testing.assert_close(data, p * state + m * state, rtol=1e-5, atol=1e-5)
    assert following.shape == data.shape
