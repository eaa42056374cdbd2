"""Items of jobs: their seeds, on which recorded results rest, and what is drawn of them."""

import itertools

from fewstep import recipes
from fewstep.jobs.context import Items, first_seed, seeds_for

USES = ("evaluation", "search", "trajectories", "calibration", "tuning", "reference")


def test_recorded_results_can_be_drawn_again():
    """The rules that versions before the table of strides wrote out, each in its job."""
    assert seeds_for("evaluation", 101, 2) == [1_000_003 * 101, 1_000_003 * 101 + 1]
    assert seeds_for("search", 4, 2) == [2_000_003 * 5, 2_000_003 * 5 + 1]
    assert seeds_for("calibration", 0, 2) == [3_000_017, 3_000_018]
    assert first_seed("trajectories", 1) == 3_000_003 * 2
    assert seeds_for("tuning", 2, 1) == [5_000_003 * 3]
    assert seeds_for("reference", 0, 2) == [7_000_003, 7_000_004]


def test_no_job_is_judged_with_the_noise_that_it_searched_trained_or_calibrated_with():
    held_out = set(itertools.chain.from_iterable(seeds_for("evaluation", seed, 10_000) for seed in (101, 102, 103)))
    for use in USES[1:]:
        for seed in range(10):
            assert not held_out & set(seeds_for(use, seed, 10_000)), (use, seed)


def test_prompts_that_are_not_held_out_are_named():
    told = {"kind": "auto", "model": "m", "search": {"conditions": ["a cat", "a dog", "a cow"]}}
    shared = recipes.resolve({**told, "evaluation": {"conditions": ["a dog", "a hen", "a cat", "a dog"]}})
    assert shared.shared_prompts() == ["a dog", "a cat"]
    assert recipes.resolve(told).shared_prompts() == []
    labels = {"search": {"conditions": [0, 1]}, "evaluation": {"conditions": [0, 1]}}  # there are no others
    assert recipes.resolve({**told, **labels}).shared_prompts() == []


def test_items_are_picked_with_their_seeds():
    assert Items(["a", "b", "c"], [7, 8, 9]).pick([2, 0]) == Items(["c", "a"], [9, 7])
    assert Items(None, [7, 8, 9]).pick([1]) == Items(None, [8])
