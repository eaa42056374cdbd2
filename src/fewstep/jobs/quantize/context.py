"""What quantization is measured on: the calibration items, drawn by the pipeline in full precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.jobs.context import Items, JobContext
from fewstep.jobs.quantize.recipe import QuantizeRecipe
from fewstep.plan import Plan
from fewstep.quant.calls import Call


@dataclass(frozen=True, eq=False)
class QuantizeContext(JobContext[QuantizeRecipe]):
    """The pipeline in full precision and its calibration."""

    def check(self) -> None:
        """Refuse what can be seen to be wrong before anything is recorded or quantized.

        Raises:
            FewstepError: a part that is absent or in low bits, a plan of other weights, bits per step of two networks.
        """
        low = [name for name, part in self.pipe.components.items() if getattr(part, "hf_quantizer", None) is not None]
        if low and set(low) & {*self.backbones, "vae", "text_encoder"}:
            hint = "Open the pipeline that it was made from."
            raise FewstepError("a part of the pipeline is quantized already", value=low, hint=hint)
        absent = set(self.recipe.parts) - {self.part_kind(name) for name in self.parts}
        if absent:
            hint = f"Leave it out: {type(self.pipe).__name__} has {', '.join(self.pipe.components)}."
            raise FewstepError("the pipeline has no such part", value=sorted(absent), hint=hint)
        if len(self.backbones) > 1 and self.recipe.per_step:
            hint = "Leave per_step out."
            raise FewstepError("bits per step are chosen for one network", value=list(self.backbones), hint=hint)
        self.plan.check(self.identity)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The components that are to be quantized, in the pipeline's order."""
        return {
            name: part
            for name, part in self.pipe.components.items()
            if isinstance(part, nn.Module) and self.part_kind(name) in self.recipe.parts
        }

    @cached_property
    def calibration(self) -> Items:
        """Conditions and seeds that everything is measured on."""
        settings = self.recipe.calibration
        return self.items("calibration", settings.conditions, settings.items, settings.seed)

    @property
    def provenance(self) -> dict[str, Any]:
        """What the calibration was, for the record."""
        times = [float(row.network_time) for row in self.plan.rows]
        return {"conditions": self.calibration.conditions, "seeds": self.calibration.seeds, "times": times}

    @cached_property
    def calls(self) -> dict[str, list[Call]]:
        """Calls of every network while the calibration items are drawn in full precision."""
        return self.calls_of(self.calibration)

    def drawing(self, name: str, output: str = "image") -> Callable[..., Tensor]:
        """(backbone of this name, tables of the rows) -> images, or latents, of the calibration items.

        Where the plan's rows run alike, the tables are left out.
        """
        sampler = self.sampler()

        def draw(model: nn.Module, rows: Sequence[int] = ()) -> Tensor:
            sampler.pipe.register_modules(**{name: model})
            with torch.no_grad():
                return self.calibration.draw(sampler, named_rows(self.plan, rows), output)

        return draw


def named_rows(plan: Plan, rows: Sequence[int]) -> Plan:
    """The plan whose rows run these tables; unchanged if there are none."""
    if not rows:
        return plan
    return plan.replace(
        rows=tuple(dataclasses.replace(row, network=f"bits:{k}") for row, k in zip(plan.rows, rows, strict=True))
    )
