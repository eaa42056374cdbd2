import numpy as np
import pytest
import torch
from scipy import linalg, stats

from fewstep.errors import FewstepError, NonFiniteError
from fewstep.metrics import distances

LAW_X = (torch.tensor([0.3, -0.2, 0.1]).double(), torch.diag(torch.tensor([1.0, 0.5, 2.0]).double()))
LAW_Y = (
    torch.tensor([0.0, 0.4, 0.1]).double(),
    torch.tensor([[1.2, 0.3, 0.0], [0.3, 0.8, -0.2], [0.0, -0.2, 1.0]]).double(),
)


def drawn(law, n, seed):
    root = torch.linalg.cholesky(law[1])
    noise = torch.randn(n, len(law[0]), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return law[0] + noise @ root.T


def naive_mmd2(x, y, gammas):
    def k(a, b):
        return sum(np.exp(-g * np.sum((a - b) ** 2)) for g in gammas)

    n, m = len(x), len(y)
    inside_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    inside_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return inside_x + inside_y - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_mmd_equals_three_naive_loops():
    x, y = drawn(LAW_X, 13, 0), drawn(LAW_Y, 17, 1)
    kernel = distances.RbfKernel((0.1, 0.7))
    assert distances.mmd2(x, y, kernel) == pytest.approx(naive_mmd2(x.numpy(), y.numpy(), kernel.gammas), rel=1e-9)


def test_bandwidth_is_the_median_heuristic_with_three_factors():
    points = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 2, 3: median 2
    assert distances.RbfKernel.of(points).gammas == pytest.approx((1 / 32, 1 / 8, 1 / 2))


def test_mmd_is_unbiased_for_two_normal_laws():
    kernel = distances.RbfKernel((0.05, 0.2, 0.8))
    truth = distances.gaussian_mmd2(*LAW_X, *LAW_Y, kernel)
    values = torch.tensor(
        [distances.mmd2(drawn(LAW_X, 40, 2 * i), drawn(LAW_Y, 60, 2 * i + 1), kernel) for i in range(400)]
    )
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / 20
    null = torch.tensor(
        [distances.mmd2(drawn(LAW_X, 40, 2 * i), drawn(LAW_X, 40, 2 * i + 1), kernel) for i in range(400)]
    )
    assert abs(float(null.mean())) < 4 * float(null.std()) / 20
    assert float(null.min()) < 0  # an estimator that is never negative is biased


def test_gaussian_mmd_agrees_with_quadrature_in_one_dimension():
    kernel = distances.RbfKernel((0.3,))
    grid = np.linspace(-12, 12, 1201)
    density = stats.norm.pdf(grid, 0.5, 1.1) - stats.norm.pdf(grid, -0.4, 0.7)
    k = np.exp(-0.3 * (grid[:, None] - grid[None]) ** 2)
    one = torch.ones(1, dtype=torch.float64)
    found = distances.gaussian_mmd2(0.5 * one, 1.21 * one[None], -0.4 * one, 0.49 * one[None], kernel)
    assert found == pytest.approx(density @ k @ density * (grid[1] - grid[0]) ** 2, rel=1e-6)


def test_resampled_mmd_is_the_u_statistic_over_different_rows():
    x, y = drawn(LAW_X, 9, 0), drawn(LAW_Y, 11, 1)
    kernel = distances.RbfKernel((0.2,))
    counts = torch.tensor([[1.0] * 9, [2, 0, 1, 1, 3, 0, 1, 0, 1]]).double()
    estimate, draws = distances.mmd2_draws(x, y, kernel, counts)
    assert estimate == pytest.approx(distances.mmd2(x, y, kernel), rel=1e-12)
    assert float(draws[0]) == pytest.approx(estimate, rel=1e-12)
    rows = [i for i, c in enumerate(counts[1].int().tolist()) for _ in range(c)]
    k = kernel(x, x)
    pairs = [float(k[a, b]) for a in rows for b in rows if a != b]
    yy = kernel(y, y)
    rest = float((yy.sum() - yy.trace()) / 110) - 2 * float(kernel(x[rows], y).mean())
    assert float(draws[1]) == pytest.approx(np.mean(pairs) + rest, rel=1e-9)


def test_frechet_closed_form_agrees_with_the_matrix_square_root():
    expected = float((LAW_X[0] - LAW_Y[0]).square().sum()) + np.trace(
        LAW_X[1].numpy() + LAW_Y[1].numpy() - 2 * linalg.sqrtm(LAW_X[1].numpy() @ LAW_Y[1].numpy()).real
    )
    assert distances.gaussian_frechet(*LAW_X, *LAW_Y) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_large_samples_approaches_the_closed_form():
    found = distances.frechet(drawn(LAW_X, 40_000, 0), drawn(LAW_Y, 40_000, 1))
    assert found == pytest.approx(distances.gaussian_frechet(*LAW_X, *LAW_Y), rel=0.03)


def test_frechet_survives_fewer_rows_than_dimensions():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 12, 40, generator=generator).double()
    near, far = distances.frechet(x, y), distances.frechet(x, y + 1)
    assert near >= 0
    # The covariances are the same in both, so only the means differ: |dm + 1|^2 - |dm|^2 exactly.
    dm = x.mean(0) - y.mean(0)
    assert far - near == pytest.approx(float((dm - 1).square().sum() - dm.square().sum()), rel=1e-6)


