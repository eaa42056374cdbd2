"""What fewstep needs of a diffusers pipeline, as a type: any object with these members will do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import Self

if TYPE_CHECKING:
    import torch


class Pipeline(Protocol):
    """A `diffusers.DiffusionPipeline`, of whatever family, by the members that fewstep uses.

    Its components are attributes too (`pipe.unet`, `pipe.vae`, `pipe.tokenizer`); which there are depends on the
    family, so they have no type here.
    """

    scheduler: Any
    """The diffusers scheduler: `config`, `timesteps`, `set_timesteps`, `step`."""

    @property
    def components(self) -> dict[str, Any]:
        """Every component by its name; None where the pipeline does without."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """What `model_index.json` says: settings beside the components."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its networks are."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Draw: the arguments depend on the family; the result has `images` or `frames`."""
        ...

    def __getattr__(self, name: str) -> Any:
        """A component, or what only some families have (`encode_prompt`, `labels`)."""
        ...

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The pipeline on another device or in another dtype; itself, changed."""
        ...

    def register_modules(self, **kwargs: Any) -> None:
        """Exchange components."""
        ...

    def save_pretrained(self, save_directory: str | Path, *, safe_serialization: bool = True) -> None:
        """Write a folder that `DiffusionPipeline.from_pretrained` opens."""
        ...

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Settings of the progress bar."""
        ...

    def maybe_free_model_hooks(self) -> None:
        """Take offloaded networks off the device after a call that was cut short."""
        ...


__all__ = ["Pipeline"]
