"""Any CLIP of transformers as two functions into one space: differentiable for images, remembered for prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.errors import FewstepError
from fewstep.files import user_path
from fewstep.tokens import warn_of_cut

DEFAULT_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the published CLIP weights, arXiv 2103.00020
DEFAULT_STD = (0.26862954, 0.26130258, 0.27577711)
REMEMBERED_PROMPTS = 50_000


@dataclass(frozen=True)
class Preprocessing:
    """What the image side expects; the tensor twin of the processor's PIL code, so that gradients pass."""

    height: int
    width: int
    shortest_edge: int | None = None  # resize this edge and crop the centre; None: resize to height x width
    mean: tuple[float, ...] = DEFAULT_MEAN
    std: tuple[float, ...] = DEFAULT_STD

    def __call__(self, images: Tensor) -> Tensor:
        """Resize (bicubic, antialiased), crop, normalise: (B, 3, H, W) in [0, 1] -> (B, 3, height, width).

        Nothing is clamped: bicubic overshoot stays, so that no gradient is lost.
        """
        high, wide = images.shape[-2:]
        if self.shortest_edge is None:
            images = _resized(images, self.height, self.width)
        else:
            scale = self.shortest_edge / min(high, wide)
            images = _resized(images, max(self.height, int(high * scale)), max(self.width, int(wide * scale)))
            top, left = (images.shape[-2] - self.height) // 2, (images.shape[-1] - self.width) // 2
            images = images[..., top : top + self.height, left : left + self.width]
        mean, std = (images.new_tensor(value).view(3, 1, 1) for value in (self.mean, self.std))
        return (images - mean) / std


@dataclass
class Clip:
    """A CLIP with its tokenizer and preprocessing; the weights are frozen, in float32, in evaluation mode."""

    model: Any
    tokenizer: Any
    preprocessing: Preprocessing
    _prompts: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.model.parameters()).device

    def image_features(self, images: Tensor) -> Tensor:
        """Unit vectors (B, d) of images (B, 3, H, W) in [0, 1]; differentiable."""
        pixels = self.preprocessing(images.to(self.device, torch.float32))
        return F.normalize(self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output))

    @torch.no_grad()
    def text_features(self, prompts: Sequence[str], batch: int = 64) -> Tensor:
        """Unit vectors (N, d) of prompts; each prompt is encoded once and remembered."""
        new = sorted(set(prompts) - self._prompts.keys())
        if len(self._prompts) + len(new) > REMEMBERED_PROMPTS:
            self._prompts.clear()
            new = sorted(set(prompts))
        for start in range(0, len(new), batch):
            chunk = new[start : start + batch]
            self._prompts.update(zip(chunk, self._encode(chunk), strict=True))
        return torch.stack([self._prompts[prompt].to(self.device) for prompt in prompts])

    def _encode(self, prompts: list[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        # Padded to full length without a mask, as CLIP was trained: the text side is causal and reads the end token.
        warn_of_cut(self.tokenizer, prompts, length)
        tokens = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        pooled = self.model.text_model(input_ids=tokens.input_ids.to(self.device)).pooler_output
        return F.normalize(self.model.text_projection(pooled))


def load_clip(source: str, processor: str | None = None) -> Clip:
    """Load a `CLIPModel` folder or hub id; `processor` names another place for tokenizer and image settings.

    Raises:
        FewstepError: there is no such folder or id, or it holds no CLIP model or no tokenizer.
    """
    from transformers import AutoTokenizer, CLIPModel

    if source.startswith("~"):
        source = str(user_path(source))
    if (source.count("/") != 1 or source[0] in "./~") and "/" in source and not Path(source).is_dir():
        raise FewstepError("there is no such CLIP folder", value=source, hint="Check the path.")
    try:
        model = CLIPModel.from_pretrained(source, use_safetensors=True).float().eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(processor or source)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FewstepError(
            f"cannot load a CLIP model with its tokenizer: {str(error).splitlines()[0]}",
            value=source,
            hint="Give a folder or hub id with config.json, weights and tokenizer of a transformers CLIPModel.",
        ) from error
    return Clip(model, tokenizer, read_preprocessing(processor or source, model.config.vision_config.image_size))


def read_preprocessing(source: str, image_size: int) -> Preprocessing:
    """Preprocessing named by the folder's image processor; CLIP's own (shortest edge, centre crop) if it has none."""
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        settings, _ = BaseImageProcessor.get_image_processor_dict(source)
    except OSError:
        return Preprocessing(image_size, image_size, image_size)
    mean, std = settings.get("image_mean", DEFAULT_MEAN), settings.get("image_std", DEFAULT_STD)
    size = _size(settings.get("size", image_size))
    crop = _size(settings.get("crop_size", image_size)) if settings.get("do_center_crop", True) else size
    edge = size.get("shortest_edge")
    high = crop.get("height", crop.get("shortest_edge", image_size))
    wide = crop.get("width", crop.get("shortest_edge", image_size))
    return Preprocessing(high, wide, edge, tuple(mean), tuple(std))


def _size(value: Any) -> dict[str, int]:
    """Old processor files hold a number where newer ones hold a dictionary."""
    return {"shortest_edge": value} if isinstance(value, int) else dict(value)


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bicubic", antialias=True, align_corners=False)