@pytest.mark.parametrize("known", [False, True])
def test_draws_of_the_frechet_distance_follow_its_derivative_in_the_row_weights(known):
    x, y = drawn(LAW_X, 60, 0), drawn(LAW_Y, 80, 1)
    one_more = torch.ones(60, 60, dtype=torch.float64) + torch.eye(60, dtype=torch.float64)
    fit = distances.root_fit(y) if known else None
    estimate, draws = distances.frechet_draws(x, y, one_more - 1 / 60, fit)  # weights as much in all as before
    influence = (draws - estimate) * 60
    assert estimate == pytest.approx(distances.frechet(x, y), rel=1e-9)

    def weighted(weights):
        mean = weights @ x
        centred = x - mean
        fit_y = y.mean(0), torch.cov(y.T)
        return distances.gaussian_frechet(mean, (centred * weights[:, None]).T @ centred * 60 / 59, *fit_y)

    uniform = torch.full((60,), 1 / 60, dtype=torch.float64)
    for row in (0, 7, 33):
        step = -uniform * 1e-6
        step[row] += 1e-6
        slope = (weighted(uniform + step) - weighted(uniform - step)) / 2e-6
        assert slope == pytest.approx(float(influence[row]), abs=0.03 * float(influence.std()))


def test_precision_and_recall_on_known_sets():
    generator = torch.Generator().manual_seed(0)
    real = torch.cat([torch.randn(200, 2, generator=generator), 50 + torch.randn(100, 2, generator=generator)])
    one_mode = torch.randn(200, 2, generator=generator)
    precision, recall = (float(flags.double().mean()) for flags in distances.precision_recall(one_mode, real))
    assert precision > 0.9
    assert 0.55 < recall <= 2 / 3  # the lost mode holds one third of the real images
    wide = torch.cat([one_mode, 50 + torch.randn(50, 2, generator=generator), torch.full((50, 2), 500.0)])
    precision, recall = (float(flags.double().mean()) for flags in distances.precision_recall(wide, real))
    assert recall > 0.85
    assert precision < 0.85  # 50 of 300 lie where nothing is real


def test_equal_sets_cover_each_other_even_where_the_balls_are_points():
    points = 7 + torch.rand(20, 5, generator=torch.Generator().manual_seed(0)).repeat_interleave(4, 0)
    precision, recall = distances.precision_recall(points.flip(0), points)
    assert precision.all()
    assert recall.all()


def test_ball_radius_is_the_third_neighbour_not_counting_itself():
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0], [100.0]])
    fake = torch.tensor([[-2.9], [-3.1], [105.0], [400.0]])
    within, _ = distances.ball_matrices(fake, real)
    assert within[:, 0].tolist() == [True, False, False, False]  # the ball of 0 reaches 3
    assert within[:, 4].tolist() == [False, False, True, False]  # the ball of 100 reaches 99 (to 1)


def test_sliced_distance_in_one_dimension_is_the_quantile_distance():
    x = torch.tensor([[3.0], [0.0], [1.0]])
    y = torch.tensor([[1.0], [5.0], [2.0]])
    assert distances.sliced_w2(x, y, directions=8) == pytest.approx((1 + 1 + 4) / 3)


def test_sliced_distance_of_a_shift_is_its_square_over_d():
    x = drawn(LAW_X, 500, 0)
    shift = torch.tensor([3.0, 0.0, 0.0]).double()
    assert distances.sliced_w2(x, x + shift, directions=4000) == pytest.approx(9 / 3, rel=0.05)
    assert distances.sliced_w2(x[:250], x[250:]) < 0.1


