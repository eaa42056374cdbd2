import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.metrics.paired import K1, K2, WIDTH, perceptual_distance, ssim


def pair(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return x, (0.7 * x + 0.3 * torch.rand(*shape, generator=generator, dtype=torch.float64))


def test_ssim_by_a_loop_over_windows():
    x, y = pair(1, 1, 12, 13)
    line = [2.718281828459045 ** (-0.5 * ((i - 5) / WIDTH) ** 2) for i in range(11)]
    weights = torch.tensor([[a * b for b in line] for a in line], dtype=torch.float64)
    weights /= weights.sum()
    found = []
    for i in range(2):
        for j in range(3):
            a, b = (part[0, 0, i : i + 11, j : j + 11] for part in (x, y))
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
            cov = (weights * (a - ma) * (b - mb)).sum()
            top = (2 * ma * mb + K1**2) * (2 * cov + K2**2)
            found.append(top / ((ma**2 + mb**2 + K1**2) * (va + vb + K2**2)))
    torch.testing.assert_close(ssim(x, y)[0], torch.stack(found).mean())


def test_ssim_of_equals_and_of_a_constant_shift():
    x, _ = pair(2, 3, 16, 16)
    torch.testing.assert_close(ssim(x, x), torch.ones(2).double())
    flat = torch.full((1, 1, 11, 11, 11), 0.5).double()
    light = (2 * 0.5 * 0.3 + K1**2) / (0.25 + 0.09 + K1**2)  # no structure: the light alone is told apart
    torch.testing.assert_close(ssim(flat, flat - 0.2), torch.tensor([light]).double())


@pytest.mark.extra("skimage")
@pytest.mark.parametrize("shape", [(3, 20, 31), (1, 13, 14, 15)])
def test_ssim_is_that_of_scikit_image(shape):
    from skimage.metrics import structural_similarity

    x, y = pair(2, *shape)
    for mine, a, b in zip(ssim(x, y), x, y, strict=True):
        options = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 1.0, "sigma": 1.5}
        theirs = structural_similarity(a.numpy(), b.numpy(), channel_axis=0, **options)
        assert float(mine) == pytest.approx(theirs, abs=1e-9)


def test_perceptual_distance_sees_detail_and_has_a_gradient():
    x, y = (part.float() for part in pair(2, 3, 16, 16))
    assert float(perceptual_distance(x, x).abs().max()) == 0
    near, far = perceptual_distance(0.9 * x + 0.1 * y, x), perceptual_distance(y, x)
    assert bool((near < far).all())
    assert not torch.equal(far, perceptual_distance(y, x, seed=1))
    moved = y.clone().requires_grad_()
    perceptual_distance(moved, x).sum().backward()
    assert bool((moved.grad != 0).any())


def test_twins_of_other_shapes_are_refused():
    x, y = pair(2, 3, 16, 16)
    for bad in (y[:1], y[..., :12]):
        with pytest.raises(FewstepError, match="structural"):
            ssim(x, bad)
    with pytest.raises(FewstepError, match="structural"):
        ssim(x[..., :10], y[..., :10])
    with pytest.raises(FewstepError, match="twins"):
        perceptual_distance(x[:, :1], y[:, :1])
