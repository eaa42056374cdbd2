"""Schedulers that draw random numbers: the plan has the same law, and probing disturbs nobody."""

import inspect
import threading

import diffusers as d
import numpy as np
import pytest
import torch

from fewstep.errors import PlanError
from fewstep.executor import sample
from fewstep.pipelines.probing import plan_of_scheduler
from tests.core.toys import SHAPE, STABLE_DIFFUSION, departure, run_diffusers, toy

SD = STABLE_DIFFUSION
SDE = {"algorithm_type": "sde-dpmsolver++", **SD}
STOCHASTIC = [
    (d.SASolverScheduler(**SD), 6, {}),
    (d.SASolverScheduler(use_karras_sigmas=True, predictor_order=3, corrector_order=3, **SD), 8, {}),
    (d.SASolverScheduler(prediction_type="v_prediction", **SD), 5, {}),
    (d.SASolverScheduler(algorithm_type="noise_prediction", **SD), 5, {}),
    (d.DDPMScheduler(clip_sample=False, **SD), 5, {}),
    (d.DDPMScheduler(clip_sample=False, variance_type="fixed_large", **SD), 5, {}),
    (d.DDIMScheduler(clip_sample=False, **SD), 5, {"step": {"eta": 0.8}}),
    (d.EulerAncestralDiscreteScheduler(**SD), 5, {}),
    (d.EulerDiscreteScheduler(**SD), 5, {"step": {"s_churn": 2.0}}),
    (d.KDPM2AncestralDiscreteScheduler(**SD), 4, {}),
    (d.DPMSolverMultistepScheduler(**SDE), 5, {}),
    (d.DPMSolverMultistepScheduler(solver_order=3, **SDE), 6, {}),
    (d.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver", final_sigmas_type="sigma_min", **SD), 5, {}),
    (d.DPMSolverSinglestepScheduler(**SDE), 5, {}),
    (d.EDMDPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), 5, {}),
    (d.EDMEulerScheduler(), 5, {"step": {"s_churn": 2.0}}),
    (d.LCMScheduler(**SD), 4, {}),
    (d.TCDScheduler(**SD), 4, {"step": {"eta": 0.7}}),
    (d.FlowMatchLCMScheduler(shift=3.0), 4, {}),
    (d.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), 4, {}),
    (d.CogVideoXDPMScheduler(clip_sample=False, **SD), 4, {}),
    (d.UnCLIPScheduler(clip_sample=False), 4, {}),
]


def title(value):
    return type(value).__name__ if hasattr(value, "config") else None


def linear(x, _time):
    return 0.4 * x + 0.2


def run(scheduler, steps, state, set_timesteps=None, step=None):
    """The scheduler's own loop with a linear network, called as its pipelines call it."""
    torch.manual_seed(3)
    scheduler.set_timesteps(steps, **(set_timesteps or {}))
    accepted, before, old = inspect.signature(scheduler.step).parameters, None, None
    x = state * getattr(scheduler, "init_noise_sigma", 1.0)
    for k, time in enumerate(scheduler.timesteps):
        given = (linear(scheduler.scale_model_input(x, time), time), time, x)
        given = (given[0], old, time, before, x) if "old_pred_original_sample" in accepted else given
        more = dict(step or {})
        if "prev_timestep" in accepted:
            more["prev_timestep"] = scheduler.timesteps[k + 1] if k + 1 < steps else None
        x, *rest = scheduler.step(*given, return_dict=False, **more)
        before, old = time, rest[0] if rest else None
    return x


