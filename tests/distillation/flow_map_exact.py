"""Flow maps known in closed form, networks that are not exact, and jumps between given times, for the tests here."""

import dataclasses

import torch
from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.distillation.core import Batch, Networks
from fewstep.distillation.parts import JumpTimes
from fewstep.prediction import Prediction
from fewstep.process import VE, Cosine, RectifiedFlow, VPContinuous
from fewstep.testing.mixture import Mixture

MEAN = torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64)
STD = torch.tensor([0.5, 1.3, 0.8], dtype=torch.float64)

PROCESSES = {
    "straight": RectifiedFlow(),
    "shifted": RectifiedFlow(shift=3.0),
    "vp": VPContinuous(),
    "trig": Cosine(offset=0.0),
    "edm": VE(noisiest=20.0),
}


def levels(process, t):
    """alpha and sigma as columns; time 0 is the data."""
    clean = t == 0
    alpha, sigma = process.alpha(t), process.sigma(t)
    return torch.where(clean, 1.0, alpha)[:, None], torch.where(clean, 0.0, sigma)[:, None]


def gaussian_map(process, x, t, s, mean=MEAN, std=STD):
    """X_{s,t}(x) for data N(mean, std^2), from matching quantiles of the marginals."""
    (a, b), (c, d) = levels(process, t), levels(process, s)
    stretch = ((c * std) ** 2 + d**2).sqrt() / ((a * std) ** 2 + b**2).sqrt()
    return c * mean + (x - a * mean) * stretch


def posterior(process, x, t, mean=MEAN, std=STD):
    """E[x0 | x_t]."""
    a, b = levels(process, t)
    return mean + a * std**2 / ((a * std) ** 2 + b**2) * (x - a * mean)


@dataclasses.dataclass(frozen=True)
class ExactMap:
    """The network of two times whose jumps are the exact flow map; predicts the data."""

    process: object
    mean: torch.Tensor = MEAN
    std: torch.Tensor = STD

    def __call__(self, x, time, target_time):
        t, s = (self.process.from_network_time(v) for v in (time, target_time))
        still = s >= t * (1 - 1e-9)  # the quotient below has no digits left there
        s = torch.where(still, t / 2, s)
        (a, b), (c, d) = levels(self.process, t), levels(self.process, s)
        landed = gaussian_map(self.process, x, t, s, self.mean, self.std)
        jump = (landed - d / b * x) / (c - a * d / b)
        return torch.where(still[:, None], posterior(self.process, x, t, self.mean, self.std), jump)


def exact_student(process, mean=MEAN, std=STD):
    return Denoiser(ExactMap(process, mean, std), process, Prediction("sample"), two_times=True)


def exact_teacher(process, mean=MEAN, std=STD):
    network = Mixture.gaussian(mean, std**2).network(process, Prediction("sample"))
    return Denoiser(lambda x, time, **_: network(x, time), process, Prediction("sample"))


class Rough(nn.Module):
    """A smooth network of one or two times that is nobody's flow map."""

    def __init__(self, process, seed=0, dropout=0.0):
        super().__init__()
        torch.manual_seed(seed)
        self.process = process
        self.first, self.last = nn.Linear(5, 16, dtype=torch.float64), nn.Linear(16, 3, dtype=torch.float64)
        self.dropout = nn.Dropout(dropout)
        self.calls = 0

    def forward(self, x, time, target_time=None, **_):
        self.calls += len(x) // 4 if len(x) % 4 == 0 else 1
        target_time = time if target_time is None else target_time
        clocks = [
            (self.process.from_network_time(v)[:, None] / self.process.noisiest).to(x) for v in (time, target_time)
        ]
        hidden = torch.tanh(self.first(torch.cat([x, *clocks], 1)))
        return self.last(self.dropout(hidden))


def rough(process, seed=0, kind="sample", two_times=True, dropout=0.0):
    return Denoiser(Rough(process, seed, dropout), process, Prediction(kind), two_times)


def exact_cast(process):
    return Networks(student=exact_student(process), teacher=exact_teacher(process))


def fixed(t, s, m=None, process=None, **more):
    """A law of times that always gives these fractions of the range."""

    def law(batch, process, generator):
        t_, s_, m_ = (
            None if v is None else process.noisiest * torch.as_tensor(v, dtype=torch.float64).expand(batch.size).clone()
            for v in (t, s, m)
        )
        return JumpTimes(t_, s_, m_, **more)

    return law


def batch_of(size=4, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    clean = MEAN + STD * torch.randn(size, 3, generator=generator, dtype=torch.float64)
    return Batch(size=size, shape=(3,), clean=clean, **more)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def jump_of(cast, times, batch=None, source=None, boundary=None, guidance=None, seed=0):
    """The jump that a term would make of a batch."""
    from fewstep.distillation.flow_map.term import prepared
    from fewstep.distillation.parts import TeacherGuidance, noised_data

    batch = batch_of() if batch is None else batch
    draws = generator(seed)
    with torch.no_grad():
        blank = prepared(cast, batch, times, guidance or TeacherGuidance(), draws, boundary)
        return dataclasses.replace(blank, states=(source or noised_data)(cast, batch, None, blank, draws))


def residual(cast, jump, target, space="velocity"):
    """What a student's jump misses of a target, in a space."""
    with torch.no_grad():
        live = jump.ask(cast.student, jump.x, jump.t, jump.s)
        value, lives_in, _ = target(cast, jump, live)
        wanted = jump.frame.transfer(value, live, jump.x, lives_in, space)
        return jump.frame.express(live, jump.x, space) - wanted
