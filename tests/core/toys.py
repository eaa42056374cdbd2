"""Small stand-ins shared by the core's tests: a nonlinear network, diffusers' own loop, and a mixture."""

import inspect

import torch

from fewstep.executor import sample
from fewstep.plan import RunState
from fewstep.testing.mixture import Mixture

SHAPE = (4, 4, 4)
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def toy(x, time):
    """A nonlinear network (B, ...) -> (B, ...) that mixes elements and depends on its time."""
    phase = torch.as_tensor(time, dtype=x.dtype) / 300
    return 0.8 * torch.tanh(x + 0.3 * torch.sin(phase)) + 0.2 * torch.sin(2 * x.flip(-1)) * torch.cos(phase)


def run_diffusers(scheduler, steps, network, seeds, shape=SHAPE, dtype=torch.float32, set_timesteps=None, step=None):
    """The loop every diffusers pipeline runs, one generator per sample."""
    if steps is None:
        scheduler.set_timesteps(**(set_timesteps or {}))
    else:
        scheduler.set_timesteps(steps, **(set_timesteps or {}))
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    prior = getattr(scheduler, "init_noise_sigma", 1.0)
    x = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(dtype) * prior
    extra = dict(step or {})
    if "generator" in inspect.signature(scheduler.step).parameters:
        extra["generator"] = generators
    for time in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, time) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, time), time, x, return_dict=False, **extra)[0]
    return x


def departure(ours, theirs):
    """Largest difference relative to the size of the states."""
    return float((ours.double() - theirs.double()).abs().max() / (1 + theirs.double().abs().max()))


def run_from(plan, network, states):
    """The end of a plan from its first states, given in float64 by row: exact ones, or the first alone."""
    x = states[0]
    options = {"start": RunState(states), "dtype": torch.float64}
    return sample(plan, network, seeds=range(len(x)), shape=x.shape[1:], **options)


def golden():
    """The mixture of the order tests: weights .3 .5 .2, means -2 .5 3, deviations .5 .3 .8."""
    return Mixture.line([0.3, 0.5, 0.2], [-2.0, 0.5, 3.0], [0.5, 0.3, 0.8])


def levels(process, t):
    """(alpha, sigma) of a process at a time, as floats."""
    return float(process.alpha(float(t))), float(process.sigma(float(t)))
