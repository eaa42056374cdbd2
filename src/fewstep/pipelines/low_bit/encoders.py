"""Text encoders of transformers in low bits: saved and loaded by their own `save_pretrained` and `from_pretrained`.

The same method `fewstep`, the same `quantization_config` and the same layers as for models of diffusers (see
`fewstep.pipelines.low_bit.models`); transformers has its own list of methods and its own way of loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from fewstep.quant.apply import quantize
from fewstep.quant.config import MARKS, QuantConfig
from fewstep.quant.loading import build_layers, check_loaded


class EncoderQuantConfig(QuantConfig, QuantizationConfigMixin):
    """`quantization_config` of a text encoder; the fields of `QuantConfig`."""


class EncoderQuantizer(HfQuantizer):
    """Lets transformers load and save models with `QuantLayer`s."""

    quantization_config: EncoderQuantConfig

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self.pre_quantized:
            build_layers(model, self.quantization_config, kwargs.get("checkpoint_files"))
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        config = self.quantization_config
        if not self.pre_quantized:
            quantize(model, config.scheme, rules=(), backend=config.backend)
        check_loaded(model)
        return model

    def is_serializable(self) -> bool:
        """Always: codes and scales are plain tensors."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters on top train: the gradient passes through."""
        return True

    @property
    def is_compileable(self) -> bool:
        """No data-dependent control flow."""
        return True


def _mark(model: Any, fields: Mapping[str, Any]) -> None:
    """Tell a model of transformers how it was quantized, so that it saves and loads by itself."""
    config = EncoderQuantConfig(**fields)
    model.hf_quantizer = EncoderQuantizer(config, pre_quantized=True)
    model.quantization_method = config.quant_method
    model.config.quantization_config = config


# What importing this module is for (`fewstep.registration`).
MARKS["transformers"] = _mark
AUTO_QUANTIZER_MAPPING["fewstep"] = EncoderQuantizer
AUTO_QUANTIZATION_CONFIG_MAPPING["fewstep"] = EncoderQuantConfig
