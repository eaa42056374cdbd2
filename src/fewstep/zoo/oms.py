"""The network of One More Step as a diffusers folder: it sees pure noise and a condition, and is always told time 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fewstep.errors import FewstepError
from fewstep.files import read_json, write_json
from fewstep.zoo.dit import class_denoiser
from fewstep.zoo.unet import denoiser

FILE = "one_more_step.json"
CLASSES = ("UNet2DConditionModel", "UNet2DModel", "DiTTransformer2DModel")
PREDICTION = "v_prediction"
"""At no signal v is minus the data (arXiv 2311.15744), which is what the stage `oms` trains."""


def text_network(latent_channels: int, side: int, text_width: int, channels: tuple[int, ...]) -> Any:
    """A small `UNet2DConditionModel` for latents (latent_channels, side, side) and text states of this width."""
    return denoiser(channels, latent_channels, side, text_width)


def class_network(latent_channels: int, side: int, width: int, layers: int, patch: int = 1) -> Any:
    """A small `DiTTransformer2DModel` for class labels."""
    return class_denoiser(width, layers, 2, latent_channels, side, patch)


def save_network(network: Any, folder: str | Path, latents: str | None) -> None:
    """Write weights and configuration as diffusers does, and `one_more_step.json`.

    latents: fingerprint of the autoencoder whose latents the network knows; None means any.
    """
    network.save_pretrained(folder, safe_serialization=True)
    write_json(Path(folder) / FILE, {"prediction": PREDICTION, "latents": latents})


def load_network(folder: str | Path) -> tuple[nn.Module, str, str | None]:
    """Network in float32, its prediction, and the fingerprint of its autoencoder.

    Raises:
        FewstepError: the folder holds no network of One More Step.
    """
    import diffusers
    import torch

    folder = Path(folder)
    hint = "Give a folder made by `fewstep train oms`."
    if not (folder / FILE).exists():
        raise FewstepError("there is no network of One More Step here", value=str(folder), hint=hint)
    about, config = read_json(folder / FILE), read_json(folder / "config.json")
    kind = config.get("_class_name")
    if kind not in CLASSES:
        raise FewstepError("this is no network for One More Step", value=kind, hint=hint)
    try:
        network = getattr(diffusers, kind).from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        return network.eval().requires_grad_(False), str(about["prediction"]), about["latents"]
    except (OSError, ValueError, KeyError) as error:
        raise FewstepError(f"cannot load {folder}: {str(error).splitlines()[0]}", hint=hint) from error
