import diffusers as d
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fewstep.denoiser import Backbone, Guided
from fewstep.errors import IdentityError, PlanError
from fewstep.executor import sample
from fewstep.pipelines.probing import plan_of_scheduler
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.plan import Identity
from fewstep.prediction import Prediction
from fewstep.process import VPDiscrete
from fewstep.solvers import SOLVERS, ddim, dpm_solver_pp_2m, euler_ancestral, grids, lcm
from tests.core.toys import SHAPE, STABLE_DIFFUSION, departure, run_diffusers, toy

EPSILON = Prediction("epsilon")
PROCESS = VPDiscrete.from_betas("scaled_linear", beta_start=0.00085, beta_end=0.012)


def two_m(steps=4):
    return dpm_solver_pp_2m(PROCESS, EPSILON, grids.trailing(PROCESS, steps))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A Stable Diffusion of a few thousand random weights."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1, sample_size=16,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {
        t: i for i, t in enumerate(["<|startoftext|>", "<|endoftext|>", *letters, *(c + "</w>" for c in letters)])
    }
    (folder / "vocab.json").write_text(__import__("json").dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=8,
            intermediate_size=8,
            num_attention_heads=2,
            num_hidden_layers=1,
            vocab_size=60,
            max_position_embeddings=8,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            projection_dim=8,
        )
    )
    rest = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return {"unet": unet.eval(), "vae": vae.eval(), "text_encoder": text.eval(), "tokenizer": tokenizer, **rest}


def pipeline(parts, plan, kind=StableDiffusionPipeline):
    pipe = kind(**parts, scheduler=PlanScheduler.from_plan(plan))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators(*seeds):
    return [torch.Generator().manual_seed(s) for s in seeds]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize(
    "plan",
    [
        two_m(4),
        euler_ancestral(PROCESS, EPSILON, grids.trailing(PROCESS, 3)),
        lcm(PROCESS, EPSILON, grids.distilled(PROCESS, 2)),
    ],
    ids=["2m", "euler_ancestral", "lcm"],
)
def test_a_pipeline_makes_what_the_executor_makes(parts, plan, guidance):
    pipe = pipeline(parts, plan)
    with torch.no_grad():
        latents = pipe(
            ["a b", "c"], num_inference_steps=plan.steps, guidance_scale=guidance, generator=generators(1, 2),
            output_type="latent", height=16, width=16,
        ).images  # fmt: skip
        positive, negative = pipe.encode_prompt(["a b", "c"], "cpu", 1, True)
        network = Guided(
            Backbone(parts["unet"]), {"encoder_hidden_states": positive}, {"encoder_hidden_states": negative}, guidance
        )
        ours = sample(plan, network, seeds=[1, 2], shape=(4, 8, 8))
    assert departure(ours, latents) < 1e-5


def test_another_step_count_is_refused_with_the_mend(parts):
    with pytest.raises(IdentityError, match=r"this plan has 4 steps .*num_inference_steps=4"):
        pipeline(parts, two_m())("a", num_inference_steps=50)


def test_image_to_image_starts_at_the_absolute_row(parts):
    plan = two_m(5).scaled([1.0, 1.01, 1.02, 1.03, 1.04], [1.0, 0.99, 0.98, 0.97, 0.96])
    pipe = pipeline(parts, plan, StableDiffusionImg2ImgPipeline)
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    seen = []

    def note(pipe, i, time, values):
        seen.append((float(time), values["latents"].clone()))
        return {}

    with torch.no_grad():
        end = pipe(
            "a", image=picture, strength=0.6, num_inference_steps=5, guidance_scale=1.0, generator=generators(3),
            output_type="latent", callback_on_step_end=note,
        ).images  # fmt: skip
        assert [time for time, _ in seen] == [plan.rows[k].network_time for k in (2, 3, 4)]
        # the same by hand: encode, noise to the level of row 2, run rows 2 to 4
        generator = generators(3)
        encoded = pipe.vae.encode(2 * picture - 1).latent_dist.sample(generator[0]) * pipe.vae.config.scaling_factor
        noise = torch.randn(encoded.shape, generator=generator[0])
        start = plan.rows[2].alpha * encoded + plan.rows[2].sigma * noise
        positive, _ = pipe.encode_prompt("a", "cpu", 1, False)
        network = Guided(Backbone(parts["unet"]), {"encoder_hidden_states": positive})
        ours = sample(plan.starting_at(2), network, seeds=[3], shape=(4, 8, 8), state=start)
    assert departure(ours, end) < 1e-5


