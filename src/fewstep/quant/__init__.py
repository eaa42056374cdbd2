"""Low-bit networks: quantize in place, see what happened, save and load as any diffusers model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from fewstep.quant.apply import dequantize, quantize
from fewstep.quant.calibration import Calibration, calibrate
from fewstep.quant.layer import QuantLayer
from fewstep.quant.linear_conv import QuantConv2d, QuantLinear
from fewstep.quant.report import QuantReport
from fewstep.quant.rules import FEW_STEP_RULES, Rule
from fewstep.quant.scheme import Scheme

if TYPE_CHECKING:
    from fewstep.quant.storage import FewstepQuantConfig
else:

    def __getattr__(name: str) -> type:
        """The one name that needs diffusers, which takes seconds to import; type checkers see the import above."""
        if name != "FewstepQuantConfig":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module("fewstep.quant.storage").FewstepQuantConfig


__all__ = [
    "FEW_STEP_RULES",
    "Calibration",
    "FewstepQuantConfig",
    "QuantConv2d",
    "QuantLayer",
    "QuantLinear",
    "QuantReport",
    "Rule",
    "Scheme",
    "calibrate",
    "dequantize",
    "quantize",
]
