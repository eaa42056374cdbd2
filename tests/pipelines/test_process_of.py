"""The process read from a scheduler is the one that its own noising follows."""

import inspect
import math

import diffusers
import pytest
import torch

from fewstep.errors import FewstepError, IdentityError, NonFiniteError
from fewstep.pipelines import PipelineSampler, attach, plan_of, process_of
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.solvers import ddim, dpm_solver_pp_2m, euler, grids
from tests.pipelines import tiny_pipelines as tiny

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
ZERO = {"rescale_betas_zero_snr": True}
VP = [
    ("DDIMScheduler", {}),
    ("DDPMScheduler", {"prediction_type": "sample"}),
    ("PNDMScheduler", {}),
    ("EulerDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("UniPCMultistepScheduler", {"prediction_type": "v_prediction"}),
    ("DPMSolverMultistepScheduler", {"prediction_type": "sample"}),
    ("LCMScheduler", {}),
    ("TCDScheduler", {}),
    ("DDIMScheduler", {"prediction_type": "v_prediction", **ZERO}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", **ZERO}),
]


def with_scheduler(folder, name, **options):
    pipe = tiny.stable_diffusion(folder)
    scheduler = getattr(diffusers, name)
    known = inspect.signature(scheduler.__init__).parameters
    pipe.scheduler = scheduler(**{k: v for k, v in tiny.BETAS.items() if k in known}, **options)
    return pipe


@pytest.mark.parametrize(("name", "options"), VP)
def test_a_discrete_process_noises_as_its_scheduler(name, options, tmp_path):
    pipe = with_scheduler(tmp_path, name, **options)
    process, prediction = process_of(pipe)
    assert prediction.kind == options.get("prediction_type", "epsilon")
    last = len(process.alphas_cumprod) - 1
    times = torch.tensor([0, 17, 500, last])
    alphas = diffusers.DDIMScheduler(**tiny.BETAS, **options).alphas_cumprod
    assert torch.allclose(process.alpha(times.double()) ** 2, alphas[times].double(), atol=1e-7)
    assert torch.equal(process.network_time(times.double()), times.double())


@pytest.mark.parametrize(
    ("name", "options", "shift"),
    [
        ("FlowMatchEulerDiscreteScheduler", {}, 1.0),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 2.5}, 2.5),
        ("FlowMatchHeunDiscreteScheduler", {"shift": 2.5}, 2.5),
        ("UniPCMultistepScheduler", FLOW, 3.0),
        ("DPMSolverMultistepScheduler", FLOW, 3.0),
    ],
)
def test_a_flow_has_the_shift_of_its_scheduler(name, options, shift, tmp_path):
    pipe = tiny.sd3(tmp_path)
    pipe.scheduler = getattr(diffusers, name)(**options)
    process, prediction = process_of(pipe)
    assert (process.shift, prediction.kind) == (shift, "velocity")
    t = torch.tensor([0.25, 0.75], dtype=torch.float64)
    assert torch.allclose(process.alpha(t) + process.sigma(t), torch.ones(2).double())
    assert torch.allclose(process.network_time(t), 1000 * process.sigma(t))


def test_a_shift_that_depends_on_the_size_is_the_one_of_the_call(tmp_path):
    pipe = tiny.flux(tmp_path)
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64
    )
    call = {**tiny.CALLS["flux"], "height": 32, "width": 32}  # 64 tokens: the largest mu, 1.15
    process, _ = process_of(pipe, **call)
    assert math.isclose(process.shift, math.exp(1.15), rel_tol=1e-6)
    small, _ = process_of(pipe, **tiny.CALLS["flux"])  # 16 tokens: on the line from (4, 0.5) to (64, 1.15)
    assert math.isclose(small.shift, math.exp(0.5 + 0.65 * 12 / 60), rel_tol=1e-6)
    plan = ddim(small, process_of(pipe, **tiny.CALLS["flux"])[1], grids.uniform(small, 4))
    own = plan_of(pipe, 4, **tiny.CALLS["flux"])  # FLUX passes equal sigmas, and shifts them by mu
    assert [float(r.sigma) for r in plan.rows] == pytest.approx([float(r.sigma) for r in own.rows], abs=1e-6)
    attach(pipe, own)
    assert process_of(pipe, **tiny.CALLS["flux"])[0] == small


