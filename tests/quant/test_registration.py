"""Importing the package costs no other library than torch, and low-bit folders open whichever is imported first."""

import importlib.machinery
import subprocess
import sys

import pytest
import torch

from fewstep.quant import quantize
from fewstep.registration import ImportWatcher
from tests import ROOT
from tests.pipelines import tiny_pipelines as tiny

FIRST = """
import sys, torch
import fewstep.quant
loaded = {"diffusers", "transformers", "torchao", "accelerate", "peft", "scipy", "sklearn"} & set(sys.modules)
assert not loaded, loaded
place = sys.argv[1]
"""
ENCODER = """
import transformers
low = transformers.CLIPTextModel.from_pretrained(place + "/encoder")
torch.save(low(torch.tensor([[0, 5, 9, 1]]))[0], place + "/encoder.pt")
"""
NETWORK = """
import diffusers
low = diffusers.UNet2DConditionModel.from_pretrained(place + "/network")
torch.save(low(torch.ones(1, 4, 8, 8), 10, torch.ones(1, 5, 16)).sample, place + "/network.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", [FIRST + NETWORK + ENCODER, pytest.param(FIRST + ENCODER + NETWORK, marks=pytest.mark.thorough)]
)
@torch.no_grad()
def test_low_bit_folders_open_where_libraries_are_imported_after_the_package(code, build_unet, tmp_path):
    encoder, network = tiny.clip_text(), build_unet()
    quantize(encoder, "w4a8", rules=())
    quantize(network, "w4a8")
    encoder.save_pretrained(tmp_path / "encoder")
    network.save_pretrained(tmp_path / "network")
    command = [sys.executable, "-c", f"import torch\ntorch.set_grad_enabled(False)\n{code}", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    written = torch.load(tmp_path / "encoder.pt", weights_only=True)
    assert torch.equal(written, encoder(torch.tensor([[0, 5, 9, 1]]))[0])
    written = torch.load(tmp_path / "network.pt", weights_only=True)
    assert torch.equal(written, network(torch.ones(1, 4, 8, 8), 10, torch.ones(1, 5, 16)).sample)


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A library that keeps a list, and a package that adds to it when the library is imported."""
    (tmp_path / "a_library.py").write_text("METHODS = []\n")
    (tmp_path / "an_addition.py").write_text("import a_library\n\na_library.METHODS.append(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [ImportWatcher({"a_library": "an_addition"}), *sys.meta_path])
    yield
    for name in ("a_library", "an_addition"):
        sys.modules.pop(name, None)


def test_the_addition_comes_once_after_the_import_and_also_after_a_failed_one(modules, tmp_path):
    text = (tmp_path / "a_library.py").read_text()
    (tmp_path / "a_library.py").write_text("raise OSError('half there')")
    with pytest.raises(OSError, match="half there"):
        import a_library
    (tmp_path / "a_library.py").write_text(text + "# another size: Python keeps compiled files by size and second\n")
    importlib.invalidate_caches()
    import a_library

    assert a_library.METHODS == [1]
    assert isinstance(a_library.__spec__.loader, importlib.machinery.SourceFileLoader)
    assert "an_addition" in sys.modules
