"""The network of a pipeline as a function: the same numbers as in the pipeline, with derivatives."""

import warnings

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.jacobian import jvp, vjp
from fewstep.pipelines import PipelineSampler, plan_of, trace
from fewstep.pipelines.network import pipeline_network
from tests.pipelines import tiny_pipelines as tiny

SEEDS = [3, 1]


@pytest.mark.parametrize("name", sorted(tiny.MAKERS))
def test_it_says_what_the_pipeline_says(name, tmp_path):
    pipe = tiny.MAKERS[name](tmp_path)
    conditions, call = tiny.conditions(name, 2), tiny.CALLS[name]
    plan = plan_of(pipe, 3, **call)
    generate = PipelineSampler(pipe, 1.0, call)
    seen = trace(generate, plan, conditions, SEEDS)
    network = pipeline_network(generate, conditions, SEEDS)
    k = 1
    with torch.no_grad():
        found = network(seen.states[k] * plan.rows[k].input_scale, torch.tensor(float(plan.rows[k].network_time)))
    torch.testing.assert_close(found, seen.outputs[k], atol=2e-6, rtol=1e-5)


def test_guidance_is_inside(tmp_path):
    pipe = tiny.MAKERS["sd"](tmp_path)
    call, x = tiny.CALLS["sd"], torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = [
            pipeline_network(PipelineSampler(pipe, scale, call), ["a", "bc"], SEEDS)(x, torch.tensor(500.0))
            for scale in (1.0, 2.0, 3.0)
        ]
    torch.testing.assert_close(outputs[2] - outputs[1], outputs[1] - outputs[0], atol=1e-5, rtol=1e-4)
    assert float((outputs[1] - outputs[0]).abs().max()) > 1e-4


@pytest.mark.parametrize("name", ["sd", "dit", "flux"])
def test_derivatives_pass_through_the_pipeline(name, tmp_path):
    pipe = tiny.MAKERS[name](tmp_path)
    conditions, call = tiny.conditions(name, 2), tiny.CALLS[name]
    generate = PipelineSampler(pipe, 1.0, call)
    x = trace(generate, plan_of(pipe, 2, **call), conditions, SEEDS).states[0]
    network = pipeline_network(generate, conditions, SEEDS)

    def field(state):
        return network(state, torch.tensor(400.0))

    v, w = (torch.randn(x.shape, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forward = jvp(field, x, v)[1]
        difference = jvp(field, x, v, method="difference")[1]
    torch.testing.assert_close(forward, difference, atol=3e-3 * float(difference.abs().max()), rtol=0)
    assert float((w * forward).sum()) == pytest.approx(float((v * vjp(field, x, w)[1]).sum()), rel=1e-2, abs=1e-2)


def test_it_is_bound_to_its_conditions(tmp_path):
    network = pipeline_network(PipelineSampler(tiny.MAKERS["sd"](tmp_path), 1.0, tiny.CALLS["sd"]), ["a", "bc"], SEEDS)
    with pytest.raises(FewstepError, match="bound"):
        network(torch.zeros(3, 4, 8, 8), torch.tensor(1.0))
