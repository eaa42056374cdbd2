"""Text encoders in low bits: they run, save, load, and draw the same pictures inside a pipeline."""

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.files import read_json
from fewstep.quant import QuantLinear, quantize
from fewstep.quant.calls import recording
from fewstep.quant.first_token import first_token_layers, keep_first_tokens
from tests.pipelines import tiny_pipelines as tiny

IDS = torch.tensor([[0, 5, 9, 1], [0, 7, 3, 1]])


@pytest.mark.parametrize("make", [tiny.clip_text, lambda: tiny.clip_text(projection=True), tiny.t5])
@pytest.mark.parametrize("scheme", ["w4a8", "nvfp4a8"])
def test_an_encoder_loads_as_it_was_saved(make, scheme, tmp_path):
    model = make()
    truth = model(IDS)[0]
    report = quantize(model, scheme, rules=())
    assert report.coverage > 0.5
    low = model(IDS)[0]
    assert not torch.equal(low, truth)
    model.save_pretrained(tmp_path / "encoder")
    assert read_json(tmp_path / "encoder" / "config.json")["quantization_config"]["quant_method"] == "fewstep"
    again = type(model).from_pretrained(tmp_path / "encoder")
    assert any(isinstance(m, QuantLinear) for m in again.modules())
    assert torch.equal(again(IDS)[0], low)
    half = type(model).from_pretrained(tmp_path / "encoder", dtype=torch.bfloat16)
    scales = [m.scale for m in half.modules() if isinstance(m, QuantLinear)]
    assert {s.dtype for s in scales} <= {torch.float16, torch.float32, torch.uint8}


def test_a_clip_encoder_keeps_its_first_token(tmp_path):
    model = tiny.clip_text()
    with recording(model) as calls, torch.no_grad():
        truth = model(IDS)[0]
    names = keep_first_tokens(model, calls)
    assert "encoder.layers.0.self_attn.k_proj" in names  # causal: nothing comes before the first token
    quantize(model, "w2a8", rules=(), skip=["embeddings"])
    low = model(IDS)[0]
    torch.testing.assert_close(low[:, 0], truth[:, 0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(low[:, 1:], truth[:, 1:], rtol=1e-2, atol=1e-2)
    model.save_pretrained(tmp_path / "encoder")
    again = type(model).from_pretrained(tmp_path / "encoder")
    assert first_token_layers(again) == names
    assert torch.equal(again(IDS)[0], low)


def test_a_pipeline_with_low_bit_parts_loads_in_one_line(tmp_path):
    from diffusers import DiffusionPipeline

    pipe = tiny.sdxl(tmp_path)
    quantize(pipe.unet, "w4a8")
    quantize(pipe.text_encoder, "w8a8", rules=())
    quantize(pipe.text_encoder_2, "w8a16", rules=())
    quantize(pipe.vae, "w8a8")
    images = tiny.draw(pipe, "sdxl", ["a", "bc"], [0, 1])
    pipe.save_pretrained(tmp_path / "low")
    again = tiny.quiet(DiffusionPipeline.from_pretrained(tmp_path / "low"))
    assert torch.equal(tiny.draw(again, "sdxl", ["a", "bc"], [0, 1]), images)
    with pytest.raises(FewstepError, match="quantized already"):
        quantize(again.text_encoder, "w8a8", rules=())
