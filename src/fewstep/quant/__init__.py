"""Low-bit networks: quantize in place, see what happened; folders of them are `pipelines/low_bit`."""

from __future__ import annotations

from fewstep.lazy import attributes
from fewstep.quant.apply import dequantize, quantize
from fewstep.quant.calibration import Calibration, calibrate
from fewstep.quant.layer import QuantLayer
from fewstep.quant.linear_conv import QuantConv, QuantEmbedding, QuantLinear
from fewstep.quant.report import QuantReport
from fewstep.quant.rules import FEW_STEP_RULES, PUBLISHED_RULES, Rule
from fewstep.quant.scheme import Scheme

__getattr__ = attributes("fewstep", {"FewstepQuantConfig": "pipelines.low_bit.models"})
"""The former place of `fewstep.FewstepQuantConfig`, which scripts may name."""

__all__ = [
    "FEW_STEP_RULES",
    "PUBLISHED_RULES",
    "Calibration",
    "QuantConv",
    "QuantEmbedding",
    "QuantLayer",
    "QuantLinear",
    "QuantReport",
    "Rule",
    "Scheme",
    "calibrate",
    "dequantize",
    "quantize",
]
