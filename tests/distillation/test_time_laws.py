import math

import pytest
import torch
from scipy import stats

from fewstep.distillation.core import Samples
from fewstep.distillation.times import (
    annealed_beta,
    below_last_call,
    beta_times,
    everywhere,
    fixed_times,
    karras_times,
    last_interval,
    log_normal_times,
    logit_normal_times,
    part_of,
    shifted_fraction,
    straight,
    time_at,
    uniform_times,
    within,
)
from fewstep.errors import FewstepError
from fewstep.process import VE, RectifiedFlow, VPDiscrete

FLOW, VP, EDM = RectifiedFlow(), VPDiscrete.from_betas(), VE()
SIZE = 4000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def made(time, until, size=SIZE):
    shape = (size,)
    at = torch.full(shape, float(time), dtype=torch.float64)
    to = torch.full(shape, float(until), dtype=torch.float64)
    return Samples(torch.zeros(size, 1), torch.zeros(size, 1), at, to, torch.zeros(size, dtype=torch.long))


def follows(times, distribution):
    """Kolmogorov-Smirnov: a wrong law of 4,000 draws has p far below, a right one is above with the fixed seed."""
    return stats.kstest(times.numpy(), distribution).pvalue > 1e-3


@pytest.mark.parametrize("process", [FLOW, VP, EDM])
@pytest.mark.parametrize(
    "law",
    [
        uniform_times(),
        log_normal_times(),
        karras_times(),
        logit_normal_times(),
        beta_times(2, 3),
        last_interval(),
        below_last_call(),
    ],
)
def test_every_law_stays_within_the_process_and_repeats_itself(law, process):
    anchor = made(0.5 * process.noisiest, 0.25 * process.noisiest)
    times = law(SIZE, process, generator(), anchor)
    assert times.dtype == torch.float64
    assert times.shape == (SIZE,)
    assert float(times.min()) >= 0
    assert float(times.max()) <= process.noisiest
    assert torch.equal(times, law(SIZE, process, generator(), anchor))
    assert not torch.equal(times, law(SIZE, process, generator(1), anchor))


def test_uniform():
    assert follows(uniform_times(0.1, 0.7)(SIZE, VP, generator()), stats.uniform(99.9, 0.6 * 999).cdf)


def test_shift_of_uniform():
    times = uniform_times(0, 1, shift=3.0)(SIZE, FLOW, generator())
    assert follows(times / (3 - 2 * times), stats.uniform().cdf)


def test_integers_reach_both_ends():
    times = fixed_times(tuple(range(20, 26)))(SIZE, VP, generator())
    assert torch.equal(times.unique(), torch.arange(20, 26).double())


def test_log_normal_is_of_the_noise_to_signal_ratio():
    for process in (EDM, VP):
        times = log_normal_times(-0.5, 0.4)(SIZE, process, generator())
        assert follows(-process.lam(times), stats.norm(-0.5, 0.4).cdf)


def test_log_normal_of_edm_is_not_cut():
    sigma = log_normal_times()(SIZE, EDM, generator())
    assert follows(sigma.log(), stats.norm(-1.2, 1.2).cdf)


def test_karras_ends_where_the_papers_do():
    sigma = karras_times(0.8, least=0.0)(200_000, EDM, generator())
    top = (0.2 * 0.002 ** (1 / 7) + 0.8 * 80 ** (1 / 7)) ** 7
    assert float(sigma.max()) == pytest.approx(top, rel=1e-3)
    assert float(sigma.max()) < top
    assert float(sigma.min()) == pytest.approx(0.002, rel=1e-2)
    u = (sigma ** (1 / 7) - 0.002 ** (1 / 7)) / (80 ** (1 / 7) - 0.002 ** (1 / 7))
    assert follows(u[:SIZE], stats.uniform(0, 0.8).cdf)


def test_everywhere_is_uniform_on_each_clock():
    assert follows(everywhere(FLOW)(SIZE, FLOW, generator()), stats.uniform(0.02, 0.96).cdf)
    sigma = everywhere(EDM, 0.1, 0.9)(SIZE, EDM, generator())
    u = (sigma ** (1 / 7) - 0.002 ** (1 / 7)) / (80 ** (1 / 7) - 0.002 ** (1 / 7))
    assert follows(u, stats.uniform(0.1, 0.8).cdf)


