"""Calls of a pipeline that follows a plan: whose they are is checked, and nothing that they ask for is ignored."""

import copy
import dataclasses
import pickle

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

from fewstep.errors import FewstepError, IdentityError, PlanError
from fewstep.pipelines import PipelineSampler, attach, identity_of, plan_of, process_of, save_pipeline
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.plan import Identity
from fewstep.solvers import ddim, grids
from tests.pipelines import tiny_pipelines as tiny

CALL = tiny.CALLS["sd"]


def following(name, folder, steps=2, **options):
    """A pipeline that follows its own plan."""
    pipe = tiny.MAKERS[name](folder)
    attach(pipe, plan_of(pipe, steps, **tiny.CALLS[name]), **options)
    return pipe


def draw(pipe, name="sd", steps=2, **options):
    return tiny.draw(pipe, name, tiny.conditions(name, 1), [0], steps=steps, **options)


def test_a_plan_belongs_to_the_network_it_was_attached_to(tmp_path):
    pipe = following("sd", tmp_path)
    assert pipe.scheduler.plan.identity == identity_of(pipe)
    draw(pipe)
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(2)
    with pytest.raises(IdentityError, match="belongs to model"):
        draw(pipe)


def test_guidance_is_that_of_the_pipeline_that_calls(tmp_path):
    pipe = following("sd", tmp_path, guidance=1.0)
    draw(pipe, guidance_scale=1.0)
    other = StableDiffusionPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    with pytest.raises(IdentityError, match="guidance"):
        draw(other, guidance_scale=3.0)
    draw(other, guidance_scale=1.0)  # the last call of the other pipeline plays no part
    with pytest.raises(IdentityError, match="guidance"):
        draw(pipe, guidance_scale=3.0)
    draw(other, guidance_scale=0.0)


def test_a_guidance_up_to_one_is_none(tmp_path):
    pipe = following("sd", tmp_path, guidance=1.0)
    plan = pipe.scheduler.plan
    plan.check(Identity(guidance=0.0))
    pipe.scheduler.plan.replace(identity=Identity(guidance=0.5)).check(Identity(guidance=1.0))
    assert torch.equal(draw(pipe, guidance_scale=0.0), draw(pipe, guidance_scale=1.0))
    with pytest.raises(IdentityError, match="guidance"):
        plan.check(Identity(guidance=1.5))


def test_a_negative_prompt_beside_embedded_guidance_is_guidance(tmp_path):
    pipe = following("flux", tmp_path, guidance=1.0)
    draw(pipe, "flux", true_cfg_scale=4.0)  # without a negative prompt diffusers ignores it
    draw(pipe, "flux", true_cfg_scale=1.0, negative_prompt="b")
    with pytest.raises(IdentityError, match="true_cfg_scale"):
        draw(pipe, "flux", true_cfg_scale=4.0, negative_prompt="b")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sd", {"eta": 0.5}),
        ("sd", {"timesteps": [900, 100]}),
        ("sd", {"sigmas": [5.0, 1.0]}),
        ("ddim", {"eta": 1.0}),
        ("ddim", {"use_clipped_model_output": True}),
        ("flux", {"sigmas": [0.9, 0.1]}),
        ("sd3", {"sigmas": [0.9, 0.1]}),
    ],
)
def test_a_schedule_of_its_own_is_refused_and_not_ignored(name, options, tmp_path):
    pipe = following(name, tmp_path)
    draw(pipe, name)
    with pytest.raises(IdentityError, match=f"would ignore {next(iter(options))}"):
        draw(pipe, name, **options)
    with pytest.raises(IdentityError, match=f"would ignore {next(iter(options))}"):
        PipelineSampler(pipe, 1.0, {**tiny.CALLS[name], **options})(pipe.scheduler.plan, tiny.conditions(name, 1), [0])


@pytest.mark.parametrize(("name", "options"), [("sd", {"eta": 1.0}), ("flux", {"sigmas": [0.9, 0.1]})])
def test_what_the_plan_was_read_with_may_be_asked_for(name, options, tmp_path):
    pipe = tiny.MAKERS[name](tmp_path)
    wanted = draw(pipe, name, **options)
    attach(pipe, plan_of(pipe, 2, **options, **tiny.CALLS[name]))
    assert torch.allclose(draw(pipe, name, **options), wanted, atol=1e-5)
    assert torch.allclose(draw(pipe, name), wanted, atol=1e-5)
    if name == "sd":
        with pytest.raises(IdentityError, match="would ignore eta"):
            draw(pipe, name, eta=0.0)


def test_the_eta_of_a_solver_is_known(tmp_path):
    pipe = tiny.stable_diffusion(tmp_path)
    process, prediction = process_of(pipe)
    attach(pipe, ddim(process, prediction, grids.trailing(process, 2), eta=1.0))
    draw(pipe, eta=1.0)
    with pytest.raises(IdentityError, match="would ignore eta"):
        draw(pipe, eta=0.3)


@pytest.mark.parametrize("made", ["read", "solver"])
def test_another_size_is_refused_where_the_shift_depends_on_it(made, tmp_path):
    pipe = tiny.flux(tmp_path)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    wanted = draw(pipe, "flux")
    process, prediction = process_of(pipe, **tiny.CALLS["flux"])
    grid = grids.uniform(process, 2)
    plan = plan_of(pipe, 2, **tiny.CALLS["flux"]) if made == "read" else ddim(process, prediction, grid)
    attach(pipe, plan)
    found = draw(pipe, "flux")
    if made == "read":
        assert torch.allclose(found, wanted, atol=1e-5)
    with pytest.raises(IdentityError, match="another size"):
        draw(pipe, "flux", height=32, width=32)
    with pytest.raises(IdentityError, match="another size"):
        PipelineSampler(pipe, 1.0, {**tiny.CALLS["flux"], "height": 32, "width": 32})(plan, ["a"], [0])


