"""What diffusers and transformers do alike when they open a low-bit model: layers first, then their tensors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from fewstep.quant.apply import install
from fewstep.quant.config import QuantConfig, refuse_truncated
from fewstep.quant.consistency import check_files, check_values
from fewstep.quant.first_token import install_first_tokens
from fewstep.quant.split import split_like
from fewstep.quant.steps import copy_layers, tie


def build_layers(model: nn.Module, config: QuantConfig, files: Iterable[str | Path] | None) -> None:
    """Put empty low-bit layers into a model as its configuration lists them, for the tensors of `files`.

    Raises:
        FewstepError: configuration, model and files do not belong together.
    """
    install_first_tokens(model, config.first_token)
    split_like(model, config.tables)
    copy_layers(model, config.tables)
    install(model, config.schemes(), config.backend)
    check_files(model, config, files)


def check_loaded(model: nn.Module) -> None:
    """Finish a model whose tensors were read: share what precisions share, and refuse what is missing or no scale."""
    refuse_truncated(model)
    tie(model)
    check_values(model)