def test_edm_schedulers_tell_their_preconditioning(tmp_path):
    pipe = with_scheduler(tmp_path, "EDMEulerScheduler", sigma_max=40.0, sigma_data=0.7)
    process, prediction = process_of(pipe)
    assert (process.noisiest, prediction.kind, prediction.sigma_data) == (40.0, "edm", 0.7)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(4)
    plan = ddim(process, prediction, grids.given([float(s) for s in scheduler.sigmas[:-1]]))
    own = plan_of(pipe, 4, **tiny.CALLS["sd"])
    for row, wanted in zip(plan.rows, own.rows, strict=True):
        assert float(row.network_time) == pytest.approx(float(wanted.network_time), abs=1e-5)
        assert float(row.input_scale) == pytest.approx(float(wanted.input_scale), rel=1e-5)
    generate = PipelineSampler(pipe, 1.0, tiny.CALLS["sd"])
    with torch.no_grad():
        found, wanted = (generate(p, ["a"], [0], "latent") for p in (plan, own.replace(prior_scale=plan.prior_scale)))
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"sigma_max": 700.0, "sigma_min": 0.002, "use_karras_sigmas": True}])
def test_continuous_times_are_those_of_edm_on_unit_data(options, tmp_path):
    """Stable Video Diffusion's scheduler: log(sigma) / 4, and v with input scale 1 / sqrt(sigma^2 + 1)."""
    continuous = {"timestep_type": "continuous", "prediction_type": "v_prediction", **options}
    pipe = with_scheduler(tmp_path, "EulerDiscreteScheduler", **continuous)
    process, prediction = process_of(pipe)
    table = pipe.scheduler.alphas_cumprod[-1]
    assert process.noisiest == options.get("sigma_max", pytest.approx(float(((1 - table) / table).sqrt()), rel=1e-5))
    scheduler = pipe.scheduler
    scheduler.set_timesteps(4)
    plan = euler(process, prediction, grids.given([min(float(s), process.noisiest) for s in scheduler.sigmas[:-1]]))
    own = plan_of(pipe, 4, **tiny.CALLS["sd"])
    for row, wanted in zip(plan.rows, own.rows, strict=True):
        assert float(row.network_time) == pytest.approx(float(wanted.network_time), abs=1e-5)
        assert float(row.input_scale) == pytest.approx(float(wanted.input_scale), rel=1e-5)
    generate = PipelineSampler(pipe, 1.0, tiny.CALLS["sd"])
    with torch.no_grad():
        found, wanted = (generate(p, ["a"], [0], "latent") for p in (plan, own.replace(prior_scale=plan.prior_scale)))
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("DDIMScheduler", ZERO, "no signal"),
        ("EulerDiscreteScheduler", ZERO, "no signal"),
        ("CMStochasticIterativeScheduler", {}, "neither alphas_cumprod nor"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "inverts"),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "no mu"),
    ],
)
def test_what_has_no_known_process_is_named(name, options, message, tmp_path):
    with pytest.raises(FewstepError, match=message):
        process_of(with_scheduler(tmp_path, name, **options), **tiny.CALLS["sd"])


def test_zero_terminal_signal_gives_finite_images_or_an_error(tmp_path):
    pipe = with_scheduler(tmp_path, "DDIMScheduler", prediction_type="v_prediction", clip_sample=False, **ZERO)
    process, prediction = process_of(pipe)
    plan = dpm_solver_pp_2m(process, prediction, grids.trailing(process, 4))
    assert float(plan.rows[0].alpha) == 0
    with torch.no_grad():
        images = PipelineSampler(pipe, 1.0, tiny.CALLS["sd"])(plan, ["a"], [0])
        pipe.vae.decoder.conv_out.bias.fill_(float("nan"))
        assert bool(images.isfinite().all())
        with pytest.raises(NonFiniteError):
            PipelineSampler(pipe, 1.0, tiny.CALLS["sd"])(plan, ["a"], [0])


def test_a_plan_of_another_step_count_and_foreign_conditions_are_refused(tmp_path):
    pipe = tiny.stable_diffusion(tmp_path)
    attach(pipe, plan_of(pipe, 3, **tiny.CALLS["sd"]))
    with pytest.raises(IdentityError, match="num_inference_steps=3"):
        pipe("a", num_inference_steps=5, **tiny.CALLS["sd"])
    plan = pipe.scheduler.plan
    with pytest.raises(FewstepError, match="takes prompts"):
        PipelineSampler(pipe)(plan, [1], [0])
    with pytest.raises(FewstepError, match="list of seeds is empty"):
        PipelineSampler(pipe)(plan, None, [])
    with pytest.raises(FewstepError, match="Did you mean 'height'"):
        PipelineSampler(pipe, call={"heigth": 16})(plan, ["a"], [0])
    with pytest.raises(FewstepError, match="unknown output"):
        PipelineSampler(pipe)(plan, ["a"], [0], output="latents")
    unconditional, classes = tiny.unconditional(tmp_path), tiny.dit(tmp_path)
    with pytest.raises(FewstepError, match="unconditional"):
        PipelineSampler(unconditional)(plan, ["a"], [0])
    with pytest.raises(FewstepError, match="knows no guidance"):
        PipelineSampler(unconditional, guidance=2.0)(plan, None, [0])
    with pytest.raises(FewstepError, match="takes class labels"):
        PipelineSampler(classes)(plan, ["a"], [0])


def test_a_scheduler_with_a_step_of_its_own_kind_still_tells_its_process(tmp_path):
    pipe = tiny.cogvideox(tmp_path)
    known = process_of(pipe)
    options = {"prediction_type": "v_prediction", "clip_sample": False, **ZERO, **tiny.BETAS}
    pipe.scheduler = diffusers.CogVideoXDPMScheduler(snr_shift_scale=3.0, **options)
    assert plan_of(pipe, 3, **tiny.CALLS["cogvideox"]).stochastic  # its step is also handed the data estimate before
    assert process_of(pipe) == known


def test_a_pipeline_without_a_known_origin_says_so(tmp_path):
    pipe = tiny.stable_diffusion(tmp_path)
    pipe.scheduler = PlanScheduler.from_plan(plan_of(pipe, 3, **tiny.CALLS["sd"]))
    with pytest.raises(FewstepError, match="which scheduler it replaced"):
        process_of(pipe)
