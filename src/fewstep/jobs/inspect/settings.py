"""What a diagnosis can be told."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from typing_extensions import Self

from fewstep.recipes.base import RecipePart, validated


class InspectSettings(RecipePart):
    """What to inspect, and how much of it."""

    model: str
    """Shipped name, diffusers folder, or hub id."""
    steps: int = Field(8, ge=1)
    """Network evaluations of the plans, if the pipeline has none stored."""
    plan: str | None = None
    """Plan file to look at instead of the pipeline's own."""
    samples: int = Field(8, ge=2)
    """Samples that intervals rest on."""
    probes: int = Field(4, ge=1)
    """Random directions per Jacobian estimate."""
    fine: int = Field(3, ge=1)
    """Reference steps per row, of four network calls each."""
    guidance: float = Field(1.0, ge=0)
    """`guidance_scale` of the pipeline call; 1 is without."""
    prompts: tuple[str, ...] = ()
    """Of a text-to-image pipeline, used in turn."""
    seed: int = 0
    """Of states and probes."""
    variant: str = ""
    """Of the weight files of a pipeline, such as fp16."""

    @classmethod
    def of(cls, model: str, **values: Any) -> Self:
        """The settings.

        Raises:
            FewstepError: an unknown name, or a value out of range.
        """
        return validated(cls, {"model": model, **values})

    def plain(self) -> dict[str, Any]:
        """JSON values; runs that were made before there were variants have none."""
        return self.model_dump(mode="json", exclude=set() if self.variant else {"variant"})
