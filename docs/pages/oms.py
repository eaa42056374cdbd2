"""Cells and sentences of the page of One More Step."""

from __future__ import annotations

import statistics
from typing import Any

NOTES = {
    "base": "starts from pure noise, as every pipeline does",
    "data-set mean": "first state shifted by the mean over all classes",
    "One More Step": "extra row 0; its network knows the class",
    "offset noise": "another model, trained with a common shift of each image's noise",
    "zero-SNR v": "another model, betas rescaled to end in pure noise, v prediction",
    "oracle": "starts from noised real images; not a method, the upper bound",
}


def cells(results: dict[str, Any], way: str, name: str) -> str:
    """Mean, deviation, both in closed form, and distance with its range over seeds, of one start and class."""
    mean, std, away = ([seed[way][name][key] for seed in results["seeds"]] for key in ("mean", "std", "wasserstein"))
    known = results["closed_form"][name].get(way)
    exact = f"{known['mean']:.3f}, {known['std']:.3f}" if known else "–"
    distance = f"{statistics.mean(away):.3f} ({min(away):.3f} to {max(away):.3f})"
    return f"{statistics.mean(mean):.3f} | {statistics.mean(std):.3f} | {exact} | {distance}"


def verdict(results: dict[str, Any]) -> str:
    """Who came nearest, by the mean distance over classes and seeds; one sentence from the numbers."""
    distance = {
        way: statistics.mean(row["wasserstein"] for seed in results["seeds"] for row in seed[way].values())
        for way in NOTES
    }
    gain = distance["base"] / distance["One More Step"]
    methods = sorted((way for way in NOTES if way != "oracle"), key=distance.__getitem__)
    order = ", ".join(f"{way} ({distance[way]:.3f})" for way in methods)
    return (
        f"Mean Wasserstein-1 distance, best first: {order}; oracle {distance['oracle']:.3f}. One More Step divides the "
        f"distance of the plain start by {gain:.1f}."
    )


def difference(emoji: dict[str, Any]) -> str:
    """Whether the error per caption changes beyond chance, and what follows."""
    found = emoji["error_difference"]
    clear = abs(found["mean"]) > 2 * found["standard_error"]
    changed = "falls" if found["mean"] < 0 else "rises"
    ship = "" if clear and found["mean"] < 0 else " No network for this pipeline ships, therefore."
    return (
        f"It {changed} by {abs(found['mean']):.4f} (standard error {found['standard_error']:.4f}), which is "
        f"{'more' if clear else 'no more'} than chance would give.{ship}"
    )
