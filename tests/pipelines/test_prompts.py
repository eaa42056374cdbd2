"""Prompts: encoded once while the encoders stay what they are, nothing left on the pipeline, losses told."""

import copy
import warnings

import pytest
import torch
from peft import LoraConfig

from fewstep.errors import FewstepError
from fewstep.pipelines import PipelineSampler, plan_of, trace
from fewstep.pipelines.prompts import Prompts
from tests.pipelines import tiny_pipelines as tiny

CALL = tiny.CALLS["sd"]


@pytest.fixture
def pipe(tmp_path):
    return tiny.stable_diffusion(tmp_path)


def counted(pipe):
    """How often the text encoder of the pipeline has run."""
    calls = []
    pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_a_generator_leaves_nothing_on_the_pipeline(pipe):
    before = {name: id(value) for name, value in vars(pipe).items()}
    config, hooks = dict(pipe.config), len(pipe.unet._forward_hooks)
    generate = PipelineSampler(pipe, 1.0, CALL)
    plan = plan_of(pipe, 2, **CALL)
    held = vars(pipe).copy()
    trace(generate, plan, ["a"], [0])
    generate(plan, ["a"], [0])
    assert {name: id(value) for name, value in vars(pipe).items()} == {k: id(v) for k, v in held.items()}
    assert before.keys() <= held.keys()
    assert "encode_prompt" not in vars(pipe)
    assert (dict(pipe.config), len(pipe.unet._forward_hooks)) == (config, hooks)


def test_prompts_are_encoded_once_within_a_bound_of_bytes(pipe):
    calls, prompts = counted(pipe), Prompts(limit=2 * 16 * 32 * 4)  # two embeddings of this text encoder
    encode = prompts.encoding(copy.copy(pipe))
    for prompt, count in (("a", 1), ("a", 1), ("b", 2), ("a", 2), ("c", 3), ("b", 3), ("a", 4)):
        encode(prompt, "cpu", 1, False)
        assert len(calls) == count


def changes():
    def in_place(pipe):
        with torch.no_grad():
            pipe.text_encoder.get_input_embeddings().weight[3].mul_(2)

    def data(pipe):
        pipe.text_encoder.get_input_embeddings().weight.data.mul_(2)

    def exchanged(pipe):
        pipe.text_encoder = tiny.clip_text(seed=9)

    def dtype(pipe):
        pipe.text_encoder.to(torch.float64)

    def adapter(pipe):
        config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        pipe.text_encoder.add_adapter(config)

    def words(pipe):
        pipe.tokenizer.add_tokens(["zzz"])

    return [in_place, data, exchanged, dtype, adapter, words]


@pytest.mark.parametrize("change", changes(), ids=lambda change: change.__name__)
def test_prompts_are_encoded_anew_after_the_encoder_changed(pipe, change):
    prompts = Prompts()
    prompts.encoding(pipe)("a", "cpu", 1, False)
    change(pipe)
    found = prompts.encoding(pipe)("a", "cpu", 1, False)[0]
    with torch.no_grad():
        assert torch.equal(found, pipe.encode_prompt("a", "cpu", 1, False)[0])
    assert prompts.encoding(pipe)("a", "cpu", 1, False)[0] is found  # and kept again


def test_pictures_follow_a_changed_text_encoder(pipe):
    generate, plan = PipelineSampler(pipe, 1.0, CALL), plan_of(pipe, 2, **CALL)
    first = generate(plan, ["a"], [0])
    twin = copy.deepcopy(pipe)
    with torch.no_grad():
        twin.text_encoder.get_input_embeddings().weight.mul_(3)
    other = PipelineSampler(twin, 1.0, CALL)(plan, ["a"], [0])
    assert not torch.equal(first, other)
    assert torch.allclose(tiny.draw(twin, "sd", ["a"], [0], steps=2), other, atol=1e-5)
    pipe.text_encoder.load_state_dict(twin.text_encoder.state_dict())
    assert torch.equal(generate(plan, ["a"], [0]), other)


def test_gradients_are_for_those_who_ask(pipe):
    plan, generate = plan_of(pipe, 2, **CALL), PipelineSampler(pipe, 1.0, CALL)
    assert next(pipe.unet.parameters()).requires_grad
    assert not generate(plan, ["a"], [0]).requires_grad
    scale = torch.ones(2, dtype=torch.float64, requires_grad=True)
    learned = plan.scaled(scale, torch.ones(2))
    assert generate(learned, ["a"], [0]).requires_grad
    with torch.no_grad():
        assert not generate(learned, ["a"], [0]).requires_grad
        embedded = pipe.encode_prompt("a", "cpu", 1, False)[0]
    call = {**CALL, "prompt_embeds": embedded.requires_grad_()}
    assert PipelineSampler(pipe, 1.0, call)(plan, None, [0]).requires_grad


