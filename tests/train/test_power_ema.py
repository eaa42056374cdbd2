"""Averages chosen after the training, against the averages that were kept at that very width."""

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.train.power_ema import PowerEMA, exponent, profile_shares, reconstruct_average


@pytest.mark.parametrize("width", [0.03, 0.1, 0.2])
def test_the_profile_of_an_exponent_has_that_width(width):
    gamma = exponent(width)
    tau = (np.arange(1_000_000) + 0.5) / 1_000_000
    density = (gamma + 1) * tau**gamma
    mean = (density * tau).mean()
    assert (density * (tau - mean) ** 2).mean() ** 0.5 == pytest.approx(width, rel=1e-4)


def test_a_kept_profile_is_found_again():
    stored = [(t, exponent(w)) for t in (100, 200, 300) for w in (0.05, 0.1)]
    share = profile_shares(stored, (300, exponent(0.1)))
    assert share[5] == pytest.approx(1, abs=1e-4)
    assert sum(map(abs, share)) == pytest.approx(1, abs=1e-3)


def test_another_width_is_near_the_average_that_was_kept_at_it(tmp_path):
    """A weight on a smooth walk: the reconstruction is far nearer to the kept average than any stored one is."""
    layer = nn.Linear(3, 1, bias=False)
    modules = {"m": layer}
    averages, truth = PowerEMA(modules), PowerEMA(modules, (0.07,))
    for step in range(1, 401):
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[step / 400, np.sin(step / 60), (step / 400) ** 2]]))
        averages.update(modules)
        truth.update(modules)
        if step % 25 == 0:
            averages.store(tmp_path)
    wanted = truth.state()["0.07/m.weight"]
    found = reconstruct_average(tmp_path, 0.07)["m.weight"]
    nearest = min(float((t - wanted).abs().max()) for t in averages.state().values())
    assert float((found - wanted).abs().max()) < 0.02 * nearest
    earlier = reconstruct_average(tmp_path, 0.1, at=200)["m.weight"]
    assert float((earlier - found).abs().max()) > nearest


def test_mistakes_are_told(tmp_path):
    with pytest.raises(FewstepError, match="no stored averages"):
        reconstruct_average(tmp_path, 0.1)
    with pytest.raises(FewstepError, match="relative width"):
        exponent(0.3)


def test_stored_averages_continue_with_their_training(tmp_path):
    from fewstep.distillation.chain import Chain
    from fewstep.distillation.method import Method
    from fewstep.files import read_tensors
    from fewstep.testing.toy import Toy
    from fewstep.testing.training import train_toy

    def regress(networks, batch, made, generator):
        return networks.student(batch.clean, torch.ones(batch.size)).square().mean(), {}

    toy, method = Toy(width=8, pretraining=0), Method({"x": regress}, Chain((1.0,)))
    options = {"batch": 8, "checkpoint_every": 10, "ema_widths": (0.1,)}
    train_toy(toy, method, steps=20, out=tmp_path / "whole", **options, decay="constant")
    train_toy(toy, method, steps=10, out=tmp_path / "parts", **options, decay="constant")
    train_toy(toy, method, steps=20, out=tmp_path / "parts", **options, decay="constant")
    a, b = (read_tensors(tmp_path / n / "averages" / "00000020.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(a[key], b[key]) for key in a)
