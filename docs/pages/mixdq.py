"""The page of MixDQ and `fewstep quantize`, from `results/mixdq.json`."""

from __future__ import annotations

import statistics
from typing import Any

RESULTS, PAGE = ("mixdq.json",), "mixdq.md"


def page(results: dict[str, Any]) -> str:
    """Markdown of `docs/systems/mixdq.md`."""
    settings, e = results["settings"], results["environment"]
    blocks = "\n\n".join(_block(block) for block in results["blocks"])
    return f"""# Quantization with bits chosen per layer (MixDQ, arXiv 2405.17873)

Written by `docs/make_pages.py` from `results/mixdq.json`. How it works: `src/fewstep/jobs/quantize`.

    fewstep quantize MODEL --scheme w4a8             # obey
    fewstep quantize MODEL --budget 2.5GB            # choose, under a number of bytes
    fewstep quantize MODEL --effective-bits 4.5      # the same, in stored bits per weight

Each layer alone is quantized at each width; layers through which the condition shapes the picture (text attention,
feed-forward) are judged by the structural similarity of images, the others by the signal-to-noise ratio of the network
output. An integer programme chooses widths under a byte budget of each group; a sweep over the ratio of the two groups'
average bits gives several solutions, one programme over all layers with signal-to-noise alone another, and the images
of the calibration items decide. What layers make of a first text token that is the same for every prompt is kept in
full precision.

## Equal bytes

{settings["model"]}, {settings["steps"]} steps, {settings["layers"]} layers ({settings["content"]} of them content),
{settings["items"]} held-out prompts, PSNR to full precision with equal seeds, 95 % intervals over prompts. Every row
of a table stores at most the bytes of the uniform width; all have the first token apart.

{blocks}

## The first token

{_first(results["first_token"])}

## Do the measurements hold?

- Order of the layers over calibration seeds {", ".join(map(str, settings["seeds"]))} (Spearman, mean of pairs):
  {_stability(results["stability"])}.
- Additivity: over {len(results["additivity"]["pairs"])} random tables of widths, the logarithm of the summed noise
  powers of single layers and that of the noise with all of them quantized correlate at
  {results["additivity"]["correlation"]:.3f}.

## What was and was not reproduced

- Reproduced exactly (`tests/quant`): the integer programme against trying every choice; budgets in exact integers, and
  weight files that stay below `--budget`; the first token equal to full precision; metrics against their formulas.
{_verdict(results)}
- Changed: damages add up as 1 - SSIM and as noise power, not as SSIM and decibels; the final choice compares floats
  over all calibration items, where the released code compares bytes that wrap around on one image; activations have a
  scale per token or image at run time, where the released code has one calibrated scale per layer; layers with a
  constant first token are found in the calls, not by name.
- Beyond: rows of a plan may run different tables of bits (`--per-step`, `fewstep.quant.steps`), blocks can be
  reconstructed and the plan corrected (`--method brecq`, `--corrections ptqd,stepbaq`), text encoders and
  autoencoders are quantized too, Q-Sched can run last.
- Not reproduced: the published numbers on SDXL-Turbo and LCM; their weights were not at hand.

`{e["command"]}`, commit `{e["commit"]}`, {e["device"]}, {e["threads"]} thread(s), {results["seconds"]:.0f} s.
"""


def _block(block: dict[str, Any]) -> str:
    lines = [
        f"At the bytes of {block['uniform']} ({block['budget']:,}):",
        "",
        "| widths | bytes | PSNR, dB | SSIM | judge |",
    ]
    lines.append("|---|---|---|---|---|")
    rows = block["rows"]
    random = [row for name, row in rows.items() if name.startswith("random")]
    for name, row in rows.items():
        if not name.startswith("random"):
            quality = f"{_interval(row['psnr'])} | {row['ssim']:.3f} | {_interval(row['judge'], 3)}"
            lines.append(f"| {name} | {row['bytes']:,} | {quality} |")
    means = [row["psnr"]["mean"] for row in random]
    lines.append(
        f"| a random order of layers ({len(random)} draws) | {max(row['bytes'] for row in random):,} | "
        f"{statistics.mean(means):.2f} ({min(means):.2f} to {max(means):.2f}) | | |"
    )
    gains = {n: g for n, g in block["gains"].items() if not n.startswith("random")}
    told = "; ".join(f"{_interval(gain)} dB over {name}" for name, gain in gains.items())
    return "\n".join([*lines, "", f"MixDQ ({block['chosen']}), paired by prompt: {told}."])


def _verdict(results: dict[str, Any]) -> str:
    """Which claims the tables bear out and which they do not, by their intervals."""
    lines = []
    for other, claim in (("uniform", "mixed precision beats uniform"), ("SQNR only", "two metrics beat SQNR alone")):
        gains = [g for b in results["blocks"] for n, g in b["gains"].items() if n.startswith(other)]
        held = all(g["low"] > 0 for g in gains)
        lines.append(f"- {'Reproduced' if held else 'NOT reproduced'} at small scale (PSNR): {claim} at equal bytes.")
    first = results["first_token"]
    pairs = [(r["psnr"], first[f"{n}, first token apart"]["psnr"]) for n, r in first.items() if ", first" not in n]
    held = all(b["low"] > a["high"] for a, b in pairs)
    lines.append(f"- {'Reproduced' if held else 'NOT reproduced'} at small scale: a first token apart gains clearly.")
    return "\n".join(lines)


def _first(found: dict[str, Any]) -> str:
    lines = ["| scheme of all layers | PSNR, dB | with the first token apart |", "|---|---|---|"]
    for name, row in found.items():
        if ", first" not in name:
            other = found[f"{name}, first token apart"]
            lines.append(f"| {name} | {_interval(row['psnr'])} | {_interval(other['psnr'])} |")
    return "\n".join(lines)


def _stability(found: dict[str, list[float]]) -> str:
    return "; ".join(f"{name} {statistics.mean(values):.2f}" for name, values in found.items())


def _interval(value: dict[str, float], digits: int = 2) -> str:
    return f"{value['mean']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"
