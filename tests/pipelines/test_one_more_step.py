"""One More Step against the closed form of a Gaussian, the executor, and the start levels of diffusers."""

import math

import pytest
import torch

from fewstep.errors import FewstepError, IdentityError, PlanError
from fewstep.executor import Noise, sample
from fewstep.pipelines import load_pipeline
from fewstep.pipelines.one_more_step import OneMoreStep, condition_of, level_of
from fewstep.pipelines.probing import plan_of_scheduler
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow, VPDiscrete
from fewstep.solvers import SOLVERS, ddim, euler, grids, unipc, with_one_more_step
from fewstep.zoo import shipped
from fewstep.zoo.oms import text_network

BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
PROCESS = VPDiscrete.from_betas("scaled_linear", **BETAS)
PIXELS = 64 * 64


def exact(mean: float, deviation: float):
    """Exact noise prediction for one coordinate of Gaussian data."""

    def network(x, time):
        alpha, sigma = PROCESS.alpha(time.double()), PROCESS.sigma(time.double())
        return (sigma * (x - alpha * mean) / (alpha**2 * deviation**2 + sigma**2)).to(x.dtype)

    return network


def fine_plan() -> Plan:
    return ddim(PROCESS, Prediction("epsilon"), grids.trailing(PROCESS, 1000))


@pytest.mark.parametrize(
    ("spread", "percent_of_mean", "percent_of_std"), [(0.1, 60, 92), (0.3, 20, 61), (1.0, 2.5, 22)]
)
def test_brightness_that_is_lost_without_and_regained_with_the_extra_step(spread, percent_of_mean, percent_of_std):
    """The coordinate sum(x) / sqrt(D) of 64x64 images whose pixels share a class mean and a random offset."""
    brightness = 0.7
    mean, deviation = brightness * math.sqrt(PIXELS), spread * math.sqrt(PIXELS)
    bar = PROCESS.alphas_cumprod[-1]
    variance = bar * deviation**2 + 1 - bar  # of the true state at the last time
    networks = {"main": exact(mean, deviation), "oms": lambda x, time: torch.full_like(x, -mean)}

    # the map from first to last state is affine: two states tell the whole law
    low, high = sample(
        fine_plan(), networks, seeds=[0, 1], shape=(1,), state=torch.tensor([[0.0], [1.0]]), dtype=torch.float64
    ).flatten()
    assert low / mean == pytest.approx(1 - math.sqrt(bar * deviation**2 / variance), abs=0.005)
    assert 100 * low / mean == pytest.approx(percent_of_mean, abs=0.6)
    assert 100 * (high - low) / deviation == pytest.approx(percent_of_std, abs=0.6)

    state = Noise(range(2)).draw((1,))
    plan = with_one_more_step(fine_plan())
    first, second = sample(plan, networks, seeds=[0, 1], shape=(1,), state=state, dtype=torch.float64).flatten()
    fresh = Noise(range(2)).draw((1,)).flatten().double()  # a given state leaves the streams untouched
    slope = (second - first) / (fresh[1] - fresh[0])
    assert (first - slope * fresh[0]) / mean == pytest.approx(1, abs=0.005)  # the mean is exact again
    assert slope / deviation == pytest.approx(math.sqrt((1 - bar) / variance), abs=0.005)  # the std is not repaired


@pytest.mark.parametrize("name", ["unipc", "lms", "dpm_solver_pp_3m", "dpm_solver_3s"])
def test_history_moves_with_the_rows(name):
    """A network that sees black, without fresh noise, leaves the noise as it is: the old plan from that state."""
    plan = SOLVERS[name](PROCESS, Prediction("epsilon"), grids.uniform_lambda(PROCESS, 6, last=20.0))
    longer = with_one_more_step(plan, prediction="sample", eta=0.0)
    assert longer.steps == plan.steps + 1
    networks = {"main": exact(1.0, 2.0), "oms": lambda x, time: torch.zeros_like(x)}
    state = Noise(range(5)).draw((3,))
    sigma = plan.rows[0].sigma
    wanted = sample(plan, networks, seeds=range(5), shape=(3,), state=sigma * state)
    got = sample(longer, networks, seeds=range(5), shape=(3,))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_sigma_space_is_the_same_sampler(eta):
    grid = grids.trailing(PROCESS, 20)
    networks = {"main": exact(3.0, 2.0), "oms": lambda x, time: -3.0 + 0.1 * x}
    results = [
        sample(
            with_one_more_step(make(PROCESS, Prediction("epsilon"), grid), eta=eta),
            networks,
            seeds=range(8),
            shape=(1,),
        )
        for make in (ddim, euler)
    ]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_first_state_has_the_law_of_the_first_level(eta):
    """Second moments: for data that the network knows, x_S is the true noisy state of a constant."""
    plan = with_one_more_step(ddim(PROCESS, Prediction("epsilon"), grids.leading(PROCESS, 4)), eta=eta)
    row = plan.rows[0]
    alpha, sigma = plan.rows[1].alpha, plan.rows[1].sigma
    assert row.output[0] == pytest.approx(-alpha)
    assert row.state.get(0, 0.0) ** 2 + row.noise**2 == pytest.approx(sigma**2)
    assert alpha**2 == pytest.approx(PROCESS.alphas_cumprod[750])  # leading spacing starts there, not at the end


