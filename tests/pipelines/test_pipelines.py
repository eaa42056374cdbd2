"""Real diffusers pipelines with tiny random weights: plans in, plans out, low bits, saved and loaded again."""

import copy

import pytest
import torch
from diffusers import DiffusionPipeline

from fewstep.denoiser import Backbone, Guided
from fewstep.errors import FewstepError, IdentityError, NonFiniteError
from fewstep.executor import sample
from fewstep.pipelines import (
    PipelineSampler,
    attach,
    backbone_of,
    exchanged,
    identity_of,
    load_pipeline,
    plan_of,
    save_pipeline,
    trace,
)
from fewstep.plan import Identity
from fewstep.quant import quantize
from tests.pipelines import tiny_pipelines as tiny

PROMPTS, SEEDS = ["a", "bc", "d", "ef"], [3, 1, 4, 1]
KINDS = ["sd", "sdxl", "pixart", "flux"]
draw = tiny.draw


@pytest.fixture(params=KINDS)
def case(request, tmp_path):
    return request.param, tiny.MAKERS[request.param](tmp_path)


def test_gradients_reach_the_scalars_through_a_low_bit_network(case):
    name, pipe = case
    plan = plan_of(pipe, 2, guidance_scale=1.0, **tiny.CALLS[name])
    quantize(backbone_of(pipe), "w4a8")
    generate = PipelineSampler(pipe, 1.0, tiny.CALLS[name])
    scale = torch.ones(2, dtype=torch.float64, requires_grad=True)
    value = generate(plan.scaled(torch.ones(2), scale), ["a"], [0]).square().sum()
    (slope,) = torch.autograd.grad(value, scale)
    assert bool(slope.isfinite().all())
    assert float(slope.abs().min()) > 0


def test_saved_low_bit_pipeline_loads_plainly_and_refuses_misuse(case, tmp_path):
    name, pipe = case
    plan = plan_of(pipe, 4, guidance_scale=1.0, **tiny.CALLS[name])
    low = copy.deepcopy(backbone_of(pipe))
    quantize(low, "w4a8")
    part = "unet" if hasattr(pipe, "unet") else "transformer"
    low_pipe = exchanged(pipe, {part: low})
    tuned = plan.scaled([1.02, 1.0, 1.0, 0.99], [0.97, 1.0, 1.01, 1.0])
    attach(low_pipe, tuned.replace(identity=identity_of(low_pipe, 1.0)))
    wanted = draw(low_pipe, name, ["a"], [5])
    save_pipeline(low_pipe, tmp_path / "out")

    files = [f.suffix for f in (tmp_path / "out").rglob("*") if f.is_file()]
    assert not {".bin", ".pt", ".pkl", ".ckpt"} & set(files)
    plain = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert torch.allclose(draw(plain, name, ["a"], [5]), wanted, atol=1e-6)
    loaded = load_pipeline(tmp_path / "out")
    assert torch.allclose(draw(loaded, name, ["a"], [5]), wanted, atol=1e-6)
    assert identity_of(loaded).quantization == "w4a8"
    with pytest.raises(IdentityError, match="num_inference_steps=4"):
        draw(plain, name, ["a"], [5], steps=8)
    if name != "flux":  # its guidance is an input of the network, not a doubled batch
        with pytest.raises(IdentityError, match="guidance"):
            draw(plain, name, ["a"], [5], guidance_scale=4.0)
    with pytest.raises(IdentityError, match="belongs to model"):
        attach(pipe, loaded.scheduler.plan)


def test_plan_of_a_pipeline_with_a_stored_plan_is_that_plan(tmp_path):
    pipe = tiny.stable_diffusion(tmp_path)
    plan = plan_of(pipe, 3, guidance_scale=1.0, **tiny.CALLS["sd"])
    attach(pipe, plan)
    assert plan_of(pipe, 3) == plan.replace(identity=identity_of(pipe))
    with pytest.raises(IdentityError, match="3 steps"):
        plan_of(pipe, 4)


def test_guided_executor_equals_the_guided_pipeline(tmp_path):
    pipe = tiny.stable_diffusion(tmp_path)
    plan = plan_of(pipe, 4, guidance_scale=3.0, **tiny.CALLS["sd"])
    wanted = draw(pipe, "sd", PROMPTS, SEEDS, guidance_scale=3.0)
    with torch.no_grad():
        positive, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
        network = Guided(
            Backbone(pipe.unet), {"encoder_hidden_states": positive}, {"encoder_hidden_states": negative}, 3.0
        )
        latents = sample(plan, network, seeds=SEEDS, shape=(4, 8, 8))
        found = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample / 2 + 0.5
    assert torch.allclose(found.clamp(0, 1), wanted, atol=1e-4)


