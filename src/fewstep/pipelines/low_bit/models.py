"""Quantized diffusers models as ordinary folders: `save_pretrained` writes them, `from_pretrained` reads them.

The file is safetensors with the packed codes; `quantization_config` in config.json names the method `fewstep`
and lists the layers of each scheme, so that reading needs no rules. Reading needs `import fewstep`, which
registers the method with diffusers (`fewstep.registration`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin

from fewstep.errors import FewstepError
from fewstep.quant.apply import dequantize, quantize
from fewstep.quant.config import MARKS, QuantConfig
from fewstep.quant.layer import KEPT, QuantLayer
from fewstep.quant.loading import build_layers, check_loaded


class FewstepQuantConfig(QuantConfig, QuantizationConfigMixin):
    """`quantization_config` of a model of diffusers; the fields of `QuantConfig`.

    Pass `FewstepQuantConfig("w4a8")` to a diffusers `from_pretrained` to quantize full-precision weights while loading.
    """


class FewstepQuantizer(DiffusersQuantizer):
    """Lets diffusers load and save models with `QuantLayer`s."""

    quantization_config: FewstepQuantConfig
    _files: list[str] = []  # noqa: RUF012 - replaced, never changed
    use_keep_in_fp32_modules = True  # for the layers that stay in float

    def preprocess_model(self, model: Any, **kwargs: Any) -> Any:
        """As usual, but casting stays allowed: our layers keep their scales whatever `.to(dtype)` does."""
        result = super().preprocess_model(model, **kwargs)
        model.is_quantized = False
        return result

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        """The keys as they are; the files are looked at before anything is loaded from them."""
        files = [checkpoint_files] if isinstance(checkpoint_files, str) else checkpoint_files
        self._files = [str(file) for file in files or ()]
        return loaded_keys

    def check_if_quantized_param(
        self, model: Any, param_value: Any, param_name: str, state_dict: Any, **kwargs: Any
    ) -> bool:
        """Scales and such: diffusers would round them to `torch_dtype`; codes are integers and load as they are."""
        path, _, leaf = param_name.rpartition(".")
        return leaf in KEPT and isinstance(model.get_submodule(path), QuantLayer)

    def create_quantized_param(
        self,
        model: Any,
        param_value: Any,
        param_name: str,
        target_device: Any,
        state_dict: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Store it as it is in the file."""
        path, _, leaf = param_name.rpartition(".")
        setattr(model.get_submodule(path), leaf, state_dict[param_name].to(target_device))

    def check_quantized_param_shape(
        self, param_name: str, current_param: Any, loaded_param: Any, **kwargs: Any
    ) -> bool:
        """Refuse scales of another model.

        Raises:
            FewstepError: the shape differs.
        """
        if current_param.shape != loaded_param.shape:
            raise FewstepError(
                f"{param_name} has another shape than {tuple(current_param.shape)}",
                value=tuple(loaded_param.shape),
                hint="The file and its config.json do not belong together: save the model again.",
            )
        return True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        if self.pre_quantized:
            build_layers(model, self.quantization_config, self._files)
            model.register_to_config(quantization_config=self.quantization_config)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        config = self.quantization_config
        if not self.pre_quantized:
            quantize(model, config.scheme, backend=config.backend)
            self.quantization_config = model.hf_quantizer.quantization_config
        check_loaded(model)

    def _dequantize(self, model: Any) -> Any:
        keep = model.hf_quantizer
        dequantize(model)
        model.hf_quantizer = keep  # the caller removes it
        return model

    @property
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
    """Tell a model of diffusers how it was quantized, so that it saves and loads by itself."""
    config = FewstepQuantConfig(**fields)
    model.hf_quantizer = FewstepQuantizer(config, pre_quantized=True)
    model.quantization_method = config.quant_method
    model.register_to_config(quantization_config=config)


# What importing this module is for (`fewstep.registration`).
MARKS["diffusers"] = _mark
AUTO_QUANTIZER_MAPPING["fewstep"] = FewstepQuantizer
AUTO_QUANTIZATION_CONFIG_MAPPING["fewstep"] = FewstepQuantConfig
