"""What a reward is, and the table of kinds that a new file joins with `@REWARDS.register("kind")`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from fewstep.clip import Clip
from fewstep.errors import FewstepError
from fewstep.images import check_range
from fewstep.registry import Maker, Registry
from fewstep.weights import fingerprint


@runtime_checkable
class Reward(Protocol):
    """A number per image, higher is better."""

    @property
    def name(self) -> str:
        """Short name for tables and files."""
        ...

    @property
    def differentiable(self) -> bool:
        """Whether gradients with respect to the images are exact and usable for training."""
        ...

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (B, 3, H, W) float in [0, 1] and their B prompts -> (B,)."""
        ...


REWARDS: Registry[Maker[Reward]] = Registry("reward", "fewstep.rewards", package="fewstep.rewards", part=Reward)


@dataclass(frozen=True)
class RewardFunction:
    """A reward that is a function (images (B, 3, H, W) in [0, 1], their B prompts) -> (B,).

    facts: what its numbers depend on, as plain values: weights, resizing, packages; stored beside them.
    networks: what it runs, for estimates of memory.
    """

    name: str
    function: Callable[[Tensor, Sequence[str]], Tensor]
    differentiable: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    networks: tuple[nn.Module, ...] = field(default=(), repr=False)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """What the function says.

        Raises:
            FewstepError: not one number per image.
        """
        scores = self.function(check_images(images, prompts), prompts)
        if not isinstance(scores, Tensor) or scores.shape != (len(images),):
            found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            hint = "Return a tensor of shape (B,), higher is better."
            raise FewstepError(f"the reward {self.name!r} must give one number per image", value=found, hint=hint)
        return scores


def facts_of_clip(clip: Clip, source: str) -> dict[str, Any]:
    """Where a CLIP came from, which weights it has, and how it resizes and normalises."""
    revision = getattr(clip.model.config, "_commit_hash", None)
    return {
        "source": source, "revision": revision, "weights": fingerprint(clip.model),
        "preprocessing": {**asdict(clip.preprocessing), "resize": "bicubic, antialiased, float"},
    }  # fmt: skip


@REWARDS.register("given")
def _given(argument: str) -> Reward:
    """Of a recipe that was run with a Python object: it is not in the file."""
    hint = "Call the verb again with the same object, or name a reward."
    raise FewstepError("this reward was a Python object, which no recipe holds", value=argument, hint=hint)


def as_reward(given: Reward | Callable[[Tensor, Sequence[str]], Tensor]) -> Reward:
    """A reward as it is, or that of a function (images, prompts) -> (B,).

    Raises:
        FewstepError: it is neither.
    """
    if isinstance(given, Reward):
        return given
    if not callable(given):
        hint = "Give a name, a Reward, or a function (images, prompts) -> (B,)."
        raise FewstepError("not a reward", value=given, hint=hint)
    return RewardFunction(getattr(given, "__name__", type(given).__name__), given)


def load_reward(spec: str) -> Reward:
    """Reward for a spec such as `clip:FOLDER_OR_ID`, `quality:FOLDER`, `sharpness`, `colourfulness` or `contrast`.

    Raises:
        FewstepError: unknown kind, or its weights cannot be loaded.
    """
    return REWARDS.load(spec)


def check_images(images: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
    """Return the images if they are (B, 3, H, W) float in [0, 1], with one prompt each.

    Raises:
        FewstepError: other shape, type or range, or another number of prompts.
        NonFiniteError: NaN or infinity.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise FewstepError(
            "images must be (B, 3, H, W) float in [0, 1]",
            value=f"{tuple(images.shape)} {images.dtype}",
            hint="Convert bytes with .float() / 255 and put channels before height.",
        )
    if prompts is not None and len(prompts) != len(images):
        raise FewstepError(
            f"{len(images)} images need {len(images)} prompts", value=len(prompts), hint="Give one prompt per image."
        )
    return check_range(images)
