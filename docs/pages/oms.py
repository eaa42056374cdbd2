"""The page of One More Step, from `results/one-more-step.json`."""

from __future__ import annotations

import statistics
from typing import Any

RESULTS, PAGE = ("one-more-step.json",), "oms.md"

NOTES = {
    "base": "starts from pure noise, as every pipeline does",
    "data-set mean": "first state shifted by the mean over all classes",
    "One More Step": "extra row 0; its network knows the class",
    "offset noise": "another model, trained with a common shift of each image's noise",
    "zero-SNR v": "another model, betas rescaled to end in pure noise, v prediction",
    "oracle": "starts from noised real images; not a method, the upper bound",
}


def page(results: dict[str, Any]) -> str:
    """Markdown of `docs/systems/one-more-step.md`."""
    settings, e = results["settings"], results["environment"]
    emoji = _emoji(results["emoji"]) if results["emoji"] else "Not measured in this run.\n"
    return f"""# One More Step (arXiv 2311.15744)

Written by `docs/make_pages.py` from `results/one-more-step.json`. How it works: `src/fewstep/solvers/one_more_step.py`,
`src/fewstep/pipelines/one_more_step.py`.

A model whose last noise level keeps some signal learns to read the brightness of an image from its noise. Sampling
starts from noise without signal, so every image tends to medium brightness. One More Step leaves the model as it is and
puts one row before the plan: a small network sees pure noise and the condition, predicts the data, and the state at the
plan's first level is made from that.

    plan = with_one_more_step(plan)                    # sample(plan, {{"main": ..., "oms": ...}})
    OneMoreStep.from_pretrained(folder).pipeline(pipe) # any text pipeline of the same latents
    fewstep train oms --set pipeline=FOLDER

## Dark and bright images

{settings["side"]}x{settings["side"]} grey images of two classes with mean brightness {settings["means"][0]} and
{settings["means"][1]} and standard deviation {settings["spread"]} within each. The noising ends at
alpha_bar D = {settings["alpha_bar_D"]:g}, as Stable Diffusion's does on 64x64 latents. {len(results["seeds"])} seeds of
training and sampling, {settings["samples"]} samples per class, {settings["sampling_steps"]} DDIM steps (and one more).

{_table(results)}

Means over seeds; in brackets the range over seeds. "Exact": what perfect networks and an exact ODE solver would give.

{_verdict(results)}

## A real pipeline: the emoji teacher

{emoji}
## What was and was not reproduced

- Reproduced exactly (`tests/jobs/test_one_more_step.py`): for Gaussian data of 64x64 pixels the plain sampler keeps
  60 %, 20 % and 2.5 % of the class mean when the brightness within a class has standard deviation 0.1, 0.3 and 1; with
  the extra row the mean is exact. The standard deviation (92 %, 61 %, 22 %) is hardly changed: One More Step repairs
  the conditional mean alone.
- Reproduced at small scale: the table above, with the rival cures in the same setting.
- Changed: the published code multiplies the fresh noise by its variance; here it is the standard deviation. The start
  level comes from the first time that the plan uses, whatever the spacing, and the network sees unit noise in sigma
  space too.
- Not reproduced: the published networks and numbers on Stable Diffusion and SDXL; neither their weights nor their
  training code was at hand.

`{e["command"]}`, commit `{e["commit"]}`, {e["device"]}, {e["threads"]} thread(s), {results["seconds"]:.0f} s.
"""


def _table(results: dict[str, Any]) -> str:
    classes = list(results["seeds"][0]["real"])
    heads = [f"{c}: {what}" for c in classes for what in ("mean", "std", "exact mean, std", "W1")]
    lines = ["| start | " + " | ".join(heads) + " | |", "|---" * (len(heads) + 2) + "|"]
    for way in results["seeds"][0]:
        cells = []
        for name in classes:
            mean, std, distance = (
                [seed[way][name][key] for seed in results["seeds"]] for key in ("mean", "std", "wasserstein")
            )
            known = results["closed_form"][name].get(way)
            exact = f"{known['mean']:.3f}, {known['std']:.3f}" if known else "–"
            cells += [f"{statistics.mean(mean):.3f}", f"{statistics.mean(std):.3f}", exact, _range(distance)]
        lines.append(f"| {way} | " + " | ".join(cells) + f" | {NOTES.get(way, '')} |")
    return "\n".join(lines)


def _range(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _verdict(results: dict[str, Any]) -> str:
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


def _emoji(emoji: dict[str, Any]) -> str:
    rows, e = emoji["brightness"], emoji["environment"]
    lines = ["| start | mean | std | W1 to the real pictures | error per caption |", "|---" * 5 + "|"]
    for name, row in rows.items():
        distance = f"{row['wasserstein']:.4f}" if "wasserstein" in row else "–"
        error = f"{row['error_per_caption']:.4f} ± {row['standard_error']:.4f}" if "wasserstein" in row else "–"
        lines.append(f"| {name} | {row['mean']:.4f} | {row['std']:.4f} | {distance} | {error} |")
    table = "\n".join(lines)
    difference = emoji["error_difference"]
    clear = abs(difference["mean"]) > 2 * difference["standard_error"]
    changed = "falls" if difference["mean"] < 0 else "rises"
    sentence = f"{changed} by {abs(difference['mean']):.4f} (standard error {difference['standard_error']:.4f})"
    ship = "" if clear and difference["mean"] < 0 else "No network for this pipeline ships, therefore."
    size = f"{emoji['psi_parameters'] / 1e6:.2f} M parameters"
    return f"""{emoji["captions"]} held-out captions, {emoji["steps"]} DDIM steps, guidance {emoji["guidance"]}; the
network has {size}. Latents of 8x8 keep little signal at the last noise level: alpha_bar D is {emoji["alpha_bar_D"]:.2f}
here, against 19 above.

{table}

Brightness of whole pictures in [0, 1]; error per caption: absolute difference to the picture of that caption. It
{sentence}, which is {"more" if clear else "no more"} than chance would give. {ship}

`{e["command"]}`, commit `{e["commit"]}`, {emoji["seconds"]:.0f} s.
"""