def test_exchanged_parts_leave_settings_and_the_original_alone(tmp_path):
    pipe = tiny.sdxl(tmp_path)
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    encoder, unet = copy.deepcopy(pipe.text_encoder), pipe.unet
    with torch.no_grad():
        encoder.get_input_embeddings().weight.mul_(2)
    low = copy.deepcopy(unet)
    other = exchanged(pipe, {"unet": low, "text_encoder": encoder})
    assert other.config.force_zeros_for_empty_prompt is False
    assert (pipe.unet is unet, other.unet is low, other.vae is pipe.vae) == (True, True, True)
    before, after = (made.encode_prompt("a", device="cpu")[0] for made in (pipe, other))
    assert not torch.equal(before, after)
    save_pipeline(other, tmp_path / "other")
    assert load_pipeline(tmp_path / "other").config.force_zeros_for_empty_prompt is False


def test_trace_forced_along_another_sees_its_states(tmp_path):
    pipe = tiny.stable_diffusion(tmp_path)
    plan = plan_of(pipe, 4, guidance_scale=1.0, **tiny.CALLS["sd"])
    full = PipelineSampler(pipe, 1.0, tiny.CALLS["sd"], batch=3)
    low_unet = copy.deepcopy(pipe.unet)
    quantize(low_unet, "w4a8")
    low = PipelineSampler(exchanged(pipe, {"unet": low_unet}), 1.0, tiny.CALLS["sd"], batch=3)
    along = trace(low, plan, PROMPTS, SEEDS)
    truth = trace(full, plan, PROMPTS, SEEDS, along=along)
    assert torch.equal(truth.states, along.states)
    with torch.no_grad():
        condition = pipe.encode_prompt(PROMPTS, "cpu", 1, False)[0]
        time = torch.tensor(plan.rows[2].network_time)
        expected = Backbone(pipe.unet)(along.states[2], time, encoder_hidden_states=condition)
    assert torch.allclose(truth.outputs[2], expected, atol=1e-5)
    assert float((truth.outputs - along.outputs).abs().max()) > 1e-3


def test_bad_input_is_named(tmp_path):
    with pytest.raises(FewstepError, match="no-such-folder"):
        load_pipeline(tmp_path / "no-such-folder")
    pipe = tiny.stable_diffusion(tmp_path)
    plan = plan_of(pipe, 2, guidance_scale=1.0, **tiny.CALLS["sd"])
    generate = PipelineSampler(pipe, 1.0, tiny.CALLS["sd"])
    with pytest.raises(FewstepError, match="prompts or labels is empty"):
        generate(plan, [], [])
    with pytest.raises(FewstepError, match="one seed per prompt or label"):
        generate(plan, ["a"], [1, 2])
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="NaN"):
        generate(plan, ["a"], [1])


def test_identity_names_what_differs(tmp_path):
    pipe = tiny.stable_diffusion(tmp_path)
    plan = plan_of(pipe, 2, guidance_scale=1.0, **tiny.CALLS["sd"]).replace(identity=Identity(quantization="w8a8"))
    with pytest.raises(IdentityError, match="quantization 'w8a8', not 'none'"):
        attach(pipe, plan)


def test_what_is_saved_does_not_depend_on_what_ran_before(case, tmp_path):
    """Tokenizers keep the padding of their last call, which a resumed run may never have made."""
    kind, pipe = case

    def saved(name):
        save_pipeline(pipe, tmp_path / name)
        files = [f for f in (tmp_path / name).rglob("*") if f.is_file()]
        return {f.relative_to(tmp_path / name).as_posix(): f.read_bytes() for f in files}

    unused = saved("unused")
    draw(pipe, kind, ["a", "bc"], [3, 1])
    used = [getattr(part, "backend_tokenizer", None) for part in pipe.components.values()]
    left = [(part.padding, part.truncation) for part in used if part is not None]
    assert saved("used") == unused
    assert [(part.padding, part.truncation) for part in used if part is not None] == left
    assert load_pipeline(tmp_path / "used").tokenizer("a b").input_ids == pipe.tokenizer("a b").input_ids


def test_a_folder_of_the_users_is_never_replaced_by_a_pipeline(tmp_path):
    pipe = tiny.MAKERS["ddim"](tmp_path)
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(FewstepError, match="did not write it"):
            save_pipeline(pipe, thesis, overwrite)
    pipe.save_pretrained(tmp_path / "theirs")
    with pytest.raises(FewstepError, match="did not write it"):
        save_pipeline(pipe, tmp_path / "theirs", overwrite=True)
    save_pipeline(pipe, tmp_path / "ours")
    with pytest.raises(FewstepError, match="overwrite"):
        save_pipeline(pipe, tmp_path / "ours")
    save_pipeline(pipe, tmp_path / "ours", overwrite=True)
    assert (thesis / "chapter.tex").read_text() == "years of work"
