"""Exact one-dimensional models for the tests of score distillation."""

import torch

from fewstep.denoiser import Denoiser
from fewstep.distillation.core import Batch, Networks, Samples
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.testing.mixture import Mixture

FLOW = RectifiedFlow()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(mean, variance, process=FLOW, kind="velocity"):
    """The exact denoiser of N(mean, variance)."""
    prediction = Prediction(kind)
    mixture = Mixture.gaussian(torch.tensor([float(mean)]), torch.tensor([float(variance)]))
    network = mixture.network(process, prediction)
    return Denoiser(lambda x, time, label=None: network(x, time), process, prediction)


def guided_pair(conditional, free, process=FLOW, kind="velocity"):
    """A denoiser of N(*conditional) where label is 1 and of N(*free) where it is 0."""
    prediction = Prediction(kind)
    both = [normal(*law, process, kind) for law in (conditional, free)]

    def network(x, time, label):
        within, without = (model.network(x, time) for model in both)
        return torch.where(label[:, None] == 1, within, without)

    return Denoiser(network, process, prediction)


def labels(size):
    return {"condition": {"label": torch.ones(size)}, "negative": {"label": torch.zeros(size)}}


def counted(model):
    """The model with the number of samples that went through it, call by call."""
    calls = []

    def network(x, time, **condition):
        calls.append(len(x))
        return model.network(x, time, **condition)

    return Denoiser(network, model.process, model.prediction, model.two_times), calls


def made_of(clean, time=1.0, until=0.0, state=None):
    size = len(clean)
    at = torch.full((size,), float(time), dtype=torch.float64)
    to = torch.full((size,), float(until), dtype=torch.float64)
    index = torch.zeros(size, dtype=torch.long)
    return Samples(clean, torch.zeros_like(clean) if state is None else state, at, to, index)


class Line:
    """A student x = m + std z with leaves m and std, and the critic that knows its law."""

    def __init__(self, mean, std, size, seed=0, process=FLOW, kind="velocity"):
        self.mean = torch.tensor(float(mean), dtype=torch.float64, requires_grad=True)
        self.std = torch.tensor(float(std), dtype=torch.float64, requires_grad=True)
        z = torch.randn(size // 2, 1, generator=generator(seed), dtype=torch.float64)
        self.z = torch.cat([z, -z])
        self.critic = normal(mean, std**2, process, kind)

    def made(self, **more):
        return made_of(self.mean + self.std * self.z, **more)

    def gradient(self, loss):
        return [float(g) for g in torch.autograd.grad(loss, (self.mean, self.std))]


def cast_of(teacher, critic=None, student=None, adversary=None):
    return Networks(student or teacher, teacher, critic, adversary=adversary)


def batch_of(size, **more):
    return Batch(size=size, shape=(1,), **more)


def perfect(mean, variance, process=FLOW):
    """A student that carries any state of the marginal law straight to the data: its outputs have the data's law."""

    def network(x, time):
        t = process.from_network_time(time.double())
        alpha, sigma = process.scales(t, x)
        return mean + variance**0.5 * (x - alpha * mean) / (alpha**2 * variance + sigma**2).sqrt()

    return Denoiser(network, process, Prediction("sample"))
