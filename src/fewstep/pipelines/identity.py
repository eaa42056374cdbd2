"""What a plan for a pipeline belongs to."""

from __future__ import annotations

from typing import Any

from torch import nn

from fewstep.denoiser import fingerprint
from fewstep.pipelines.calls import backbones_of
from fewstep.pipelines.protocol import Pipeline
from fewstep.plan import Identity
from fewstep.plan.identity import TOGETHER


def identity_of(pipe: Pipeline, guidance: float | None = None, fingerprinted: bool = True) -> Identity:
    """What a plan for this pipeline belongs to: all its denoising networks (two in Wan 2.2).

    guidance: its `guidance_scale`, if known.
    fingerprinted: whether to look at the weights.
    """
    models = backbones_of(pipe).values()
    schemes = list(dict.fromkeys(map(_scheme, models)))
    return Identity(
        model=TOGETHER.join(map(fingerprint, models)) if fingerprinted else None,
        quantization=schemes[0] if len(schemes) == 1 else TOGETHER.join(map(_scheme, models)),
        guidance=guidance,
    )


def _scheme(model: nn.Module) -> str:
    """Name of a network's low-bit scheme, `none` for full precision."""
    config: Any = model.config
    quantization = dict(getattr(config, "quantization_config", None) or {})
    return str(quantization.get("scheme") or quantization.get("quant_method") or "none")
