"""Models that ship with the package: small pipelines with their judges, and exact testbeds without training."""

from __future__ import annotations

from pathlib import Path

from fewstep.errors import FewstepError, nearest

SHIPPED = {
    "emoji-student": "a StableDiffusionPipeline that draws in 4 steps without guidance",
    "emoji-student-guided": "a StableDiffusionPipeline distilled with guidance 8: draws too alike, to be repaired",
    "emoji-teacher": "a StableDiffusionPipeline for 20 to 50 steps with guidance",
    "emoji-clip": "a CLIPModel: the alignment reward",
    "emoji-judge": "a second, independent CLIPModel: judges alignment, never trained or searched on",
    "emoji-quality": "a QualityNet: real or spoiled, without caption",
    "mnist-dit": "a DiTPipeline of handwritten digits, ten classes, noise prediction, 10 to 50 steps",
    "mnist-features": "a ClassNet: features and judge of handwritten digits",
    "video-student": "a VideoStudent of moving digits, 2 steps a chunk, for `fewstep stream`",
}

BASES = {"emoji-student-guided": "emoji-student"}
"""Models that are stored as adapters on another one (`fewstep.load_pipeline` adds them into its weights)."""


def shipped(name: str) -> Path:
    """Folder of a model that ships with the package, in standard diffusers or transformers layout; of `BASES` the
    adapters alone.

    Raises:
        FewstepError: no such model, or an installation without its weights.
    """
    if name not in SHIPPED:
        raise FewstepError("no such shipped model", value=name, hint=nearest(name, SHIPPED))
    family, _, part = name.partition("-")
    folder = Path(__file__).parent / family / part
    if not (folder / "training.json").exists():
        hint = "Reinstall fewstep, or make it with `fewstep train`."
        raise FewstepError(f"this installation lacks the weights of {name}", value=str(folder), hint=hint)
    return folder


def placed(spec: str) -> str:
    """A spec such as `clip:emoji-judge` with the shipped model's name replaced by its folder."""
    kind, _, name = spec.partition(":")
    return f"{kind}:{shipped(name)}" if name in SHIPPED else spec
