"""The leaderboard on a tiny pipeline: budgets are counted passes, finished entries are kept, seeds are summarised."""

import pytest
import torch
from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.distillation.taps import features
from fewstep.errors import FewstepError
from fewstep.files import read_json
from fewstep.jobs.distill.cost import counting
from fewstep.jobs.distill.leaderboard import Leaderboard, compete, summary
from fewstep.pipelines import save_pipeline
from fewstep.process import RectifiedFlow
from tests.pipelines import tiny_pipelines as tiny

SMALL = (
    "teacher.steps=2", "teacher.solver=ddim", "data.count=6", "evaluation.items=20", "evaluation.reference=40",
    "evaluation.seeds=[7]", "evaluation.pictures=0", "evaluation.features=[pixels]", "batch=500",
)  # fmt: skip


def test_passes_are_samples_and_a_backward_needs_a_gradient():
    layer = nn.Linear(2, 2)
    with counting({"a": layer}) as seen:
        layer(torch.zeros(3, 2))
        with torch.no_grad():
            layer(torch.zeros(5, 2))
    assert seen["a"] == {"forward": 8, "backward": 3}
    layer(torch.zeros(3, 2))
    assert seen["a"] == {"forward": 8, "backward": 3}


def test_a_call_that_an_adversary_leaves_early_counts():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model = Denoiser(Told(network), RectifiedFlow())
    with counting({"a": model.network}) as seen:
        features(model, ("inner.0",), torch.zeros(4, 2), torch.full((4,), 0.5), None, early=True)
    assert seen["a"] == {"forward": 4, "backward": 4}


class Told(nn.Module):
    """A network that listens to no time."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_equal_budgets_give_unequal_updates_and_nothing_is_run_twice(tmp_path):
    save_pipeline(tiny.dit(None), tmp_path / "model")
    contest = Leaderboard(
        str(tmp_path / "model"), ("reflow", "diff_instruct"), steps=(1,), seeds=(0, 1), budget=200, batch=4,
        overrides=SMALL,
    )  # fmt: skip
    found = compete(contest, tmp_path / "runs", say=lambda line: None)
    rows = found["entries"]
    assert [row["failed"] for row in rows if "failed" in row] == []
    for row in rows:
        assert row["updates"] == max(1, int(200 / row["passes_per_update"]))
    # reflow: one call with gradient of 4 samples; diff_instruct: student, critic and teacher
    per_update = {row["method"]: row["passes_per_update"] for row in rows}
    assert per_update["reflow"] == 4 * 3
    assert per_update["diff_instruct"] > per_update["reflow"]
    assert {line["seeds"] for line in found["summary"]} == {2}
    report = next((tmp_path / "runs").glob("reflow-1-0/results.json"))
    before = report.stat().st_mtime_ns
    units = {f: f.stat().st_mtime_ns for f in (tmp_path / "runs").rglob("units/*.json")}
    again = compete(contest, tmp_path / "runs", say=lambda line: None)
    assert again["entries"] == rows
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "runs").rglob("units/*.json")} == units
    assert report.stat().st_mtime_ns >= before


def test_stages_fit_the_training_that_the_budget_buys(tmp_path):
    """Progressive distillation counts its stages in updates: four of 5000 unless they are laid over the training."""
    save_pipeline(tiny.dit(None), tmp_path / "model")
    contest = Leaderboard(
        str(tmp_path / "model"), ("progressive",), steps=(1,), seeds=(0,), budget=240, batch=4, overrides=SMALL
    )
    row = compete(contest, tmp_path / "runs", say=lambda line: None)["entries"][0]
    assert "failed" not in row, row
    # the student with gradient, and its former self twice
    assert row["passes_per_update"] == 4 * (3 + 2)
    assert row["updates"] == 12
    done = read_json(tmp_path / "runs" / "progressive-1-0" / "results.json")
    assert done["training"]["steps"] == 12
    assert done["recipe"]["options"] == {"every": 3}


def test_the_summary_is_mean_and_deviation_over_seeds():
    rows = [
        {"method": "m", "steps": 1, "seed": s, "updates": 5, "seconds": 2.0 * s, "bytes_before_activations": 1,
         "student": {"frechet": v}, "teacher_few": {"frechet": 9.0}}
        for s, v in ((0, 1.0), (1, 3.0))
    ]  # fmt: skip
    line = summary([*rows, {"method": "m", "steps": 1, "seed": 2, "failed": "no"}])[0]
    assert line["metrics"]["frechet"] == {"mean": 2.0, "deviation": pytest.approx(2**0.5)}
    assert line["seeds"] == 2
    assert line["seconds"] == 1.0


def test_unknown_methods_are_told():
    with pytest.raises(FewstepError, match="unknown distillation method"):
        Leaderboard(methods=("dmd3",)).entries()