@pytest.mark.parametrize(("scheduler", "steps", "settings"), STOCHASTIC, ids=title)
def test_a_plan_has_the_law_of_its_scheduler(scheduler, steps, settings):
    """One first state, 40,000 runs: noise that is booked twice, or as fresh when it is not, shows in the spread."""
    scheduler.scale_model_input = getattr(scheduler, "scale_model_input", lambda x, _: x)
    state = torch.full((1, 1, 200, 200), 0.7)
    plan = plan_of_scheduler(scheduler, steps, **settings)
    assert plan.stochastic
    theirs = run(scheduler, steps, state, **settings)
    ours = sample(plan, linear, seeds=[5], shape=(1, 200, 200), state=state * plan.prior_scale)
    spread = float(theirs.std())
    assert float(ours.std()) == pytest.approx(spread, rel=0.03, abs=1e-6)
    assert abs(float(ours.mean() - theirs.mean())) < 0.03 * spread + 1e-4


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("orders", [(1, 1), (2, 2), (3, 4)])
def test_noise_that_a_corrector_adds_again_is_that_of_the_row_before(kind, orders):
    options = {"predictor_order": orders[0], "corrector_order": orders[1], "prediction_type": kind}
    scheduler = d.SASolverScheduler(tau_func=lambda _: 0.8, **options, **SD)  # noise in every row, so equal streams
    plan = plan_of_scheduler(scheduler, 6)
    theirs = run_diffusers(scheduler, 6, toy, [1, 2])
    assert departure(sample(plan, toy, seeds=[1, 2], shape=SHAPE), theirs) < 1e-4


class Blurred(d.LCMScheduler):
    """A user's variant that draws with torch, but not through `randn_tensor`."""

    def step(self, model_output, timestep, sample, **rest):
        rest["return_dict"] = False
        data = super().step(model_output, timestep, sample, **rest)[1]
        return (0.5 * sample + 0.5 * data + 0.3 * torch.randn_like(sample),)


class Foreign(d.LCMScheduler):
    def draw(self, sample):
        return torch.from_numpy(np.random.default_rng().normal(size=tuple(sample.shape)))

    def step(self, model_output, timestep, sample, **rest):
        rest["return_dict"] = False
        return (super().step(model_output, timestep, sample, **rest)[1] + 0.3 * self.draw(sample),)


class Uniform(Foreign):
    def draw(self, sample):
        return torch.rand_like(sample)


class Fixed(Foreign):
    def draw(self, sample):
        return torch.randn(sample.shape, generator=torch.Generator().manual_seed(0))


class Scalar(Foreign):
    def draw(self, sample):
        return torch.randn(1)


def test_noise_of_a_subclass_is_read_as_noise():
    plan = plan_of_scheduler(Blurred(**SD), 3)
    assert [row.noise for row in plan.rows] == pytest.approx([0.3] * 3)
    assert all(row.state[k] > 0.5 for k, row in enumerate(plan.rows))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Foreign, "random numbers that torch does not know of"),
        (Uniform, "not standard normal"),
        (Fixed, "a generator of its own"),
        (Scalar, "not one number per element"),
    ],
)
def test_noise_that_no_row_can_hold_is_named(kind, reason):
    with pytest.raises(PlanError, match=f"{kind.__name__} cannot be read as a plan: .*{reason}"):
        plan_of_scheduler(kind(**SD), 3)


def test_probing_leaves_threads_that_sample_alone():
    """Every other thread draws what its generator says while plans are read."""
    stop, wrong, drawn = threading.Event(), [], [0]

    def draw(seed):
        expected = run_diffusers(d.LCMScheduler(**SD), 3, toy, [seed])
        while not stop.is_set():
            drawn[0] += 1
            if not torch.equal(run_diffusers(d.LCMScheduler(**SD), 3, toy, [seed]), expected):
                wrong.append(seed)

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    scheduler = d.LCMScheduler(**SD)
    first = plan_of_scheduler(scheduler, 4)
    for _ in range(12):
        assert plan_of_scheduler(scheduler, 4) == first
    stop.set()
    for thread in threads:
        thread.join()
    assert drawn[0] > 2
    assert not wrong


def test_a_step_is_not_drawn_from_the_global_generator():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    plan_of_scheduler(d.SASolverScheduler(**SD), 4)
    assert torch.equal(torch.get_rng_state(), before)
