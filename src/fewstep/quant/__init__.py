"""Low-bit networks: quantize in place, see what happened, save and load as any diffusers model."""

from typing import TYPE_CHECKING, Any

from fewstep.quant.apply import FEW_STEP_RULES, Rule, dequantize, quantize
from fewstep.quant.calibration import Calibration, calibrate
from fewstep.quant.layer import QuantLayer
from fewstep.quant.linear_conv import QuantConv2d, QuantLinear
from fewstep.quant.report import QuantReport
from fewstep.quant.scheme import Scheme

if TYPE_CHECKING:
    from fewstep.quant.storage import FewstepQuantConfig

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


def __getattr__(name: str) -> Any:
    """The one name that needs diffusers, which takes seconds to import."""
    if name == "FewstepQuantConfig":
        from fewstep.quant.storage import FewstepQuantConfig

        return FewstepQuantConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
