"""What a quantization run can be told."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fewstep.errors import FewstepError
from fewstep.jobs.pipeline_recipe import Conditions, PipelineRecipe, TuningBudget, checked
from fewstep.recipes.base import RecipePart

_UNITS = {"": 1, "B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str) -> int:
    """Bytes of a size such as `2.5GB`, `300 MB`, `1GiB` or `123456`.

    Raises:
        FewstepError: it is none.
    """
    found = _SIZE.fullmatch(text)
    units = {name.lower(): size for name, size in _UNITS.items()}
    if found is None or found[2].lower() not in units:
        raise FewstepError("not a size", value=text, hint="Write for instance 2.5GB, 300MB or 1GiB.")
    return int(float(found[1]) * units[found[2].lower()])


def _parsed(name: str) -> str:
    from fewstep.quant import Scheme

    try:
        return str(Scheme.parse(name))
    except FewstepError as error:
        raise ValueError(str(error)) from error


def _method(name: str) -> None:
    from fewstep.quant.methods import method_of

    method_of(name)


def _ranges(text: str) -> None:
    from fewstep.quant.statistics import ranges_of

    ranges_of(text)


def _integer_product(scheme: str) -> bool:
    from fewstep.quant import Scheme

    return Scheme.parse(scheme).integer_product


class QuantizeAllocation(RecipePart):
    """How bits are chosen under a budget."""

    candidates: list[str] = Field(default_factory=lambda: ["w2a8", "w3a8", "w4a8", "w8a8"], min_length=1)
    """Schemes that a layer may get."""
    keep_float: bool = True
    """A layer may also stay as it is, where the budget allows."""
    bops: float = Field(0, ge=0, le=1)
    """Bit operations of a network call, as a share of those with 16-bit weights and activations; 0 for no limit."""
    ratios: list[float] = Field(default_factory=lambda: [0.46, 0.56, 0.66, 0.76, 0.86, 0.96, 1.06, 1.16, 1.26, 1.36])
    """Average bits of the content layers over those of the quality layers: one solution each, judged on images."""
    joint: bool = True
    """Also try one programme over all layers with SQNR alone, which costs network calls for the content layers."""
    content: list[str] = Field(default_factory=list)
    """Globs of content layers; cross attention and feed-forward unless given."""
    window: int = Field(7, ge=2)
    """Of the structural similarity."""

    @field_validator("candidates")
    @classmethod
    def _schemes(cls, names: list[str]) -> list[str]:
        return [_parsed(name) for name in names]


class QuantizeCalibration(RecipePart):
    """What sensitivities, static scales and methods are measured on."""

    conditions: Conditions = "auto"
    """Prompts or class labels to calibrate on: the name of a set or a text file; `auto` fits the pipeline."""
    items: int = Field(8, ge=2)
    """Pairs of condition and seed to calibrate on."""
    seed: int = 0
    ranges: Annotated[str, checked(_ranges)] = "max"
    """Of static inputs: max, ema:0.95 (averages of extremes) or percentile:99.9."""


class QuantizeEvaluation(RecipePart):
    """Held-out conditions and seeds that the result is measured on, and how often calls are timed."""

    conditions: Conditions = "auto"
    items: int = Field(16, ge=2)
    rounds: int = Field(5, ge=0)


class QuantizeRecipe(PipelineRecipe):
    """Quantize a pipeline: a scheme for all layers, or a budget under which bits are chosen layer by layer."""

    kind: Literal["quantize"] = "quantize"
    model: str = "emoji-student"
    batch: int = Field(8, ge=1)
    scheme: str = ""
    """One scheme for the backbone, such as w4a8; first, last and conditioning layers get more."""
    budget: str = ""
    """Bytes of the backbone's file, such as 2.5GB: bits are chosen."""
    effective_bits: float = Field(0, ge=0, le=32)
    """The same, as stored bits per weight of the products, scales included."""
    method: Annotated[str, checked(_method)] = "rtn"
    """How weights are rounded: rtn (seconds), clip, gptq, adaround, brecq, smoothquant, svdquant:RANK."""
    resident: Literal["packed", "int8"] = "packed"
    """What layers of fewer than 8 bits keep in memory for products on a CPU: packed codes, which every call unpacks, or
    int8 codes beside them (one more byte per weight, the speed of w8a8). For schemes with one scale per row."""
    parts: list[Literal["backbone", "text", "vae"]] = Field(default_factory=lambda: ["backbone"], min_length=1)  # type: ignore[arg-type]
    """What becomes low-bit."""
    text: str = "w8a16"
    """Scheme of the text encoders."""
    vae: str = "w8a16"
    """Scheme of the autoencoder."""
    first_token: bool = True
    """Keep what the layers make of a first text token that is always the same in full precision."""
    split_skips: bool = True
    """Shortcut convolutions of a UNet as two halves with scales of their own."""
    allocation: QuantizeAllocation = Field(default_factory=QuantizeAllocation)
    calibration: QuantizeCalibration = Field(default_factory=QuantizeCalibration)
    evaluation: QuantizeEvaluation = Field(default_factory=QuantizeEvaluation)
    per_step: bool = False
    """With a scheme: bits per row of the plan, one rung below or above the scheme, for the same mean compute."""
    rungs: list[str] = Field(default_factory=list)
    """Schemes that rows may get; unless given, the scheme with 4-, 8- and 16-bit inputs, which share their weights."""
    corrections: list[Literal["ptqd", "stepbaq"]] = Field(default_factory=list)
    """Corrections of the mean errors to try in the plan; the best is kept if it helps on the calibration items."""
    q_sched: TuningBudget = 0.0
    """Budget of a Q-Sched search against full precision on the result; 0 for none."""

    @field_validator("scheme", "text", "vae")
    @classmethod
    def _scheme(cls, name: str) -> str:
        return _parsed(name) if name else name

    @field_validator("rungs")
    @classmethod
    def _rungs(cls, names: list[str]) -> list[str]:
        return [_parsed(name) for name in names]

    @field_validator("budget")
    @classmethod
    def _budget(cls, text: str) -> str:
        try:
            if text:
                parse_size(text)
        except FewstepError as error:
            raise ValueError(str(error)) from error
        return text

    @model_validator(mode="after")
    def _one_aim(self) -> QuantizeRecipe:
        given = [n for n, v in (("scheme", self.scheme), ("budget", self.budget), ("effective_bits", self.bits)) if v]
        if len(given) > 1:
            raise ValueError(f"give one of scheme, budget and effective_bits, not {' and '.join(given)}")
        if self.per_step and self.method.startswith("brecq"):
            raise ValueError(
                "per_step keeps layers in several copies, which brecq cannot learn together: use one of them"
            )
        if self.per_step and not self.scheme:
            raise ValueError(
                "per_step needs a scheme: rows of other bits keep layers in several copies, which a budget of bytes "
                "that is met has no room for"
            )
        if self.resident == "int8" and self.scheme and not _integer_product(self.scheme):
            raise ValueError(f"resident=int8 changes nothing for {self.scheme}: use w4a8row, one scale per row")
        if not given and "backbone" in self.parts:
            raise ValueError("say what is wanted: scheme (such as w4a8), budget (2.5GB) or effective_bits (4.5)")
        return self

    @property
    def bits(self) -> float:
        """`effective_bits`."""
        return self.effective_bits
