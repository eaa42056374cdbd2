"""The integer programme against trying every choice; budgets in exact integers."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import FewstepError
from fewstep.quant.allocation import Allocation, LayerOption, allocate, sweep


def brute_force(options, bytes_budget, bops_budget=None):
    best = None
    for combination in itertools.product(*options.values()):
        tried = Allocation(dict(zip(options, combination, strict=True)))
        fits = tried.bytes <= bytes_budget and (bops_budget is None or tried.bops <= bops_budget)
        if fits and (best is None or tried.damage < best.damage):
            best = tried
    return best


def table(seed, layers=6, largest=1000):
    rng = np.random.default_rng(seed)
    options = {}
    for k in range(layers):
        weights = int(rng.integers(1, largest))
        harm = float(rng.uniform(0.01, 1))
        options[f"layer{k}"] = [
            LayerOption(f"w{w}a{a}", weights * w // 8 + 7, harm * (2.0 ** -(2 * w) + 2.0 ** -(2 * a)), weights * w * a)
            for w in (2, 4, 8)
            for a in (8, 16)
        ]
    return options


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.0, 1.0), compute=st.none() | st.floats(0.0, 1.0))
def test_the_programme_finds_what_trying_everything_finds(seed, share, compute):
    options = table(seed, layers=4)
    small, large = (sum(f(o.bytes for o in os) for os in options.values()) for f in (min, max))
    budget = int(small + share * (large - small))
    low, high = (sum(f(o.bops for o in os) for os in options.values()) for f in (min, max))
    bops = None if compute is None else int(low + compute * (high - low))
    truth = brute_force(options, budget, bops)
    if truth is None:
        with pytest.raises(FewstepError, match="no choice of bits"):
            allocate(options, budget, bops)
        return
    found = allocate(options, budget, bops)
    assert found.damage == pytest.approx(truth.damage, rel=1e-9)
    assert found.bytes <= budget
    assert bops is None or found.bops <= bops


def test_a_budget_of_gigabytes_holds_to_the_byte():
    options = table(3, layers=60, largest=100_000_000)
    whole = sum(os[-1].bytes for os in options.values())
    exact = allocate(options, whole // 2)
    assert exact.bytes <= whole // 2
    assert allocate(options, exact.bytes).bytes <= exact.bytes
    assert allocate(options, exact.bytes - 1).bytes <= exact.bytes - 1


def test_more_bytes_never_hurt():
    options = table(1)
    small = sum(min(o.bytes for o in os) for os in options.values())
    large = sum(max(o.bytes for o in os) for os in options.values())
    damages = [allocate(options, b).damage for b in range(small, large + 1, (large - small) // 20)]
    assert damages == sorted(damages, reverse=True)
    best = sum(min(o.damage for o in os) for os in options.values())
    assert allocate(options, large).damage == pytest.approx(best)


def test_a_budget_below_the_smallest_names_the_smallest():
    options = table(2)
    small = sum(min(o.bytes for o in os) for os in options.values())
    with pytest.raises(FewstepError, match=f"{small:,}"):
        allocate(options, small - 1)
    assert allocate(options, small).bytes == small
    with pytest.raises(FewstepError, match="bit operations"):
        allocate(options, 10**9, 1)
    with pytest.raises(FewstepError, match="no option"):
        allocate({"a": []}, 1)
    with pytest.raises(FewstepError, match="not finite"):
        allocate({"a": [LayerOption("w8a8", 1, float("nan"))]}, 1)


def test_the_sweep_gives_groups_the_average_bits_of_their_ratio():
    names = [f"l{k}" for k in range(40)]
    groups = {n: "content" if k < 30 else "quality" for k, n in enumerate(names)}
    weights = dict.fromkeys(names, 8000)
    options = {
        n: [LayerOption(f"w{b}a8", 1000 * b, 4.0**-b * (1 + k / 40)) for b in range(2, 9)] for k, n in enumerate(names)
    }
    budget = 40 * 5000
    ratios = [0.7, 0.85, 1.0, 1.2]
    found = sweep(options, groups, weights, budget, ratios)
    assert [k for k, _ in found] == ratios
    for k, allocation in found:
        assert allocation.bytes <= budget
        bits = {
            g: np.mean([o.bytes / 1000 for n, o in allocation.choice.items() if groups[n] == g])
            for g in ("content", "quality")
        }
        # the identity of the repository: (r B_content + B_quality) / (1 + r) = B, with r = 3
        assert (3 * bits["content"] + bits["quality"]) / 4 == pytest.approx(5, abs=0.05)
        # a layer's width is whole: a group's average moves in steps of 1/30 and 1/10
        assert bits["content"] / bits["quality"] == pytest.approx(k, abs=0.05)
        assert list(allocation.choice) == names


def test_the_sweep_falls_back_to_one_programme():
    options = {n: [LayerOption("w2a8", 2, 1.0), LayerOption("w8a8", 8, 0.0)] for n in "ab"}
    one = sweep(options, dict.fromkeys("ab", "quality"), {"a": 1, "b": 1}, 10, [0.5, 1.0])
    assert len(one) == 1
    assert one[0][1].bytes == 10
    # a ratio that starves a group is left out, and the budget is still used
    tight = sweep(options, {"a": "content", "b": "quality"}, {"a": 1, "b": 1}, 4, [0.01])
    assert tight[0][1].bytes == 4
