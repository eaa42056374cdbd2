"""Stochastic plans of different steps get the same noise at the same times."""

import dataclasses

import pytest
import torch

from fewstep.pipelines import PipelineSampler
from fewstep.plan.noise import passed_over
from fewstep.prediction import Prediction
from fewstep.process import VPDiscrete
from fewstep.solvers import SOLVERS, grids
from tests.pipelines import tiny_pipelines as tiny

PROCESS = VPDiscrete.from_betas()


def plan(times):
    return SOLVERS["consistency"](PROCESS, Prediction(), grids.given(times))


@pytest.mark.parametrize(
    ("times", "like", "expected"),
    [
        ((999, 499), (999, 759, 499, 259), [1, 0]),
        ((999, 759, 499, 259), (999, 759, 499, 259), [0, 0, 0, 0]),
        ((999, 679, 339), (999, 759, 499, 259), [0, 1, 0]),  # 679 is nearest to 759, and 339 to 259
        ((999, 300, 200), (999, 900, 800, 250), [1, 0, 0]),  # both want the last draw: one is left for the second
        ((999, 700, 400, 100), (999, 500), [0, 0, 0, 0]),  # more rows than draws: what the stream gives next
        ((999,), (999, 500), [0]),
    ],
)
def test_a_row_takes_the_draw_of_the_nearest_time(times, like, expected):
    assert passed_over(plan(times), plan(like)) == expected


def test_a_pipeline_adds_the_noise_that_the_other_plan_adds_there(tmp_path):
    pipe = tiny.unconditional(tmp_path)
    like, short = plan((999, 759, 499, 259)), plan((999, 499))
    first, last = short.rows
    only_noise = dataclasses.replace(first, state={}, output={}, noise=1.0)
    nothing_more = dataclasses.replace(last, state={1: 1.0}, output={}, noise=0.0)
    shown = short.replace(rows=(only_noise, nothing_more))
    sampler = PipelineSampler(pipe)
    with torch.no_grad():
        plain = sampler(shown, None, [3, 5], "latent")
        same = sampler.changed(noise_like=like)(shown, None, [3, 5], "latent")
    for k, seed in enumerate((3, 5)):
        stream = torch.Generator().manual_seed(seed)
        prior, at_759, at_499 = (torch.randn(1, *plain.shape[1:], generator=stream) for _ in range(3))
        torch.testing.assert_close(plain[k : k + 1], at_759, msg="without the other plan, the next draw")
        torch.testing.assert_close(same[k : k + 1], at_499)
        assert not torch.equal(prior, at_759)