def test_psnr_and_its_cap():
    images = torch.zeros(2, 3, 4, 4)
    other = images.clone()
    other[0] += 0.1
    assert distances.psnr(images, other).tolist() == pytest.approx([20.0, 100.0], abs=1e-4)


def test_diversity_is_the_mean_distance_between_seeds():
    features = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[3.0, 4.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]]])
    assert distances.diversity(features).tolist() == pytest.approx([10 / 3, 0.0])
    with pytest.raises(FewstepError, match="two seeds"):
        distances.diversity(features[:1])


def test_mistakes_are_named():
    kernel = distances.RbfKernel((1.0,))
    with pytest.raises(FewstepError, match="same d"):
        distances.mmd2(torch.zeros(4, 2), torch.zeros(4, 3), kernel)
    with pytest.raises(FewstepError, match="no spread"):
        distances.RbfKernel.of(torch.ones(10, 3))
    with pytest.raises(FewstepError, match="at least 4 rows"):
        distances.precision_recall(torch.zeros(3, 2), torch.zeros(9, 2))


def test_energy_distance_is_the_closed_form_of_two_shifted_normals():
    from scipy import stats

    from fewstep.metrics.distances import energy_distance

    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4000, 1, generator=generator) + shift for shift in (0.0, 1.0))
    expected = stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2  # scipy's V-statistic, nearly unbiased here
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "use",
    [
        lambda x, y: distances.mmd2(x, y, distances.RbfKernel((1.0,))),
        lambda x, y: distances.RbfKernel.of(x),
        lambda x, y: distances.ball_radii(x),
        lambda x, y: distances.diversity(torch.stack([x, y])),
        lambda x, y: distances.frechet_draws(x, y, torch.ones(2, len(x), dtype=torch.float64)),
        *(getattr(distances, n) for n in ("frechet", "precision_recall", "sliced_w2")),
        distances.energy_distance,
    ],
)
def test_features_that_are_no_numbers_are_refused(use, bad):
    x, y = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    use(x, y)
    x[4, 1] = bad
    with pytest.raises(NonFiniteError):
        use(x, y)


def test_kid_is_the_unbiased_mean_over_pairs():
    torch.manual_seed(0)
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64) + 1

    def k(a, b):
        return float((a @ b / 3 + 1) ** 3)

    inside = [[k(a, b) for i, a in enumerate(some) for j, b in enumerate(some) if i != j] for some in (x, y)]
    across = [k(a, b) for a in x for b in y]
    expected = sum(sum(part) / len(part) for part in inside) - 2 * sum(across) / len(across)
    assert distances.kid(x, y) == pytest.approx(expected, rel=1e-12)


class Flat(torch.nn.Module):
    """Pictures as features: what torchmetrics takes in place of Inception."""

    num_features = 12

    def forward(self, images):
        return images.flatten(1).double()


@pytest.mark.extra("torchmetrics")
def test_frechet_and_kid_are_those_of_torchmetrics_on_the_same_features():
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    torch.manual_seed(0)
    x, y = (torch.randint(0, 256, (60, 3, 2, 2), dtype=torch.uint8) // (1 + k) for k in range(2))
    theirs = FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    kernel = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=60)
    for metric in (theirs, kernel):
        metric.update(x, real=True)
        metric.update(y, real=False)
    flat = [some.flatten(1).double() for some in (x, y)]
    assert distances.frechet(*flat) == pytest.approx(float(theirs.compute()), rel=1e-6)
    assert distances.kid(*flat) == pytest.approx(float(kernel.compute()[0]), rel=1e-6)


@pytest.mark.extra("torch_fidelity")
@pytest.mark.extra("torchvision")
def test_frechet_is_that_of_torch_fidelity_on_the_same_features():
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    torch.manual_seed(0)
    x, y = torch.randn(200, 6, dtype=torch.float64), 1 + 2 * torch.randn(150, 6, dtype=torch.float64)
    told = [{"mu": some.mean(0).numpy(), "sigma": some.T.cov().numpy()} for some in (x, y)]
    found = fid_statistics_to_metric(*told, verbose=False)
    assert distances.frechet(x, y) == pytest.approx(next(iter(found.values())), rel=1e-6)
