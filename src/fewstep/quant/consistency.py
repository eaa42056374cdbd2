"""Whether a low-bit model and what its configuration says of it agree."""

from __future__ import annotations

from torch import nn

from fewstep.errors import FewstepError
from fewstep.quant.bos import separated
from fewstep.quant.config import QuantConfig
from fewstep.quant.layer import QuantLayer
from fewstep.quant.steps import tables_of
from fewstep.quant.wrappers import bare


def check_saved_right(model: nn.Module, name: str) -> None:
    """Refuse low-bit layers that the model's own configuration does not list: its folder would open with other weights.

    Args:
        name: of the pipeline's component, for the message.

    Raises:
        FewstepError: a part of the model was quantized on its own, or layers were exchanged later.
    """
    model = bare(model)
    layers = {layer: module.scheme for layer, module in model.named_modules() if isinstance(module, QuantLayer)}
    apart, tables = separated(model), tables_of(model)
    config = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    if not isinstance(config, QuantConfig):
        right = not (layers or apart or tables)
    else:
        right = config.schemes() == layers and set(config.first_token) == set(apart) and config.tables == tables
    if not right:
        raise FewstepError(
            f"the low-bit layers of {name} are not those that its configuration lists, so that its folder would open "
            "with other weights", value=type(model).__name__,
            mend=f"Quantize it as a whole (quantize(pipe.{name}, ...)) and keep parts in float with skip=[...].",
        )  # fmt: skip
