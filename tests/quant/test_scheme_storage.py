"""Every part of a scheme survives the folder: saved with plain diffusers, loaded again, equal to the last bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fewstep.quant import quantize
from fewstep.quant.calibration import calibrate


@pytest.mark.parametrize(
    ("scheme", "method"),
    [
        ("w4a16-asym", "rtn"), ("w3a8g48-asym", "gptq"), ("w8a8tensor", "rtn"), ("nf4", "clip"), ("fp8afp8", "rtn"),
        ("w8a8-static", "smoothquant"), ("w4a8", "svdquant:4"), ("w4a8-static", "svdquant:4"), ("w2a16", "adaround:3"),
        ("w8a8-affine", "rtn"), ("mxfp4a8", "rtn"), ("nvfp4", "gptq"), ("w4a8-hadamard", "gptq"),
        ("w4a4g16-ag16", "svdquant:4"),
    ],
)  # fmt: skip
def test_saved_and_loaded_model_is_the_same_function(
    scheme: str, method: str, build_unet: Callable[[], torch.nn.Module], evaluate: Callable[..., torch.Tensor],
    tmp_path: Path,
) -> None:  # fmt: skip
    model = build_unet()
    calibration = calibrate(model, lambda c, s: evaluate(model, s[0]), ["a", "b"], [1, 2], batch=1)
    assert calibration.times == (10.0,)
    report = quantize(model, scheme, method=method, calibration=calibration)
    assert report.coverage > 0.9
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = type(model).from_pretrained(tmp_path).eval()  # type: ignore[attr-defined]
    assert torch.equal(evaluate(loaded), evaluate(model))
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)


def test_loading_in_half_precision_keeps_scales_and_branches(
    build_unet: Callable[[], torch.nn.Module], evaluate: Callable[..., torch.Tensor], tmp_path: Path
) -> None:
    model = build_unet()
    calibration = calibrate(model, lambda c, s: evaluate(model), ["a"], [1])
    quantize(model, "nvfp4a8-affine", method="svdquant:4", calibration=calibration)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = type(model).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)  # type: ignore[attr-defined]
    for name, value in loaded.state_dict().items():
        if name.rpartition(".")[2] in ("scale", "tensor_scale", "input_zero", "smooth", "input_scale", "up", "down"):
            assert torch.equal(value, model.state_dict()[name]), name
            assert value.dtype == model.state_dict()[name].dtype