def test_saved_schedulers_keep_the_plan(tmp_path):
    plan = two_m().scaled(1 + torch.rand(4, 4, 1, 1) / 10, [1 / 3] * 4).replace(identity=Identity("abc", "w4a8", 1.0))
    scheduler = PlanScheduler.from_plan(plan)
    scheduler.save_pretrained(tmp_path)
    again = PlanScheduler.from_pretrained(tmp_path)
    assert again.plan == plan
    ours = run_diffusers(again, 4, toy, [1])
    assert torch.equal(ours, run_diffusers(scheduler, 4, toy, [1]))


def test_a_saved_pipeline_loads_with_plain_diffusers(parts, tmp_path):
    plan = two_m()
    pipe = pipeline(parts, plan)
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again.scheduler) is PlanScheduler
    assert again.scheduler.plan == plan
    arguments = {"num_inference_steps": 4, "output_type": "latent", "height": 16, "width": 16}
    first, second = (p("a", generator=generators(5), **arguments).images for p in (pipe, again))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_solver_runs_as_a_scheduler(name):
    plan = SOLVERS[name](PROCESS, EPSILON, grids.given([900.0, 620.0, 350.0, 120.0], end=0.0))
    ours = sample(plan, toy, seeds=[1, 2], shape=SHAPE)
    scheduler = PlanScheduler.from_plan(plan)
    for _ in range(2):  # twice: nothing may stay behind from the first image
        theirs = run_diffusers(scheduler, plan.steps, toy, [1, 2])
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states_are_combined_in_float32(dtype):
    plan = two_m()
    scheduler = PlanScheduler.from_plan(plan)
    scheduler.set_timesteps(4)
    raws, state, seen = [], torch.randn(1, *SHAPE).to(dtype), []
    for k, row in enumerate(plan.rows):
        raws.append(torch.randn(1, *SHAPE).to(dtype))
        seen.append(state)
        exact = sum(c * seen[j].double() for j, c in row.state.items())
        exact = exact + sum(c * raws[j].double() for j, c in row.output.items())
        state = scheduler.step(raws[k], scheduler.timesteps[k], state).prev_sample
        assert state.dtype == dtype
        # one rounding to the narrow type at the end, none in between
        assert (
            torch.equal(state, exact.float().to(dtype))
            or float((state.double() - exact).abs().max() / exact.abs().max()) <= torch.finfo(dtype).eps / 2
        )


def test_steps_beyond_the_plan_are_refused():
    scheduler = PlanScheduler.from_plan(ddim(PROCESS, EPSILON, grids.trailing(PROCESS, 2)))
    x = torch.randn(1, *SHAPE)
    for time in scheduler.timesteps:
        x = scheduler.step(x, time, x).prev_sample
    with pytest.raises(PlanError, match="Call set_timesteps before the next image"):
        scheduler.step(x, 0, x)


def test_times_the_plan_does_not_have():
    scheduler = PlanScheduler.from_plan(two_m())
    with pytest.raises(PlanError, match=r"no row at this time .*Its times are \[999.0, 749.0, 499.0, 249.0\]"):
        scheduler.step(torch.randn(1, 2), 500, torch.randn(1, 2))


def test_noise_levels_are_those_of_diffusers():
    theirs = d.DDIMScheduler(**STABLE_DIFFUSION)
    plan = ddim(VPDiscrete.from_scheduler(theirs), EPSILON, grids.trailing(PROCESS, 4))
    clean, noise, times = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE), torch.tensor([749, 249])
    ours = PlanScheduler.from_plan(plan).add_noise(clean, noise, times)
    torch.testing.assert_close(ours, theirs.add_noise(clean, noise, times), rtol=1e-5, atol=1e-6)


def test_flow_pipelines_pass_sigmas_and_mu():
    plan = plan_of_scheduler(d.FlowMatchEulerDiscreteScheduler(), 4)
    scheduler = PlanScheduler.from_plan(plan)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=1.1, device="cpu")
    assert scheduler.timesteps.tolist() == pytest.approx([r.network_time for r in plan.rows])
    with pytest.raises(IdentityError, match="4 steps"):
        scheduler.set_timesteps(sigmas=[1.0, 0.5])
    clean, noise = torch.randn(1, *SHAPE), torch.randn(1, *SHAPE)
    level = plan.rows[1].sigma
    noised = scheduler.scale_noise(clean, scheduler.timesteps[1:2], noise)
    torch.testing.assert_close(noised, (1 - level) * clean + level * noise)


def test_a_call_is_prepared_without_writing_or_reading_the_plan(monkeypatch):
    from fewstep.pipelines.generate import PlanRunner
    from fewstep.plan import files

    plan = two_m()
    for name in ("written_number", "read_number", "parsed"):
        monkeypatch.setattr(files, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    runner = PlanRunner.following(plan, [0])
    runner.remember(d.DDIMScheduler())
    runner.set_timesteps(4)
    assert runner.plan is plan