def test_survives_its_file(tmp_path):
    plan = with_one_more_step(unipc(PROCESS, Prediction("epsilon"), grids.trailing(PROCESS, 5)), eta=0.5)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_mistakes_are_named():
    plan = fine_plan()
    with pytest.raises(PlanError, match="pure noise"):
        with_one_more_step(plan, prediction="epsilon")
    with pytest.raises(PlanError, match="eta"):
        with_one_more_step(plan, eta=1.5)
    flow = ddim(RectifiedFlow(), Prediction("velocity"), grids.uniform(RectifiedFlow(), 4))
    with pytest.raises(PlanError, match="already"):
        with_one_more_step(flow)


# --- pipelines ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("emoji-teacher")


@pytest.fixture
def oms():
    torch.manual_seed(0)
    return OneMoreStep(text_network(4, 8, 128, (16, 32)).eval())


PROMPTS = ["red apple", "woman singer with dark skin tone"]


@pytest.mark.parametrize("guidance", [1.0, 1.8])
def test_a_pipeline_with_the_extra_step_equals_the_executor(pipe, oms, guidance):
    oms = OneMoreStep(oms.network, guidance=guidance)
    generators = Noise([3, 4]).generators
    plain = pipe(
        PROMPTS, num_inference_steps=3, guidance_scale=1.0, generator=Noise([3, 4]).generators, output_type="pt"
    )
    before = dict(vars(pipe))
    longer = oms.pipeline(pipe)
    got = longer(PROMPTS, num_inference_steps=3, guidance_scale=1.0, generator=generators, output_type="latent").images
    assert {**vars(pipe)} == before
    plan = with_one_more_step(plan_of_scheduler(pipe.scheduler, 3))
    states = condition_of(pipe, PROMPTS)
    main = lambda x, time: pipe.unet(x, time, **states).sample  # noqa: E731
    with torch.no_grad():
        wanted = sample(plan, {"main": main, "oms": oms.of(pipe, PROMPTS)}, seeds=[3, 4], shape=(4, 8, 8))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)

    started = pipe(
        PROMPTS, num_inference_steps=3, guidance_scale=1.0, output_type="latent",
        latents=oms.start(pipe, PROMPTS, [3, 4], steps=3),
    ).images  # fmt: skip
    torch.testing.assert_close(started, wanted, rtol=1e-4, atol=1e-4)
    again = pipe(
        PROMPTS, num_inference_steps=3, guidance_scale=1.0, generator=Noise([3, 4]).generators, output_type="pt"
    )
    assert torch.equal(plain.images, again.images)  # nothing is left on the pipeline


def test_own_prompt_of_the_extra_step_is_used(pipe, oms):
    def first(prompt):
        generator = torch.Generator().manual_seed(0)
        return oms.pipeline(pipe, prompt=prompt)(
            "red apple", num_inference_steps=1, guidance_scale=2.0, generator=generator, output_type="latent"
        ).images

    assert torch.equal(first(None), first("red apple"))
    assert not torch.allclose(first(None), first("a dark night"))


def test_saved_and_opened(pipe, oms, tmp_path):
    from fewstep.denoiser import fingerprint

    own = OneMoreStep(oms.network, latents=fingerprint(pipe.vae))
    own.save_pretrained(tmp_path / "oms")
    opened = OneMoreStep.from_pretrained(tmp_path / "oms", guidance=1.5)
    assert (opened.latents, opened.guidance, opened.prediction) == (own.latents, 1.5, "v_prediction")
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = condition_of(pipe, PROMPTS)
    with torch.no_grad():
        assert torch.equal(own.bound(condition)(x, torch.tensor(0.0)), own.bound(condition)(x, torch.tensor(999.0)))
        torch.testing.assert_close(OneMoreStep(opened.network).of(pipe, PROMPTS)(x, torch.tensor(0.0)),
                                   own.of(pipe, PROMPTS)(x, torch.tensor(0.0)))  # fmt: skip
    with pytest.raises(IdentityError, match="autoencoder"):
        OneMoreStep(oms.network, latents="0" * 16).pipeline(pipe)
    with pytest.raises(FewstepError, match="One More Step"):
        OneMoreStep.from_pretrained(shipped("emoji-quality"))


@pytest.mark.parametrize(
    ("kind", "spacing"),
    [
        *[("DDIMScheduler clip_sample", spacing) for spacing in ("leading", "trailing")],
        *[("EulerDiscreteScheduler", spacing) for spacing in ("leading", "trailing", "linspace")],
        *[("DPMSolverMultistepScheduler", spacing) for spacing in ("leading", "trailing", "linspace")],
        ("LCMScheduler", "leading"),
    ],
)
def test_start_level_is_that_of_the_first_time_used(kind, spacing):
    import diffusers

    kind, *linear = kind.split()
    options = {"beta_schedule": "scaled_linear", "timestep_spacing": spacing, **dict.fromkeys(linear, False), **BETAS}
    scheduler = getattr(diffusers, kind)(**options)
    row = plan_of_scheduler(scheduler, 4).rows[0]
    scheduler.set_timesteps(4)
    assert level_of(scheduler) == pytest.approx((float(row.alpha), float(row.sigma)), rel=1e-4)


def test_flow_schedulers_are_refused():
    from diffusers import FlowMatchEulerDiscreteScheduler

    with pytest.raises(FewstepError, match="pure noise"):
        level_of(FlowMatchEulerDiscreteScheduler())
