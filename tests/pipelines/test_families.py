"""Every pipeline family that docs/pipelines.md lists: its plan read, another made, run, saved and opened again."""

import pytest
import torch
from diffusers import DiffusionPipeline

from fewstep.errors import FewstepError, IdentityError, PlanError
from fewstep.pipelines import (
    PipelineSampler,
    attach,
    backbone_of,
    identity_of,
    load_pipeline,
    plan_of,
    process_of,
    save_pipeline,
    trace,
)
from fewstep.quant import quantize
from fewstep.solvers import ddim, dpm_solver_pp_2m, euler, grids
from tests.pipelines import tiny_pipelines as tiny

SEEDS = [3, 1, 4]


def made(name, folder):
    return name, tiny.MAKERS[name](folder), tiny.conditions(name, 3)


@pytest.fixture(params=list(tiny.MAKERS))
def case(request, tmp_path):
    return made(request.param, tmp_path)


NEAR = {"sd2": "sd", "pixart-sigma": "pixart", "ddpm": "ddim"}
"""Families with the network of another one: the prediction, the class of the pipeline or the scheduler is another."""


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.thorough if n in NEAR else ()) for n in tiny.MAKERS])
def network_case(request, tmp_path):
    """Of what concerns the network alone."""
    return made(request.param, tmp_path)


def replanned(pipe, name, steps=3, solver=dpm_solver_pp_2m, **options):
    process, prediction = process_of(pipe, **tiny.CALLS[name])
    return solver(process, prediction, grids.uniform(process, steps), **options)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_plan_of_a_pipeline_draws_what_the_pipeline_draws(case, guidance):
    name, pipe, conditions = case
    options = {} if conditions is None else {"guidance_scale": guidance}
    if conditions is None and guidance != 1.0:
        with pytest.raises(FewstepError, match="knows no guidance"):
            PipelineSampler(pipe, guidance)(plan_of(pipe, 2), conditions, SEEDS)
        return
    theirs = {key: value - (name == "z-image") for key, value in options.items()}  # counts from 0
    wanted = tiny.draw(pipe, name, conditions, SEEDS, **theirs)
    plan = plan_of(pipe, 4, **options, **tiny.CALLS[name])
    with torch.no_grad():
        found = PipelineSampler(pipe, guidance, tiny.CALLS[name], batch=2)(plan, conditions, SEEDS)
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, atol=2e-5)


def test_a_new_plan_runs_and_survives_plain_diffusers(case, tmp_path):
    name, pipe, conditions = case
    process, prediction = process_of(pipe, **tiny.CALLS[name])
    plan = replanned(pipe, name)
    with torch.no_grad():
        wanted = PipelineSampler(pipe, 1.0, tiny.CALLS[name])(plan, conditions, SEEDS)
    attach(pipe, plan.replace(identity=identity_of(pipe)))
    assert torch.equal(tiny.draw(pipe, name, conditions, SEEDS, steps=3), wanted)
    assert process_of(pipe, **tiny.CALLS[name]) == (process, prediction)  # known under the plan too
    save_pipeline(pipe, tmp_path / "out")
    plain = DiffusionPipeline.from_pretrained(tmp_path / "out")
    plain.set_progress_bar_config(disable=True)
    assert torch.allclose(tiny.draw(plain, name, conditions, SEEDS, steps=3), wanted, atol=1e-5)
    assert process_of(plain, **tiny.CALLS[name]) == (process, prediction)
    with pytest.raises(IdentityError, match="num_inference_steps=3"):
        tiny.draw(plain, name, conditions, SEEDS, steps=4)


def test_a_low_bit_network_and_its_plan_are_kept(network_case, tmp_path):
    name, pipe, conditions = network_case
    plan = plan_of(pipe, 2, **tiny.CALLS[name])
    quantize(backbone_of(pipe), "w4a8")
    attach(pipe, plan.replace(identity=identity_of(pipe)))
    wanted = tiny.draw(pipe, name, conditions, SEEDS, steps=2)
    save_pipeline(pipe, tmp_path / "out")
    loaded = load_pipeline(tmp_path / "out")
    assert identity_of(loaded).quantization == "w4a8"
    assert torch.allclose(tiny.draw(loaded, name, conditions, SEEDS, steps=2), wanted, atol=1e-5)


def test_fresh_noise_belongs_to_the_sample_and_not_to_the_batch(network_case):
    name, pipe, conditions = network_case
    plan = replanned(pipe, name, solver=ddim, eta=1.0)
    assert plan.stochastic
    with torch.no_grad():
        together = PipelineSampler(pipe, 1.0, tiny.CALLS[name], batch=3)(plan, conditions, SEEDS)
        torch.manual_seed(99)  # the global stream plays no part
        alone = PipelineSampler(pipe, 1.0, tiny.CALLS[name], batch=1)(plan, conditions, SEEDS)
    # other noise changes pixels by whole units; rounding in states of several hundred by 1e-5
    assert torch.allclose(together, alone, atol=1e-3)
    assert not torch.allclose(together[0], together[1], atol=1e-1)


