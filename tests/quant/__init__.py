"""Tests of low-bit layers, methods and folders."""

from torch import Tensor

from fewstep.quant.grids import StoredWeight, fit_grid
from fewstep.quant.layer import QuantLayer


def load_float(layer: QuantLayer, weight: Tensor) -> None:
    """Round a float weight to nearest into a layer that is empty until now."""
    layer.load(StoredWeight(layer.scheme, *fit_grid(weight.detach().flatten(1), layer.scheme)))
