import math

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.tasks.restoration import (
    bicubic_downsampling,
    blur,
    box_downsampling,
    compressed_sensing,
    denoise,
    fourier_mask,
    grey,
    inpainting,
    radon,
    written_out,
)

HALF = torch.zeros(8, 12)
HALF[:, :6] = 1
FEW = torch.zeros(8, 8)
FEW[[0, 1, 3], :] = 1
OPERATORS = {
    "denoise": denoise((3, 8, 12)),
    "inpainting": inpainting(HALF, (3, 8, 12)),
    "grey": grey((3, 8, 12)),
    "box": box_downsampling(4, (3, 8, 12)),
    "bicubic": bicubic_downsampling(4, (3, 8, 12)),
    "blur": blur(0.8, (3, 8, 12)),
    "motion": blur(torch.tensor([[0.5, 0.3, 0.2]]), (1, 8, 12)),
    "fourier": fourier_mask(FEW, (1, 8, 8)),
    "fourier, complex": fourier_mask(FEW, (2, 8, 8)),
    "radon": radon([0, 25, 50, 100], (1, 8, 8)),
    "compressed sensing": compressed_sensing(20, (1, 8, 8)),
}


def normal(shape, seed=0):
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(operator):
    size = math.prod(operator.input_shape)
    basis = torch.eye(size, dtype=torch.float64).reshape(size, *operator.input_shape)
    return operator.forward(basis).flatten(1).T


@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint_is_the_transpose_by_the_dot_product(name):
    operator = OPERATORS[name]
    x, y = normal(operator.input_shape), normal(operator.output_shape, 1)
    there, back = operator.forward(x), operator.adjoint(y)
    assert there.shape == y.shape
    assert back.shape == x.shape
    torch.testing.assert_close((there * y).flatten(1).sum(1), (x * back).flatten(1).sum(1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", OPERATORS)
def test_pseudo_inverse_and_filter_agree_with_the_written_matrix(name):
    known = OPERATORS[name]
    operator = known if known.filter else written_out(known)
    full = matrix(operator)
    y, x = normal(operator.output_shape, 1), normal(operator.input_shape)
    expected = y.flatten(1) @ torch.linalg.pinv(full, rtol=1e-6).T
    torch.testing.assert_close(
        operator.pinv(y).flatten(1), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max())
    )
    # the filter against a solve: (2 A^T A + .3)^-1 x
    solved = torch.linalg.solve(2 * full.T @ full + 0.3 * torch.eye(full.shape[1]).double(), x.flatten(1).T).T
    filtered = operator.spectral(lambda s: 1 / (2 * s**2 + 0.3), x)
    torch.testing.assert_close(filtered.flatten(1), solved, rtol=1e-8, atol=1e-8)


def test_what_the_operators_do():
    x = torch.arange(3 * 4 * 4, dtype=torch.float64).reshape(1, 3, 4, 4)
    torch.testing.assert_close(box_downsampling(2, (3, 4, 4)).forward(x), torch.nn.functional.avg_pool2d(x, 2))
    assert grey((3, 4, 4)).forward(torch.ones(1, 3, 4, 4)).allclose(torch.ones(1, 1, 4, 4))
    flat = torch.full((1, 1, 8, 8), 0.7).double()
    for operator in (bicubic_downsampling(2, (1, 8, 8)), blur(1.0, (1, 8, 8))):
        assert operator.forward(flat).allclose(torch.tensor(0.7).double())
    # a point becomes the kernel, centred on it
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 1
    kernel = torch.tensor([[0.0, 0.1, 0.0], [0.4, 0.2, 0.3], [0.0, 0.0, 0.0]])
    assert blur(kernel, (1, 5, 5)).forward(point)[0, 0, 1:4, 1:4].allclose(kernel, atol=1e-6)


def test_line_integrals_of_a_disc_have_their_closed_form():
    side, radius = 64, 20.0
    line = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    disc = ((line**2 + line.unsqueeze(1) ** 2) <= radius**2).double()[None, None]
    found = radon([0, 30, 77, 135], (1, side, side)).forward(disc)[0, 0]
    expected = 2 * (radius**2 - line**2).clamp(min=0).sqrt()
    assert float((found - expected).abs().mean()) < 0.5  # of 40 at the middle: pixels have corners
    # a point right of the middle moves as angles turn it
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 7] = 1
    places = radon([0, 90, 180], (1, 9, 9)).forward(point)[0, 0].argmax(1).tolist()
    assert places == [7, 4, 1]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: inpainting(torch.ones(5, 5), (3, 8, 8)), "mask does not fit"),
        (lambda: inpainting(torch.full((8, 8), 0.5), (3, 8, 8)), "1 for known"),
        (lambda: box_downsampling(3, (3, 8, 8)), "not divided by 3"),
        (lambda: bicubic_downsampling(16, (3, 8, 8)), "not divided by 16"),
        (lambda: blur(0.0, (3, 8, 8)), "positive width"),
        (lambda: blur(torch.ones(9, 9), (3, 8, 8)), "kernel does not fit"),
        (lambda: grey((1, 8, 8)), "three channels"),
        (lambda: fourier_mask(torch.ones(4, 4), (1, 8, 8)), "does not fit"),
        (lambda: radon([], (1, 8, 8)), "an angle"),
        (lambda: radon([0.0], (1, 8, 9)), "square"),
        (lambda: compressed_sensing(65, (1, 8, 8)), "1 to all"),
        (lambda: compressed_sensing(5, (1, 80, 80)), "not written out"),
        (lambda: radon([0.0], (1, 8, 8)).pinv(torch.zeros(1, 1, 1, 8)), "spectrum of radon"),
    ],
)
def test_what_does_not_fit_is_refused(make, says):
    with pytest.raises(FewstepError, match=says):
        make()
