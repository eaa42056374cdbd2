"""A scheme per layer: each layer gets its own, the file keeps them, and mistakes are named."""

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.quant import QuantLayer
from fewstep.quant.mixed import quantize_mixed
from fewstep.quant.modules import eligible
from fewstep.quant.sensitivity import costs
from tests.pipelines import tiny_pipelines as tiny


def test_every_layer_gets_its_own_scheme(tmp_path):
    model = tiny.unet()
    names = eligible(model)
    cycle = ["w2a8", "w4a8", "w8a8", "w8a16", "float"]
    schemes = {name: cycle[k % 5] for k, name in enumerate(names)}
    expected = costs(model, names, cycle[:4])
    report = quantize_mixed(model, schemes, reasons={names[0]: "because"})
    for name, scheme in schemes.items():
        layer = model.get_submodule(name)
        if scheme == "float":
            assert not isinstance(layer, QuantLayer)
        else:
            assert str(layer.scheme) == scheme
    rows = {row.name: row for row in report.rows}
    assert all(rows[n].bytes_after == expected[n][s].bytes for n, s in schemes.items() if s != "float")
    assert rows[names[0]].reason == "because"
    assert {row.name for row in report.skipped} == {n for n, s in schemes.items() if s == "float"}
    model.save_pretrained(tmp_path / "unet")
    again = type(model).from_pretrained(tmp_path / "unet")
    given = (torch.randn(1, 4, 8, 8), 3, torch.randn(1, 5, 32))
    assert torch.equal(again(*given)[0], model(*given)[0])


def test_mistakes_are_named():
    model = tiny.unet()
    names = eligible(model)
    with pytest.raises(FewstepError, match="no layer"):
        quantize_mixed(model, {"conv_im": "w8a8"})
    with pytest.raises(FewstepError, match="has no scheme"):
        quantize_mixed(model, dict.fromkeys(names[1:], "w8a8"))
    with pytest.raises(FewstepError, match="unknown quantization scheme"):
        quantize_mixed(model, dict.fromkeys(names, "w4b8"))
    assert not any(isinstance(m, QuantLayer) for m in model.modules())
