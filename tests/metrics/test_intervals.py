import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.metrics import distances, intervals


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_counts_are_draws_with_replacement():
    counts = intervals.resample_counts(20, 500, seed=3)
    assert counts.shape == (500, 20)
    assert torch.all(counts.sum(1) == 20)
    assert float(counts.mean(0).std()) < 0.2
    assert float(counts.var()) == pytest.approx(1 - 1 / 20, rel=0.1)  # binomial variance
    assert torch.equal(counts, intervals.resample_counts(20, 500, seed=3))


def test_interval_of_a_mean_covers_as_often_as_it_says():
    counts = intervals.resample_counts(30, 600)
    data = normal(600, 30, seed=1) + 5
    found = [intervals.mean_interval(row, counts) for row in data]
    covered = sum(interval.low <= 5 <= interval.high for interval in found) / len(found)
    assert 0.91 < covered < 0.975


def test_paired_difference_is_far_narrower_than_two_separate_intervals():
    shared = normal(200, seed=0)
    a, b = shared + 0.1 + 0.05 * normal(200, seed=1), shared + 0.05 * normal(200, seed=2)
    found = intervals.difference_interval(a, b)
    alone = intervals.mean_interval(a)
    assert 0 < found.low < 0.1 < found.high
    assert found.high - found.low < 0.2 * (alone.high - alone.low)


def test_interval_of_the_mmd_covers_the_true_value():
    kernel = distances.RbfKernel((0.2,))
    one = torch.eye(2, dtype=torch.float64)
    truth = distances.gaussian_mmd2(torch.tensor([1.0, 0.0]).double(), one, torch.zeros(2).double(), one, kernel)
    counts = intervals.resample_counts(60, 300)
    reference = normal(3000, 2, seed=99)
    within = distances.mean_similarity(reference, kernel)
    covered = 0
    for i in range(150):
        x = normal(60, 2, seed=i)
        x[:, 0] += 1
        estimate, draws = distances.mmd2_draws(x, reference, kernel, counts, within)
        interval = intervals.centred_interval(estimate, draws, 60)
        covered += interval.low <= truth <= interval.high
    assert covered / 150 > 0.88


def test_influence_bootstrap_of_the_frechet_distance_has_the_spread_of_fresh_samples():
    reference = normal(2000, 4, seed=5)
    fresh = [normal(150, 4, seed=100 + i) * 1.3 + 0.5 for i in range(200)]
    spread = torch.tensor([distances.frechet(x, reference) for x in fresh]).std()
    counts = intervals.resample_counts(150, 1000)
    claimed = distances.frechet_draws(fresh[0], reference, counts)[1].std()
    assert float(claimed / spread) == pytest.approx(1, abs=0.3)


def test_seed_interval_is_students():
    found = intervals.seed_interval(torch.tensor([1.0, 2.0, 3.0]))
    assert found.mean == pytest.approx(2)
    assert found.high - found.mean == pytest.approx(4.302653 / 3**0.5, rel=1e-5)  # t table, 2 degrees of freedom


def test_mistakes_are_named():
    with pytest.raises(FewstepError, match="two seeds"):
        intervals.seed_interval(torch.tensor([1.0]))
    with pytest.raises(FewstepError, match="same units"):
        intervals.difference_interval(torch.zeros(3), torch.zeros(4))
    with pytest.raises(FewstepError, match="needs units"):
        intervals.resample_counts(0)
