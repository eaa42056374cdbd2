"""Conditions learned by watching a pipeline: the network then says what the pipeline itself would make of it."""

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.pipelines import PipelineSampler, backbone_of, load_pipeline, process_of, save_pipeline
from fewstep.pipelines.encoded import encode_conditions
from fewstep.pipelines.network import pipeline_network
from fewstep.pipelines.two_times import TwoTimes
from tests.pipelines import tiny_pipelines as tiny


def opened(kind, folder):
    pipe = tiny.MAKERS[kind](folder)
    call = tiny.CALLS.get(kind, {})
    process, _ = process_of(pipe, **call)
    return pipe, PipelineSampler(pipe, 1.0, dict(call)), process


@pytest.mark.parametrize("kind", [kind for kind in tiny.MAKERS if kind != "z-image"])
def test_the_network_says_what_the_pipeline_says(kind, tmp_path):
    pipe, generate, process = opened(kind, tmp_path)
    conditions = tiny.conditions(kind, 3)
    encoded = encode_conditions(generate, process, conditions)
    assert encoded.count == (0 if conditions is None else 3)
    numbers = torch.tensor([2, 0])
    condition, _ = encoded.pick(numbers)
    x = torch.randn(2, *encoded.shape, generator=torch.Generator().manual_seed(0))
    time = float(process.network_time(0.6 * process.noisiest))
    network, times = encoded.network(backbone_of(pipe)), torch.full((2,), time)
    chosen = None if conditions is None else [conditions[2], conditions[0]]
    with torch.no_grad():
        told = network(x, times, **(condition or {}))
        wanted = pipeline_network(generate, chosen, [0, 1])(x, torch.tensor(time))
    torch.testing.assert_close(told, wanted, atol=1e-4, rtol=1e-4)


def test_a_network_that_takes_lists_is_refused(tmp_path):
    _, generate, process = opened("z-image", tmp_path)
    with pytest.raises(FewstepError, match="takes lists"):
        encode_conditions(generate, process, tiny.conditions("z-image", 2))


@pytest.mark.parametrize("kind", ["sd", "sdxl", "pixart", "sd3", "dit", "wan"])
def test_the_negative_is_what_the_pipeline_guides_away_from(kind, tmp_path):
    pipe, generate, process = opened(kind, tmp_path)
    conditions = tiny.conditions(kind, 2)
    encoded = encode_conditions(generate, process, conditions)
    condition, negative = encoded.pick(torch.tensor([0, 1]))
    assert negative is not None
    x = torch.randn(2, *encoded.shape, generator=torch.Generator().manual_seed(0))
    time = float(process.network_time(0.6 * process.noisiest))
    network, times = encoded.network(backbone_of(pipe)), torch.full((2,), time)
    guided = PipelineSampler(pipe, 3.0, dict(generate.call))
    with torch.no_grad():
        within, without = network(x, times, **condition), network(x, times, **negative)
        wanted = pipeline_network(guided, conditions, [0, 1])(x, torch.tensor(time))
    torch.testing.assert_close(without + 3.0 * (within - without), wanted, atol=1e-4, rtol=1e-4)


def test_an_unconditional_pipeline_has_no_conditions(tmp_path):
    _, generate, process = opened("ddim", tmp_path)
    assert encode_conditions(generate, process, None).pick(torch.tensor([0, 0])) == (None, None)


@pytest.mark.parametrize("kind", ["sd", "dit", "sd3"])
def test_a_student_with_two_times_begins_as_its_teacher_and_is_kept(kind, tmp_path):
    pipe, generate, process = opened(kind, tmp_path)
    encoded = encode_conditions(generate, process, tiny.conditions(kind, 2))
    base = backbone_of(pipe)
    student = TwoTimes.of(base)
    x = torch.randn(2, *encoded.shape, generator=torch.Generator().manual_seed(0))
    condition, _ = encoded.pick(torch.tensor([0, 1]))
    times = torch.full((2,), float(process.network_time(0.6 * process.noisiest)))
    network = encoded.network(student)
    with torch.no_grad():
        told = encoded.network(base)(x, times, **condition)
        for end in (0.0, 0.5):
            torch.testing.assert_close(network(x, times, target_time=end * times, **condition), told)
        with pytest.raises(FewstepError, match="jumps"):
            network(x, times, **condition)
        generator = torch.Generator().manual_seed(1)
        for span in student.spans:  # as if trained
            span.linear_2.weight.add_(torch.randn(span.linear_2.weight.shape, generator=generator))
        near, far = (network(x, times, target_time=end * times, **condition) for end in (0.5, 0.0))
        assert not torch.allclose(near, far)
        student.finish([(float(times[0]), 0.5 * float(times[0])), (1.0, 0.0)])
        name = "unet" if kind == "sd" else "transformer"
        pipe.register_modules(**{name: student})
        save_pipeline(pipe, tmp_path / "kept")
        again = encoded.network(backbone_of(load_pipeline(tmp_path / "kept")))
        torch.testing.assert_close(again(x, times, **condition), near)
