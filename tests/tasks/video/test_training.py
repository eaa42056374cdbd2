"""Roll-outs, losses and presets of streaming students."""

import copy
import dataclasses
from functools import partial

import pytest
import torch

from fewstep.cache import CachePolicy, drop
from fewstep.denoiser import Denoiser
from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Batch, Networks
from fewstep.distillation.engine import assemble
from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.tasks.video.presets import VIDEO, causal_consistency_loss, forced_diffusion, shifted_chain, video_method
from fewstep.tasks.video.roll_out import forced_rollout, self_forcing_rollout
from fewstep.tasks.video.student import video_denoiser
from tests.tasks.video import tiny

PROCESS = RectifiedFlow()
CHAIN = Chain((1.0, 0.6))
SHAPE = (6, 1, 4, 4)


def batch(size=2):
    nothing = torch.tensor([[3, 2]]).expand(size, -1)
    return Batch(size, SHAPE, tiny.frames(6, size), {"prompt": tiny.PROMPT[:size]}, {"prompt": nothing})


def networks(net, **others):
    return Networks(video_denoiser(net), others.pop("teacher", video_denoiser(net)), **others)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Counted(torch.nn.Module):
    """A network that notes its calls: number of frames, whether gradients were on, and its time."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls, self.remembered = inner, [], []

    def forward(self, x, time, prompt, cache=None):
        self.calls.append((x.shape[1], torch.is_grad_enabled(), float(time.flatten()[0]), cache.frames))
        return self.inner(x, time, prompt, cache)

    def remember(self, x, time, prompt, cache):
        self.remembered.append((x.requires_grad, float(time[0])))
        return self.inner.remember(x, time, prompt, cache)

    def empty_cache(self, policy, size):
        return self.inner.empty_cache(policy, size)


def test_one_exit_for_all_chunks_and_gradients_there_alone():
    exits = set()
    for seed in range(6):
        net = Counted(tiny.network().requires_grad_(True))
        samples = self_forcing_rollout(CHAIN, 2, drop(2))(networks(net), batch(), generator(seed))
        exit_ = int(samples.index[0])
        exits.add(exit_)
        assert samples.clean.shape == (2, *SHAPE)
        assert bool((samples.index == exit_).all())
        assert [c[1] for c in net.calls] == [*[False] * exit_, True] * 3
        assert [c[2] for c in net.calls] == pytest.approx([1000.0, 600.0][: exit_ + 1] * 3)
        assert [c[3] for c in net.calls[:: exit_ + 1]] == [0, 2, 2]
        assert net.remembered == [(False, 0.0)] * 3
    assert exits == {0, 1}


def test_no_gradient_comes_through_the_cache():
    """The first chunk's prediction moves the later ones only through the cache: its slope is that of its own chunk."""
    net = tiny.network().requires_grad_(True)
    samples = self_forcing_rollout(Chain((1.0,)), 2, drop(4))(networks(net), batch(), generator())
    through = torch.autograd.grad(samples.clean[:, :2].sum(), net.last.bias, retain_graph=True)[0]
    later = torch.autograd.grad(samples.clean[:, 2:4].sum(), net.last.bias)[0]
    assert torch.allclose(through, later)  # the bias of the last layer: -t per number, wherever the chunk stands


def test_a_clip_of_a_part_of_a_chunk_is_refused():
    with pytest.raises(FewstepError, match="whole chunks"):
        self_forcing_rollout(CHAIN, 4, drop(4))(networks(tiny.network()), batch(), generator())


def test_forced_rollout_sees_real_frames():
    net = tiny.network()
    samples = forced_rollout(CHAIN, 2, 4)(networks(net), batch(), generator())
    other = dataclasses.replace(batch(), clean=batch().clean + torch.eye(6)[0].reshape(1, 6, 1, 1, 1))
    moved = forced_rollout(CHAIN, 2, 4)(networks(net), other, generator()).clean - samples.clean
    assert samples.clean.shape == (2, *SHAPE)
    assert bool((moved[:, 2:].abs().amax((0, 2, 3, 4)) > 1e-6)[:4].all())