def test_latents_and_traces_are_those_of_the_images(network_case):
    name, pipe, conditions = network_case
    plan, generate = replanned(pipe, name), PipelineSampler(pipe, 1.0, tiny.CALLS[name], batch=2)
    with torch.no_grad():
        latents = generate(plan, conditions, SEEDS, output="latent")
    seen = trace(generate, plan, conditions, SEEDS)
    assert seen.states.shape == seen.outputs.shape == (3, *latents.shape)
    row = plan.rows[-1]
    final = sum(c * seen.states[j] for j, c in row.state.items()) + sum(
        c * seen.outputs[j] for j, c in row.output.items()
    )
    assert torch.allclose(final, latents, atol=1e-4)
    forced = trace(generate, plan, conditions, SEEDS, along=seen)
    assert torch.allclose(forced.outputs, seen.outputs, atol=1e-5)


def test_gradients_reach_the_coefficients(network_case):
    name, pipe, conditions = network_case
    plan, generate = replanned(pipe, name, steps=2), PipelineSampler(pipe, 1.0, tiny.CALLS[name])
    backbone_of(pipe).requires_grad_(False)
    scale = torch.ones(2, dtype=torch.float64, requires_grad=True)
    output = "latent" if "num_frames" in tiny.CALLS[name] else "image"  # video decoders keep large caches
    value = generate(plan.scaled(torch.ones(2), scale), conditions, SEEDS, output).square().sum()
    (slope,) = torch.autograd.grad(value, scale)
    assert bool(slope.isfinite().all())
    assert float(slope.abs().min()) > 0


@pytest.mark.parametrize("name", ["sd", "sd2", "sdxl", "pixart", "pixart-sigma"])
def test_a_plan_in_sigma_space_runs_where_the_pipeline_scales_its_input(name, tmp_path):
    pipe, conditions = tiny.MAKERS[name](tmp_path), tiny.conditions(name, 3)
    plan, twin = replanned(pipe, name, solver=euler), replanned(pipe, name, solver=ddim)
    twin = twin.replace(prior_scale=twin.rows[0].sigma)  # k-diffusion starts at sigma times noise, without data
    generate = PipelineSampler(pipe, 1.0, tiny.CALLS[name])
    with torch.no_grad():
        assert torch.allclose(generate(plan, conditions, SEEDS), generate(twin, conditions, SEEDS), atol=2e-4)


@pytest.mark.parametrize("name", ["dit", "ddim", "ddpm"])
def test_a_plan_in_sigma_space_is_refused_where_the_pipeline_does_not(name, tmp_path):
    pipe, conditions = tiny.MAKERS[name](tmp_path), tiny.conditions(name, 3)
    with pytest.raises(PlanError, match="not in sigma space"):
        PipelineSampler(pipe, 1.0, tiny.CALLS[name])(replanned(pipe, name, solver=euler), conditions, SEEDS)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_mean_of_the_first_state_reaches_the_network_or_is_refused(name, tmp_path):
    pipe, conditions = tiny.MAKERS[name](tmp_path), tiny.conditions(name, 3)
    plan, generate = replanned(pipe, name), PipelineSampler(pipe, 1.0, tiny.CALLS[name])
    moved = plan.replace(prior_offset=0.5)
    if name == "flux":
        with pytest.raises(PlanError, match="has a mean"):
            generate(moved, conditions, SEEDS)
        return
    states = {}

    def note(_, args):
        states.setdefault(key, args[0].clone())

    hook = pipe.unet.register_forward_pre_hook(note)
    for key, given in (("plain", plan), ("moved", moved)):
        seen = trace(generate, given, conditions, SEEDS)
        assert torch.equal(seen.states[0], states[key])
    hook.remove()
    assert torch.allclose(states["moved"], states["plain"] + 0.5, atol=1e-6)


def test_doubled_states_share_one_stream(tmp_path):
    pipe = tiny.dit(tmp_path)  # guides by doubling the states, and passes no generator
    plan = replanned(pipe, "dit", solver=ddim, eta=1.0)
    with torch.no_grad():
        together = PipelineSampler(pipe, 3.0, batch=3)(plan, [7, 1, 0], SEEDS)
        alone = PipelineSampler(pipe, 3.0, batch=1)(plan, [7, 1, 0], SEEDS)
        without = PipelineSampler(pipe, 1.0, batch=3)(plan, [7, 1, 0], SEEDS)
    assert torch.allclose(together, alone, atol=2e-5)
    assert not torch.allclose(together, without, atol=1e-3)