def varied(pipe):
    """The plan of the pipeline with a skipped block in its second row."""
    plan = pipe.scheduler.plan
    rows = [plan.rows[0], dataclasses.replace(plan.rows[1], network="skip:1")]
    return plan.replace(rows=tuple(rows))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))], ids=["copy", "pickle"])
@pytest.mark.parametrize("variants", [False, True])
def test_copies_of_a_pipeline_with_a_plan_stand_alone(way, variants, tmp_path):
    pipe = following("sd", tmp_path)
    if variants:
        attach(pipe, varied(pipe))
    wanted = draw(pipe)
    other = way(pipe)
    assert other.scheduler is not pipe.scheduler
    assert torch.equal(draw(other), wanted)
    with torch.no_grad():
        other.unet.conv_in.weight.mul_(2)
    with pytest.raises(IdentityError, match="belongs to model"):
        draw(other)
    assert torch.equal(draw(pipe), wanted)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())


def test_nothing_is_left_after_an_interrupted_call(tmp_path):
    pipe = following("sd", tmp_path)
    attach(pipe, varied(pipe))
    wanted = draw(pipe)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(pipe, callback_on_step_end=stop)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.zeros(1, 16, 32)
    with torch.no_grad():
        pipe.unet(x, 500, encoder_hidden_states=text)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())
    other = pickle.loads(pickle.dumps(pipe))
    assert torch.equal(draw(other), wanted)
    assert torch.equal(draw(pipe), wanted)


def test_a_pipeline_with_offloaded_weights_follows_its_plan(tmp_path):
    from accelerate import cpu_offload

    pipe = following("sd", tmp_path)
    wanted = draw(pipe)
    cpu_offload(pipe.unet, execution_device="cpu")
    assert pipe.unet.conv_in.weight.is_meta
    assert torch.allclose(draw(pipe), wanted, atol=1e-5)
    attach(pipe, pipe.scheduler.plan)
    with pytest.raises(FewstepError, match=r"offloaded.*remove_all_hooks"):
        save_pipeline(pipe, tmp_path / "out")
    pipe.remove_all_hooks()
    save_pipeline(pipe, tmp_path / "out")
    assert torch.allclose(draw(pipe), wanted, atol=1e-5)


def test_a_bfloat16_copy_runs_the_plan_of_its_float32_original(tmp_path):
    pipe = following("sd", tmp_path)
    half = copy.deepcopy(pipe).to(torch.bfloat16)
    assert bool(draw(half).isfinite().all())
    attach(half, pipe.scheduler.plan)


def test_late_starts_are_checked_too(tmp_path):
    pipe = following("sd", tmp_path, steps=4)
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    image = torch.rand(1, 3, 16, 16)
    given = {"image": image, "strength": 0.5, "num_inference_steps": 4, "output_type": "pt"}
    other("a", guidance_scale=1.0, **given)
    with pytest.raises(IdentityError, match="would ignore eta"):
        other("a", guidance_scale=1.0, eta=0.5, **given)


@pytest.mark.parametrize(
    "entries",
    [
        {"replaced": "DDIMScheduler"},
        {"replaced": ["DDIMScheduler"]},
        {"replaced": {"beta_start": 0.1}},
        {"replaced": {"_class_name": 3}},
        {"adapters": "turbo"},
        {"adapters": ["turbo"]},
        {"adapters": {"turbo": "abc"}},
        {"adapters": {"turbo": {"fingerprint": "abc"}}},
        {"adapters": {"turbo": {"fingerprint": "abc", "weight": float("nan")}}},
        {"adapters": {"turbo": {"fingerprint": 3, "weight": 1.0}}},
        {"adapters": {"": {"fingerprint": "abc", "weight": 1.0}}},
    ],
)
def test_malformed_entries_of_the_configuration_are_named(entries, tmp_path):
    plan = plan_of(tiny.stable_diffusion(tmp_path), 2, **CALL)
    with pytest.raises(PlanError, match=next(iter(entries))):
        PlanScheduler(plan=plan.to_dict(), **entries)


@pytest.mark.parametrize(
    "replaced", [{"_class_name": "FewstepError"}, {"_class_name": "DDIMScheduler", "num_train_timesteps": "x"}]
)
def test_a_replaced_scheduler_that_cannot_be_made_is_named(replaced, tmp_path):
    pipe = following("sd", tmp_path)
    pipe.scheduler.register_to_config(replaced=replaced)
    with pytest.raises(FewstepError, match="replaced"):
        process_of(pipe)


def test_a_plan_belongs_to_both_networks_of_a_pipeline(tmp_path):
    """Wan 2.2 has a second network for low noise; a plan of an earlier version knows the first alone."""
    pipe = tiny.MAKERS["wan"](tmp_path)
    first = identity_of(pipe)
    pipe.register_modules(transformer_2=copy.deepcopy(pipe.transformer))
    both = identity_of(pipe)
    both.check(both)
    first.check(both)
    with pytest.raises(IdentityError, match="belongs to model"):
        both.check(first)
    with torch.no_grad():
        next(pipe.transformer_2.parameters()).add_(1.0)
    with pytest.raises(IdentityError, match="belongs to model"):
        both.check(identity_of(pipe))
