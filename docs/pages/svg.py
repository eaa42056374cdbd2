"""What the numbers say of latents of frozen features."""

from __future__ import annotations

import math
from typing import Any

from fewstep.data import load_mnist

NAMES = {"vae": "VAE", "rae": "frozen features (RAE)", "svg": "with a residual (SVG)"}


def premise(results: dict[str, Any]) -> str:
    """Whether the frozen features show classes better than the VAE's latents do, by a normal interval."""
    found, held = results["autoencoders"], len(load_mnist()) - results["settings"]["train"]
    ours, theirs = (found[name]["probe"] for name in ("rae", "vae"))
    half = 1.96 * math.sqrt((ours * (1 - ours) + theirs * (1 - theirs)) / held)
    change = f"{100 * (ours - theirs):+.1f} points, 95 % interval ± {100 * half:.1f}"
    if ours - theirs > half:
        return f"The paper's premise holds here: the features show classes better than the VAE's latents ({change})."
    return (
        "The paper's premise, features that show classes better than a VAE's latents, is not met by this encoder\n"
        f"({change}): what follows tests the machinery and this encoder, not DINO."
    )


def pairs(results: dict[str, Any], run: str) -> dict[str, Any]:
    """The paired differences of a run, by the names of both latents."""
    found = {f"{NAMES[name]} - VAE": by_steps for name, by_steps in results["versus_vae"][run].items()}
    return {**found, f"{NAMES['svg']} - {NAMES['rae']}": results["svg_versus_rae"][run]}


def claim(results: dict[str, Any]) -> str:
    """The paper's claim at 5 steps after each number of updates, by the verdicts alone."""
    words = {"less": "holds", "more": "does not hold: the VAE's latents win", "not told apart": "is not decided"}
    said = [
        f"after {results['settings']['updates'][run]} updates it {words[pairs['svg']['5']['verdict']]}"
        for run, pairs in results["versus_vae"].items()
    ]
    return (
        f"The claim, better samples of SVG's latents than of a VAE's at 5 steps and equal updates: {'; '.join(said)}."
    )
