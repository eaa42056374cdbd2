"""What a plan for a pipeline belongs to."""

from __future__ import annotations

from typing import Any

from fewstep.denoiser import fingerprint
from fewstep.pipelines.calls import backbone_of
from fewstep.plan import Identity


def identity_of(pipe: Any, guidance: float | None = None, fingerprinted: bool = True) -> Identity:
    """What a plan for this pipeline belongs to.

    guidance: its `guidance_scale`, if known.
    fingerprinted: whether to look at the weights.
    """
    model = backbone_of(pipe)
    quantization = dict(getattr(model.config, "quantization_config", None) or {})
    scheme = quantization.get("scheme") or quantization.get("quant_method") or "none"
    return Identity(model=fingerprint(model) if fingerprinted else None, quantization=str(scheme), guidance=guidance)