def test_logit_normal():
    times = logit_normal_times(math.log(2), 1.6, least=0)(SIZE, FLOW, generator())
    assert follows(times.logit(), stats.norm(math.log(2), 1.6).cdf)


def test_beta_and_its_annealing():
    assert follows(beta_times(4, 1.5)(SIZE, FLOW, generator()), stats.beta(4, 1.5).cdf)
    assert annealed_beta(0) == beta_times(4, 1.5)
    assert annealed_beta(5_000) == beta_times(2.5, 1.25)
    assert annealed_beta(20_000) == beta_times(1, 1)


def test_interval_of_the_last_call():
    times = last_interval(0.02, 0.0)(SIZE, FLOW, generator(), made(0.75, 0.5))
    assert follows(times, stats.uniform(0.5, 0.25).cdf)
    last = last_interval(0.02, 0.01)(SIZE, FLOW, generator(), made(0.25, 0))
    assert follows(last, stats.uniform(0.02, 0.22).cdf)
    whole = last_interval(0.02, 0.0, whole=True)(SIZE, FLOW, generator(), made(0.75, 0.5))
    assert follows(whole, stats.uniform(0.5, 0.5).cdf)


def test_cleaner_than_the_anchor():
    assert follows(below_last_call(0.02)(SIZE, FLOW, generator(), made(0.5, 0.25)), stats.uniform(0.02, 0.48).cdf)


def test_cleaner_draws_before_the_shift():
    # the example of the paper's authors: third of four steps, before the shift 0.25 (of noise), shift 3 makes it 0.5
    by_law = below_last_call(0.0, shift=3.0)(SIZE, FLOW, generator(), made(0.5, 0))
    by_process = RectifiedFlow(3.0).sigma(below_last_call(0.0)(SIZE, RectifiedFlow(3.0), generator(), made(0.25, 0)))
    assert float(by_law.max()) < 0.5
    assert follows(shifted_fraction(by_law, 1 / 3), stats.uniform(0, 0.25).cdf)
    assert torch.allclose(by_law, by_process)


def test_an_anchor_at_the_clean_end_leaves_the_least_time():
    least = torch.full((3,), 0.02, dtype=torch.float64)
    assert torch.equal(below_last_call(0.02)(3, FLOW, generator(), made(0.01, 0, 3)), least)
    assert torch.equal(last_interval(0.02)(3, FLOW, generator(), made(0.02, 0, 3)), least)


def test_intervals_without_upper_end_are_uniform_on_the_curve_of_edm():
    def curve(sigma):
        return (sigma ** (1 / 7) - 0.002 ** (1 / 7)) / (80 ** (1 / 7) - 0.002 ** (1 / 7))

    u = curve(last_interval(0.02, 0.0)(SIZE, EDM, generator(), made(20.0, 1.0)))
    assert follows(u, stats.uniform(curve(1.0), curve(20.0) - curve(1.0)).cdf)
    u = curve(below_last_call(0.02)(SIZE, EDM, generator(), made(1.0, 0.0)))
    assert follows(u, stats.uniform(0.02, curve(1.0) - 0.02).cdf)
    t = torch.tensor([0.01, 2.0, 80.0], dtype=torch.float64)
    assert torch.allclose(time_at(EDM, part_of(EDM, t)), t)
    assert float(part_of(EDM, t)[-1]) == pytest.approx(1)


def test_kinds_of_processes():
    assert [p.unbounded for p in (FLOW, VP, EDM)] == [False, False, True]
    assert [straight(p) for p in (FLOW, RectifiedFlow(3.0), VP, EDM)] == [True, True, False, False]


def test_points():
    times = fixed_times((999.0, 749.0))(SIZE, VP, generator())
    assert torch.equal(times.unique(), torch.tensor([749.0, 999.0]).double())


def test_mistakes_are_named():
    with pytest.raises(FewstepError, match="outside the process"):
        fixed_times((999.0,))(3, FLOW, generator())
    with pytest.raises(FewstepError, match="outside the process"):
        fixed_times((20, 1200))(3, VP, generator())
    with pytest.raises(FewstepError, match="outside the process"):
        last_interval()(3, FLOW, generator(), made(900, 600, 3))
    with pytest.raises(FewstepError, match="last call"):
        below_last_call()(3, FLOW, generator(), None)
    with pytest.raises(FewstepError, match="rise within"):
        uniform_times(0.9, 0.1)
    with pytest.raises(FewstepError, match="empty"):
        fixed_times(())
    within(FLOW, [0.0, 1.0])
