"""Trackers of accelerate get what the history gets; unknown and absent ones are told apart before the first step."""

import pytest
import torch
from accelerate import tracking as theirs
from torch import nn

from fewstep.errors import FewstepError
from fewstep.train import trackers
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.stage import Stage, StageConfig


class Paper(theirs.GeneralTracker):
    """A tracker on paper."""

    name, requires_logging_directory, pages, ended = "paper", False, [], []

    def __init__(self, run_name, **kwargs):
        super().__init__()
        self.run_name = run_name

    @property
    def tracker(self):
        return self

    def start(self):
        self.pages.clear()

    def store_init_configuration(self, values):
        self.pages.append(values)

    def log(self, values, step=None, **kwargs):
        self.pages.append((step, values))

    def finish(self):
        self.ended.append(True)


def stage(weight):
    def loss(given, generator):
        return (weight(given["x"]) - 1).square().mean(), {"half": 0.5}

    def batch(generator):
        return {"x": torch.randn(4, 2, generator=generator)}

    return Stage({"weight": weight}, batch, loss, lambda folder: None)


def test_trackers_get_what_the_history_gets(monkeypatch):
    monkeypatch.setitem(theirs.LOGGER_TYPE_TO_CLASS, "paper", Paper)
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["paper"])
    monkeypatch.setattr(trackers, "known_tracker", lambda name: Paper(trackers.PROJECT))
    config = StageConfig(steps=40, batch=4, device="cpu", trackers=("paper",), learning_rate=1e-2)
    progress = fit(stage(nn.Linear(2, 1)), config, None, accelerator_for(config), quiet=True)
    settings, *pages = Paper.pages
    assert settings["steps"] == 40
    assert [step for step, _ in pages] == [20, 40]
    assert pages == [(h["step"], {k: v for k, v in h.items() if k != "step"}) for h in progress.history]
    assert Paper.ended


@pytest.mark.parametrize(
    ("name", "said"), [("tensorbord", "unknown tracker"), ("clearml", "this tracker's package is not installed")]
)
def test_a_tracker_that_cannot_be_is_refused_before_the_first_step(name, said, monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["tensorboard"])
    config = StageConfig(steps=1, batch=4, device="cpu", trackers=(name,))
    weight = nn.Linear(2, 1)
    before = weight.weight.clone()
    with pytest.raises(FewstepError, match=said):
        fit(stage(weight), config, None, accelerator_for(config), quiet=True)
    assert torch.equal(weight.weight, before)