@pytest.mark.parametrize("encoder", [True, False])
def test_embeddings_stand_for_prompts(pipe, encoder):
    wanted = tiny.draw(pipe, "sd", ["a", "bc", "d"], [0, 1, 2], guidance_scale=3.0)
    with torch.no_grad():
        positive, negative = pipe.encode_prompt(["a", "bc", "d"], "cpu", 1, True)
    if not encoder:
        pipe.text_encoder = pipe.tokenizer = None
    given = {"prompt_embeds": positive, "negative_prompt_embeds": negative[:1].expand(3, -1, -1)}
    plan = plan_of(pipe, 4, guidance_scale=3.0, **CALL, **given)
    found = PipelineSampler(pipe, 3.0, {**CALL, **given}, batch=2)(plan, None, [0, 1, 2])
    assert torch.allclose(found, wanted, atol=1e-5)
    one = {name: rows[:1] for name, rows in given.items()}
    same = PipelineSampler(pipe, 3.0, {**CALL, **one})(plan, None, [0, 5])
    assert torch.allclose(same[0], wanted[0], atol=1e-5)
    with pytest.raises(FewstepError, match="one row per sample"):
        PipelineSampler(pipe, 3.0, {**CALL, **given})(plan, None, [0, 1])
    with pytest.raises(FewstepError, match="exclude each other"):
        PipelineSampler(pipe, 3.0, {**CALL, **given})(plan, ["a"] * 3, [0, 1, 2])


def test_a_pipeline_without_a_text_encoder_asks_for_embeddings(pipe):
    plan = plan_of(pipe, 2, **CALL)
    pipe.text_encoder = pipe.tokenizer = None
    with pytest.raises(FewstepError, match=r"no text encoder.*prompt_embeds"):
        plan_of(pipe, 2, **CALL)
    with pytest.raises(FewstepError, match=r"no text encoder.*prompt_embeds"):
        PipelineSampler(pipe, 1.0, CALL)(plan, ["a"], [0])


def test_a_pipeline_drawn_from_embeddings_alone_runs(tmp_path):
    from diffusers import DDPMScheduler, KandinskyV22Pipeline, UNet2DConditionModel, VQModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        in_channels=4, out_channels=8, sample_size=8, addition_embed_type="image", encoder_hid_dim=16,
        encoder_hid_dim_type="image_proj", cross_attention_dim=16, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"), norm_num_groups=8,
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), attention_head_dim=4,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", resnet_time_scale_shift="scale_shift",
    ).eval()  # fmt: skip
    movq = VQModel(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, sample_size=16, vq_embed_dim=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, num_vq_embeddings=12,
    )  # fmt: skip
    scheduler = DDPMScheduler(
        beta_schedule="linear", clip_sample=False, thresholding=False, variance_type="fixed_small"
    )
    pipe = tiny.quiet(KandinskyV22Pipeline(unet=unet, scheduler=scheduler, movq=movq.eval()))
    call = {"height": 16, "width": 16, "image_embeds": torch.randn(2, 16), "negative_image_embeds": torch.randn(2, 16)}
    plan = plan_of(pipe, 2, guidance_scale=1.0, **call)
    images = PipelineSampler(pipe, 1.0, call, batch=1)(plan, None, [0, 1])
    assert images.shape[0] == 2
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize(("name", "kept"), [("sd", 14), ("pixart", 16), ("flux", 16)])
def test_words_that_no_encoder_reads_are_told_once(name, kept, tmp_path):
    pipe = tiny.MAKERS[name](tmp_path)
    plan, generate = plan_of(pipe, 2, **tiny.CALLS[name]), PipelineSampler(pipe, 1.0, tiny.CALLS[name])
    space = " " if name == "sd" else ""
    whole, extra = space.join("a" * kept), space.join("xyz")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        generate(plan, [whole], [0])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        generate(plan, [whole + space + extra, whole], [0, 1])
        generate(plan, [whole + space + extra], [2])
    told = [str(w.message) for w in seen if "cut off" in str(w.message)]
    assert len(told) == 1
    assert f"cut off: '{extra}' of" in told[0]
