"""The loop with several optimizer groups: optimizers of their own, resumed in the middle."""

import pytest
import torch

from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Samples
from fewstep.distillation.method import Method
from fewstep.distillation.roles import Critic, OptimizerSettings, TargetNetwork, UpdateRule
from fewstep.files import read_tensors
from fewstep.testing.toy import Toy
from fewstep.testing.training import train_toy
from fewstep.train.memory import memory_of

TOY = Toy(width=8, pretraining=0)


def roll(networks, batch, generator):
    noise, t = torch.randn(batch.size, 2, generator=generator), torch.ones(batch.size, dtype=torch.float64)
    return Samples(networks.student(noise, t), noise, t, 0 * t, torch.zeros(batch.size))


def small(networks, batch, made, generator):
    return made.clean.square().mean(), {}


def follow(networks, batch, made, generator):
    t = torch.full((batch.size,), 0.5, dtype=torch.float64)
    return (networks.critic(made.clean, t) - made.clean).square().mean(), {}


def method(**tracking):
    critic = Critic(follow, UpdateRule(**tracking))
    return Method(
        {"small": small}, Chain((1.0,)), roll, critic, target=TargetNetwork(0.9), settings=OptimizerSettings()
    )


def moved(module, start):
    pairs = zip(module.parameters(), start.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def test_every_party_has_its_own_learning_rate():
    """Adam's first step has the length of the learning rate, whatever the gradient."""
    start = TOY.start()
    made = train_toy(TOY, method(ratio=1, learning_rate=5.0), steps=1, batch=8, learning_rate=1e-3, ema=0.0)
    assert moved(made.engine.modules["student"], start) == pytest.approx(1e-3, rel=1e-3)
    assert moved(made.engine.modules["critic"], start) == pytest.approx(5e-3, rel=1e-3)


def test_only_the_student_is_averaged():
    live = train_toy(TOY, method(), steps=6, batch=8, ema=0.0, learning_rate=1e-2)
    slow = train_toy(TOY, method(), steps=6, batch=8, ema=0.9, learning_rate=1e-2)
    same = [
        all(torch.equal(a, b) for a, b in zip(x.parameters(), y.parameters(), strict=True))
        for x, y in ((live.engine.modules[n], slow.engine.modules[n]) for n in ("student", "critic"))
    ]
    assert same == [False, True]


def test_a_resumed_run_is_the_undisturbed_one(tmp_path):
    options = {"batch": 8, "checkpoint_every": 7, "decay": "constant"}
    whole = train_toy(TOY, method(ratio=2, pull=0.1), steps=25, out=tmp_path / "whole", **options)
    train_toy(TOY, method(ratio=2, pull=0.1), steps=11, out=tmp_path / "parts", **options)
    parts = train_toy(TOY, method(ratio=2, pull=0.1), steps=25, out=tmp_path / "parts", **options)
    assert whole.progress.history[-1] == parts.progress.history[-1]
    a, b = (read_tensors(tmp_path / n / "checkpoint" / "state.safetensors") for n in ("whole", "parts"))
    assert {k.split("/")[0] for k in a} == {"module", "ema", "optimizer"}
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_memory_estimate_is_what_lies_in_memory():
    from fewstep.train.distillation import stage_of
    from fewstep.train.stage import StageConfig

    made = train_toy(TOY, method(), steps=1, batch=8)
    config = StageConfig()
    told = memory_of(stage_of(made.engine, config, lambda folder: None), config)
    weights = 4 * sum(p.numel() for p in TOY.start().parameters())
    assert told["student: weights"] == told["critic: gradients"] == told["target: frozen"] == weights
    assert told["student: adamw moments"] == 2 * weights
    assert "critic: average" not in told


def test_moments_in_eight_bits_are_resumed_bit_for_bit(tmp_path, monkeypatch):
    """A layer of 4096 weights is the least that torchao rounds; its step is not compiled here, which takes long."""
    monkeypatch.setattr("torch.compile", lambda function, **settings: function)
    wide = Toy(width=64, pretraining=0)
    options = {"batch": 8, "optimizer": "adamw8bit", "decay": "constant", "checkpoint_every": 3}
    train_toy(wide, method(), steps=6, out=tmp_path / "whole", **options)
    train_toy(wide, method(), steps=3, out=tmp_path / "parts", **options)
    train_toy(wide, method(), steps=6, out=tmp_path / "parts", **options)
    a, b = (read_tensors(tmp_path / n / "checkpoint" / "state.safetensors") for n in ("whole", "parts"))
    assert any(key.endswith("/codes") for key in a)
    assert all(torch.equal(a[key], b[key]) for key in a)
