"""Damaged scheduler configurations: a plan or a clear refusal, never another exception."""

import json

import diffusers as d
import pytest

from fewstep.pipelines.load import open_scheduler
from fewstep.pipelines.probing import plan_of_scheduler, unreadable
from fewstep.pipelines.scheduler import PlanScheduler
from tests.core.toys import STABLE_DIFFUSION
from tests.fuzzing import mutations, refuses_cleanly

SCHEDULERS = [
    d.DDIMScheduler(clip_sample=False, **STABLE_DIFFUSION),
    d.DPMSolverMultistepScheduler(**STABLE_DIFFUSION),
    d.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    d.EulerAncestralDiscreteScheduler(**STABLE_DIFFUSION),
    d.LCMScheduler(**STABLE_DIFFUSION),
    d.SASolverScheduler(**STABLE_DIFFUSION),
    d.FlowMatchEulerDiscreteScheduler(shift=3.0),
    d.EDMEulerScheduler(),
    PlanScheduler.from_plan(plan_of_scheduler(d.FlowMatchEulerDiscreteScheduler(), 2)),
]


def opened(scheduler, count, seed, monkeypatch):
    """How many of the mutated configurations still give a plan of two steps."""
    monkeypatch.setattr(unreadable, "CHANGES", ())  # what would mend each of them takes longer than reading it
    configuration = json.loads(scheduler.to_json_string())

    def load(changed):
        found = open_scheduler(changed)
        return getattr(found, "plan", None) or plan_of_scheduler(found, 2)

    return sum(refuses_cleanly(lambda c=c: load(c)) is not None for c in mutations(configuration, count, seed))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_damaged_configurations_are_refused_cleanly(scheduler, monkeypatch):
    assert 0 < opened(scheduler, 60, 1, monkeypatch) < 60


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_thousands_of_damaged_configurations_are_refused_cleanly(scheduler, monkeypatch):
    assert 0 < opened(scheduler, 2250, 2, monkeypatch) < 2250
