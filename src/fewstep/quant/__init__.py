"""Low-bit networks: quantize in place, see what happened, save and load as any diffusers model."""

from fewstep.quant.apply import FEW_STEP_RULES, Rule, dequantize, quantize
from fewstep.quant.calibration import Calibration, calibrate
from fewstep.quant.layer import QuantLayer
from fewstep.quant.linear_conv import QuantConv2d, QuantLinear
from fewstep.quant.report import QuantReport
from fewstep.quant.scheme import Scheme
from fewstep.quant.storage import FewstepQuantConfig, register

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

register()