# --- consistency ----------------------------------------------------------------------------------------------------

STD = 0.5


def exact_score(x, time, **_):
    """Velocity of the flow whose data are independent normal numbers of deviation STD, frames at their own times."""
    t = (time / 1000).double()
    t = t.reshape(*t.shape, *[1] * (x.ndim - t.ndim))
    clean = (1 - t) * STD**2 / ((1 - t) ** 2 * STD**2 + t**2) * x
    return (x - clean) / t.clamp(min=1e-9)


def exact_jump(x, time, scale=1.0, **_):
    """The velocity whose clean prediction is the end of the flow's path."""
    t = (time / 1000).double()
    t = t.reshape(*t.shape, *[1] * (x.ndim - t.ndim))
    return (x - scale * STD / ((1 - t) ** 2 * STD**2 + t**2).sqrt() * x) / t.clamp(min=1e-9)


def consistency(points, scale=1.0):
    student = Denoiser(partial(exact_jump, scale=scale), PROCESS, Prediction("velocity"))
    them = Networks(student, Denoiser(exact_score, PROCESS, Prediction("velocity")), target=student)
    term = causal_consistency_loss(2, 4, shifted_chain(PROCESS, points, 1.0).times, 1.0)
    given = dataclasses.replace(batch(), clean=STD * tiny.frames(6, 400), size=400)
    return float(term(them, given, None, generator())[1]["squared"])


def test_the_flows_own_jump_is_the_fixed_point_of_causal_consistency():
    coarse, fine = consistency(20), consistency(80)
    assert fine < coarse / 20  # a DDIM step's error is of second order: the squared one of fourth
    assert consistency(80, scale=0.7) > 3 * fine


def test_forced_diffusion_is_least_at_the_posterior_mean():
    given = dataclasses.replace(batch(), clean=STD * tiny.frames(6, 400), size=400)
    for chunk in (2, 6):
        term = forced_diffusion(chunk, 4)

        def error(scale, term=term):
            net = Denoiser(lambda x, time, **_: scale * exact_score(x, time), PROCESS, Prediction("velocity"))
            return float(term(Networks(net, net), given, None, generator())[0])

        assert error(1.0) < min(error(0.9), error(1.1))


# --- presets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(VIDEO))
def test_every_method_trains_in_the_engine(name):
    method = video_method(
        name, PROCESS, steps=2, chunk=2, window=4, **({"sink": 2} if "sink" in VIDEO[name].options else {})
    )
    teacher = tiny.network(1).float()
    start = tiny.network(2).float()
    given = batch()
    given = dataclasses.replace(given, clean=given.clean.float())
    engine = assemble(
        method,
        video_denoiser(teacher),
        copy.deepcopy(teacher).requires_grad_(True),
        lambda module: module,
        lambda generator: given,
        SHAPE,
        student=start.requires_grad_(True),
        reward=lambda x, batch: x.flatten(1).mean(1),
    )
    for names, loss in engine.turns(0, 10, generator()):
        value, _ = loss()
        value.backward()
        for role in names:
            grads = [p.grad for p in engine.modules[role].parameters() if p.grad is not None]
            assert grads
            assert all(bool(g.isfinite().all()) for g in grads)


def test_presets_differ_in_data():
    def policy(name, **options):
        return video_method(name, PROCESS, **options).rollout.policy

    assert policy("self_forcing") == CachePolicy(6)
    assert policy("longlive") == CachePolicy(6, 3)
    assert policy("reward_forcing") == CachePolicy(6, 3, 0.99)
    assert "reward" in video_method("reward_forcing", PROCESS).needs
    assert "reward" not in video_method("reward_forcing", PROCESS, beta=0.0).needs
    assert video_method("self_forcing", PROCESS).steps.times == pytest.approx((1.0, 0.9375, 5 / 6, 0.625))
    with pytest.raises(FewstepError, match="no option"):
        video_method("self_forcing", PROCESS, sink=3)
