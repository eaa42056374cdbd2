"""Scale distillation on Gaussian signals, where the tower property and what it saves are matrix algebra."""

import pytest
import torch
from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.distillation.core import Batch, Networks
from fewstep.distillation.method import method
from fewstep.distillation.part import replaced
from fewstep.distillation.times import fixed_times
from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import Cosine
from fewstep.tasks.restoration import box_downsampling, decoder_loss, nested, scale_conditions

SIZE = 32
PLACES = torch.arange(SIZE).double()
COVARIANCE = torch.exp(-(PLACES[:, None] - PLACES).abs() / 6)
PROCESS = Cosine()


def reduction(factor):
    """Means of `factor` neighbours, (SIZE / factor, SIZE)."""
    return torch.eye(SIZE // factor).double().repeat_interleave(factor, 1) / factor


def seen(factor, alpha):
    """What a denoiser sees of a signal: the noisy state (with sigma^2 = 1 - alpha^2) and the reduced signal."""
    return torch.cat([alpha * torch.eye(SIZE).double(), reduction(factor)])


def gain(factor, alpha):
    """E[x | state, reduced] = gain (state, reduced), and the variance that is left."""
    a = seen(factor, alpha)
    noise = torch.zeros(len(a)).double()
    noise[:SIZE] = 1 - alpha**2
    inner = torch.linalg.solve(a @ COVARIANCE @ a.T + noise.diag() + 1e-12 * torch.eye(len(a)), a @ COVARIANCE).T
    return inner, COVARIANCE - inner @ a @ COVARIANCE


@pytest.mark.parametrize(
    ("easier", "harder", "ratio"), [(2, 4, (0.58, 0.56, 0.50, 0.41)), (4, 8, (0.50, 0.43, 0.31, 0.20))]
)
def test_what_a_teacher_of_the_easier_task_saves(easier, harder, ratio):
    """Part of the targets' variance that is left, by the law of total variance; worked out by hand for the paper."""
    for alpha, wanted in zip((0.001, 0.5, 0.8, 0.95), ratio, strict=True):
        (_, easy), (_, hard) = gain(easier, alpha), gain(harder, alpha)
        assert float(1 - easy.trace() / hard.trace()) == pytest.approx(wanted, abs=0.011)


def linear(matrix, alpha):
    """A denoiser that is this matrix of (state, reduced signal)."""

    def network(x, time, given):
        return (torch.cat([x.flatten(1), given.flatten(1)], 1) @ matrix.T).reshape(x.shape)

    return Denoiser(network, PROCESS, Prediction("sample"))


def test_three_scales_in_a_row_stay_at_the_optimum_with_less_noise_in_the_gradient():
    """x2 teaches x4, and x4 teaches x8: no mean gradient at the optimum, and a smaller spread than with the data."""
    t = 0.6
    alpha = float(PROCESS.alpha(t))
    root = torch.linalg.cholesky(COVARIANCE)
    count, term = 20_000, method("yonos", PROCESS).terms["easier"]
    term = replaced(term, times=replaced(term.times, start=fixed_times((t,))))
    x = torch.randn(count, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ root.T
    for easier, harder in ((2, 4), (4, 8)):
        leaf = gain(harder, alpha)[0].clone().requires_grad_()
        teacher, (reduced, given) = (
            linear(gain(easier, alpha)[0], alpha),
            (x @ reduction(f).T for f in (easier, harder)),
        )
        spreads = []
        for private, model in (
            (reduced, teacher),
            (x, Denoiser(lambda s, time, given: given, PROCESS, Prediction("sample"))),
        ):
            batch = Batch(count, (SIZE,), clean=x, condition={"given": given, "teacher.given": private})
            networks = Networks(linear(leaf, alpha), model)
            loss, numbers = term(networks, batch, None, torch.Generator().manual_seed(1))
            assert float(torch.autograd.grad(loss, leaf)[0].abs().max()) < 0.05 * float(loss.detach())
            spreads.append(float(numbers["distance"]))
        (_, easy), (_, hard) = gain(easier, alpha), gain(harder, alpha)
        assert spreads[1] * SIZE == pytest.approx(float(hard.trace()), rel=0.03)
        assert spreads[0] * SIZE == pytest.approx(float(hard.trace() - easy.trace()), rel=0.05)


def test_small_pictures_are_nested():
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    two, four, eight = nested(x, (2, 4, 8))
    for small, factor in ((two, 2), (four, 4), (eight, 8)):
        torch.testing.assert_close(small, box_downsampling(factor, x.shape[1:]).forward(x))
    given = scale_conditions(x, 2, 4, "low")
    assert set(given) == {"low", "teacher.low"}
    torch.testing.assert_close(given["low"], nn.functional.interpolate(four, size=(16, 16), mode="bicubic"))
    assert torch.equal(scale_conditions(x, 1, 2, "low")["teacher.low"], x)
    for bad in ((4, 2), (2, 3), (2, 2)):
        with pytest.raises(FewstepError, match="rise"):
            nested(x, bad)
    with pytest.raises(FewstepError, match="divided"):
        nested(x, (2, 32))


def test_the_decoder_learns_alone():
    """L1 of a scale: the median of ratios is the optimum, and no gradient reaches what made the latents."""
    source = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    latents, pictures = (2 * source).reshape(3, 1, 1, 1), torch.tensor([2.0, 6.0, 4.0]).reshape(3, 1, 1, 1)
    scale = torch.tensor(0.7, requires_grad=True)
    loss = decoder_loss(lambda z: scale * z, latents, pictures, lambda a, b: (a - b).square().flatten(1).sum(1), 0.5)
    loss.backward()
    assert source.grad is None
    residual = 0.7 * torch.tensor([2.0, 4.0, 8.0]) - torch.tensor([2.0, 6.0, 4.0])
    by_hand = (residual.sign() * torch.tensor([2.0, 4.0, 8.0]) + residual * torch.tensor([2.0, 4.0, 8.0])).mean()
    assert float(loss.detach()) == pytest.approx(float(residual.abs().mean() + 0.5 * residual.square().mean()))
    assert float(scale.grad) == pytest.approx(float(by_hand))
