"""Text encoders of transformers in low bits: saved and loaded by their own `save_pretrained` and `from_pretrained`.

The same method `fewstep`, the same `quantization_config` and the same layers as for models of diffusers (see
`fewstep.quant.storage`); transformers has its own list of methods and its own way of loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from fewstep.quant.apply import install, quantize
from fewstep.quant.bos import install_separated, separated
from fewstep.quant.config import QuantConfig, by_scheme, main_scheme, refuse_truncated
from fewstep.quant.consistency import check_files, check_values
from fewstep.quant.report import QuantReport
from fewstep.quant.scheme import Scheme


class EncoderQuantConfig(QuantConfig, QuantizationConfigMixin):
    """`quantization_config` of a text encoder; the fields of `QuantConfig`."""


class EncoderQuantizer(HfQuantizer):
    """Lets transformers load and save models with `QuantLayer`s."""

    quantization_config: EncoderQuantConfig

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self.pre_quantized:
            install_separated(model, self.quantization_config.first_token)
            install(model, self.quantization_config.schemes(), self.quantization_config.backend)
            check_files(model, self.quantization_config, kwargs.get("checkpoint_files"))
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        config = self.quantization_config
        if not self.pre_quantized:
            quantize_encoder(model, config.scheme, backend=config.backend)
        refuse_truncated(model)
        check_values(model)
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


def quantize_encoder(model: nn.Module, scheme: str | Scheme, **options: Any) -> QuantReport:
    """`fewstep.quant.quantize` for a text encoder, whose layers all get the scheme unless `rules` says otherwise.

    Raises:
        FewstepError: as `quantize`.
    """
    return quantize(model, scheme, **{"rules": (), **options})


def attach_encoder(model: Any, scheme: Scheme, layers: Mapping[str, Scheme], backend: str) -> None:
    """Mark a model of transformers that was quantized in place, so that it saves what it needs to be loaded."""
    config = EncoderQuantConfig(main_scheme(scheme, layers), by_scheme(layers), backend, first_token=separated(model))
    model.hf_quantizer = EncoderQuantizer(config, pre_quantized=True)
    model.quantization_method = config.quant_method
    model.config.quantization_config = config


# What importing this module is for (`fewstep.registration`).
AUTO_QUANTIZER_MAPPING["fewstep"] = EncoderQuantizer
AUTO_QUANTIZATION_CONFIG_MAPPING["fewstep"] = EncoderQuantConfig
