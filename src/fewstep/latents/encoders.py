"""Frozen picture encoders: any vision transformer of transformers as a map from pictures to a grid of tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.clip import Preprocessing
from fewstep.errors import FewstepError
from fewstep.files import write_folder, write_json

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LEFT_OUT = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] -> tokens (B, width, h, w) of a transformer such as DINOv2 or DINOv3.

    mean, std: of the colours that the transformer was trained with.

    Raises:
        FewstepError: the model has no patches (a convolutional network).
    """

    def __init__(self, model: Any, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        if not isinstance(getattr(model.config, "patch_size", None), int):
            what = f"{type(model).__name__} has no square patches"
            raise FewstepError(what, hint="Use a vision transformer: Dinov2, Dinov2WithRegisters, DINOv3ViT, ...")
        self.model, self.mean, self.std = model, tuple(mean), tuple(std)

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return int(self.model.config.patch_size)

    @property
    def width(self) -> int:
        """Numbers per token."""
        return int(self.model.config.hidden_size)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the weights, as plain JSON values."""
        config = {k: v for k, v in self.model.config.to_diff_dict().items() if k not in _LEFT_OUT}
        return {"config": json.loads(json.dumps(config)), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Encoder:
        """An encoder with these settings and random weights."""
        from transformers import AutoConfig, AutoModel

        config = dict(settings["config"])
        model = AutoModel.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
        return cls(model, settings["mean"], settings["std"])

    def forward(self, pictures: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Tokens (B, width, h, w); the pictures are resized so that `grid` = (h, w) patches cover them."""
        high, wide = grid or (pictures.shape[-2] // self.patch, pictures.shape[-1] // self.patch)
        prepare = Preprocessing(high * self.patch, wide * self.patch, None, self.mean, self.std)
        hidden = self.model(pixel_values=prepare(pictures)).last_hidden_state
        # the tokens of the class and of the registers come first
        return hidden[:, -high * wide :].transpose(1, 2).unflatten(2, (high, wide))

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write a folder that transformers and `load_encoder` open.

        overwrite: replace a folder that fewstep wrote; others are never replaced (FewstepError).
        """
        colours = {"image_mean": list(self.mean), "image_std": list(self.std)}

        def fill(draft: Path) -> None:
            self.model.save_pretrained(draft, safe_serialization=True)
            write_json(draft / "preprocessor_config.json", {"image_processor_type": "BitImageProcessor", **colours})

        write_folder(folder, fill, over="ours" if overwrite else "nothing")


def small_encoder(size: int, patch: int, width: int, layers: int, heads: int) -> Encoder:
    """A small `Dinov2Model` with random weights, for pictures of this side; colours enter as 2 x - 1."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        image_size=size,
        patch_size=patch,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        use_mask_token=False,
    )
    return Encoder(Dinov2Model(config), (0.5,) * 3, (0.5,) * 3)


def load_encoder(spec: str | Path) -> Encoder:
    """A frozen encoder in float32: a folder of stage `encoder`, or a transformers folder or hub id.

    Such as `facebook/dinov2-with-registers-base` (arXiv 2510.11690) or `facebook/dinov3-vits16plus-pretrain-lvd1689m`
    (arXiv 2510.15301).

    Raises:
        FewstepError: nothing can be loaded there, or it is no vision transformer.
    """
    from transformers import AutoModel
    from transformers.image_processing_utils import BaseImageProcessor

    name = str(spec)
    if not Path(name).is_dir() and (name.count("/") != 1 or name[0] in "./~"):
        hint = "Give a folder made by `fewstep train encoder`, a transformers folder, or a hub id."
        raise FewstepError("there is no such encoder", value=name, hint=hint)
    try:
        model = AutoModel.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
    except Exception as error:  # transformers raises many kinds; users need one sentence
        raise FewstepError(
            f"cannot load an encoder: {str(error).splitlines()[0]}",
            value=name,
            hint="Give a folder or hub id of a transformers vision model; gated ones need your own access.",
        ) from error
    try:
        colours, _ = BaseImageProcessor.get_image_processor_dict(name)
    except OSError:
        colours = {}
    mean, std = colours.get("image_mean", IMAGENET_MEAN), colours.get("image_std", IMAGENET_STD)
    return Encoder(model, mean, std).eval().requires_grad_(False)
