"""The kernel runs in Triton's interpreter, on the processor; these tests are skipped where Triton is not installed."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

pytestmark = pytest.mark.extra("triton")
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in a process of its own")


@interpreted
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8row", "w8a8tensor"])
def test_a_layer_on_it_is_the_layer_on_the_float_product(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fewstep.quant import quantize, triton_conv

    calls, real = [], triton_conv.convolve
    monkeypatch.setattr(triton_conv, "convolve", lambda *a: calls.append(1) or real(*a))
    torch.manual_seed(0)
    source = torch.nn.Sequential(torch.nn.Conv2d(5, 9, 3, padding=1), torch.nn.Conv2d(9, 6, 1))
    x = torch.randn(2, 5, 6, 7)
    results = []
    for backend in ("fewstep", "triton"):
        model = copy.deepcopy(source)
        quantize(model, scheme, rules=(), backend=backend)
        with torch.no_grad():
            results.append(model(x))
        assert len(calls) == (2 if backend == "triton" else 0)
    assert results[1].is_contiguous()
    # codes of the second layer may differ by one where the last digit of the first one's output does
    assert float((results[0] - results[1]).abs().max()) < 0.02 * float(results[0].abs().max())


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="is running")
def test_the_kernel_in_the_interpreter() -> None:
    """Triton decides when it is imported whether it interprets; so the checks below get a process of their own."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@interpreted
@pytest.mark.parametrize(
    ("images", "inputs", "outputs", "kernel", "stride", "padding", "dilation"),
    [
        (2, 70, 66, (3, 3), (1, 1), (1, 1), (1, 1)),  # inner and outer blocks that are not full
        (1, 4, 320, (3, 3), (2, 2), (1, 1), (1, 1)),
        (3, 33, 5, (1, 1), (1, 1), (0, 0), (1, 1)),
        (1, 8, 8, (3, 1), (1, 2), (2, 0), (2, 1)),
        (0, 8, 8, (3, 3), (1, 1), (1, 1), (1, 1)),
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_it_is_the_integer_convolution(
    images: int, inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int],
    padding: tuple[int, int], dilation: tuple[int, int], last: bool,
) -> None:  # fmt: skip
    from fewstep.quant import triton_conv
    from fewstep.quant.native import ConvGeometry

    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (images, inputs, 9, 7), generator=generator, dtype=torch.int8)
    w = torch.randint(-127, 128, (outputs, inputs, *kernel), generator=generator, dtype=torch.int8)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    where = ConvGeometry(stride, padding, dilation, 1)
    sums = F.conv2d(x.double(), w.double(), None, stride, padding, dilation)
    assert not images or int(sums.abs().max()) < 2**24
    ones = torch.ones(outputs)
    plain = triton_conv.convolve(x, w, torch.ones(images), ones, None, where, torch.float32)
    assert torch.equal(plain.double(), sums)
    step, scale = torch.rand(images, generator=generator), torch.rand(outputs, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    y = triton_conv.convolve(x, w, step, scale, bias, where, torch.float16)
    expected = sums * scale.double()[:, None, None] * step.double()[:, None, None, None] + bias.double()[:, None, None]
    small = expected.abs() < 6e4
    assert y.dtype == torch.float16
    assert torch.allclose(y.double()[small], expected[small], rtol=1e-3, atol=1e-2)
