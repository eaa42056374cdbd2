"""A generator of motions in miniature: a video network on a few views that has seen procedural furniture move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.denoiser import Condition, Denoiser
from fewstep.errors import FewstepError
from fewstep.files import read_json, read_tensors
from fewstep.prediction import Prediction
from fewstep.process import Cosine
from fewstep.tasks.articulation.inflation import InflatedNetwork, inflate
from fewstep.tasks.articulation.joints import RigidPart
from fewstep.tasks.articulation.objects import FAMILIES
from fewstep.tasks.articulation.rendering import PointCloud, orbit, part_mask, video

FAMILY_NAMES = (*FAMILIES, "any")
WORDS = {
    "door": ("door", "doors", "gate", "hatch", "swings"),
    "drawer": ("drawer", "drawers", "slides", "slide", "sliding", "pulled", "tray", "window"),
    "lid": ("lid", "lids", "laptop", "cover", "screen", "trunk", "seat"),
    "handle": ("handle", "faucet", "tap", "knob", "turned", "turns", "dial", "lever", "valve"),
}
"""Words of a text that name a family; the first that occurs in the text decides."""
CHANNELS = 10
PROCESS, PREDICTION = Cosine(), Prediction("v_prediction")


@dataclass(frozen=True)
class PriorSettings:
    """What a prior was made for.

    Attributes:
        side: pixels.
        frames: of a clip, the first at rest.
        azimuths: of the views, degrees.
        elevation: of the views, degrees.
        channels: of the levels of the network.
        fold: pixels, along each side, that the network takes as channels of one.
    """

    side: int = 32
    frames: int = 4
    azimuths: tuple[float, ...] = (45.0, 225.0)
    elevation: float = 30.0
    channels: tuple[int, ...] = (48, 64)
    fold: int = 4

    @property
    def views(self) -> Tensor:
        """Cameras (V, 3, 3)."""
        return orbit(torch.tensor(self.azimuths), self.elevation)


class PictureNetwork(nn.Module):
    """A diffusers `UNet2DModel` on folded pictures: (N, 10, H, W) to raw output (N, 3, H, W).

    The ten channels: the noisy picture, the object at rest, the frame's share of the clip, the direction of the eye.
    """

    def __init__(self, settings: PriorSettings) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.fold, levels = settings.fold, len(settings.channels)
        self.unet = UNet2DModel(
            sample_size=settings.side // settings.fold,
            in_channels=CHANNELS * settings.fold**2,
            out_channels=3 * settings.fold**2,
            block_out_channels=settings.channels,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            layers_per_block=1,
            norm_num_groups=8,
            num_class_embeds=len(FAMILY_NAMES),
            add_attention=False,
        )

    def forward(self, pictures: Tensor, time: Tensor, family: Tensor) -> Tensor:
        """Raw output; family (N,), a row of `FAMILY_NAMES`."""
        folded = F.pixel_unshuffle(pictures, self.fold)
        return F.pixel_shuffle(self.unet(folded, time, class_labels=family, return_dict=False)[0], self.fold)


def new_prior(settings: PriorSettings = PriorSettings(), pictures: PictureNetwork | None = None) -> InflatedNetwork:
    """The network of a prior: one of pictures, inflated; untrained unless one is given."""
    image = PictureNetwork(settings) if pictures is None else pictures
    last = len(settings.channels) - 1
    deep = [f"unet.down_blocks.{last}.resnets.0", "unet.mid_block.resnets.1", "unet.up_blocks.0.resnets.1"]
    early, late = f"unet.down_blocks.{last - 1}.resnets.0", "unet.up_blocks.1.resnets.1"
    return inflate(image, [early, *deep, late], across=deep)


def as_denoiser(network: nn.Module, settings: PriorSettings) -> Denoiser:
    """The prior as what scores call, on clips (B, V, F, 3, H, W) in [-1, 1]; see `condition_of`."""
    eyes = settings.views[:, 2]

    def say(x: Tensor, time: Tensor, rest: Tensor, mask: Tensor, family: Tensor) -> Tensor:
        return network(clip_inputs(x, rest, eyes), time, mask, family=family)

    return Denoiser(say, PROCESS, PREDICTION)


def clip_inputs(x: Tensor, rest: Tensor, eyes: Tensor) -> Tensor:
    """The channels of every picture: clips (B, V, F, 3, H, W), the object at rest (B, V, 3, H, W), eyes (V, 3)."""
    B, V, n, _, H, W = x.shape
    share = torch.linspace(0, 1, n, dtype=x.dtype).reshape(1, 1, n, 1, 1, 1).expand(B, V, n, 1, H, W)
    eye = eyes.to(x).reshape(1, V, 1, 3, 1, 1).expand(B, V, n, 3, H, W)
    return torch.cat([x, rest.unsqueeze(2).expand(B, V, n, 3, H, W), share, eye], 3)


def clips(cloud: PointCloud, part: RigidPart, settings: PriorSettings) -> Tensor:
    """What the prior works in: the part's motion on white-less ground, (..., V, F, 3, side, side) in [-1, 1]."""
    return 2 * video(cloud, part, settings.views, settings.frames, settings.side)[..., :3, :, :] - 1


@torch.no_grad()
def condition_of(cloud: PointCloud, family: str, settings: PriorSettings) -> Condition:
    """What the prior is told of an object: its views at rest, the part's mask, the family; leading size 1."""
    if family not in FAMILY_NAMES:
        raise FewstepError("unknown family", value=family, hint=f"Use {', '.join(FAMILY_NAMES)}.")
    still = RigidPart("prismatic", torch.eye(3)[0], torch.zeros(3), torch.tensor(0.0))
    rest = clips(cloud, still, settings)[None, :, 0]
    mask = part_mask(cloud, settings.views, settings.side)[None]
    return {"rest": rest, "mask": mask, "family": torch.tensor([FAMILY_NAMES.index(family)])}


def without_family(condition: Condition) -> Condition:
    """The condition that guidance leads away from: the object without the text."""
    return {**condition, "family": torch.full_like(condition["family"], len(FAMILY_NAMES) - 1)}


def family_of(text: str) -> str:
    """The family that a text names, `any` where it names none."""
    words = [word.strip(".,!'\"").lower() for word in text.split()]
    for word in words:
        for family, names in WORDS.items():
            if word in names:
                return family
    return "any"


def load_prior(folder: str | Path) -> tuple[Denoiser, PriorSettings]:
    """A prior of a folder with `prior.json` and `prior.safetensors`.

    Raises:
        FewstepError: they are absent or do not fit each other.
    """
    folder = Path(folder)
    about: Mapping[str, Any] = read_json(folder / "prior.json")
    try:
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in about["settings"].items()}
        settings = PriorSettings(**given)
        network = new_prior(settings)
        stored = read_tensors(folder / "prior.safetensors")
        network.load_state_dict({name: value.float() for name, value in stored.items()})
    except (KeyError, TypeError, RuntimeError) as error:
        raise FewstepError(f"{folder} holds no prior of motions ({error})", hint="Train it again.") from error
    return as_denoiser(network.eval().requires_grad_(False), settings), settings
