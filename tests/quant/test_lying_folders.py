"""Quantized folders whose configuration and tensors disagree are refused; mutated configurations never load wrong."""

import copy
import json
import random
from pathlib import Path

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from safetensors.torch import load_file, save_file
from torch import nn

from fewstep.errors import FewstepError
from fewstep.quant import Rule, Scheme, quantize
from tests.pipelines import tiny_pipelines as tiny


class Three(ModelMixin, ConfigMixin):
    """The smallest model of diffusers with several schemes."""

    @register_to_config
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.conv_in, self.inner = nn.Linear(width, width), nn.Linear(width, width)
        self.conv_out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_out(self.inner(self.conv_in(x)))


def made(folder: Path) -> dict:
    torch.manual_seed(0)
    model = Three()
    quantize(model, "w4a8")
    model.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def encoder(folder: Path) -> dict:
    model = tiny.clip_text()
    quantize(model, "w4a8")
    model.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def opened(kind, folder):
    return (type(tiny.clip_text()) if kind is encoder else Three).from_pretrained(folder)


def another_scheme(config):
    config["scheme"] = "w2a8"


def another_scheme_for_layers(config):
    config["layers"] = {("w8a8" if k == "w4a8" else "w4a8"): v for k, v in config["layers"].items()}
    config["scheme"] = next(iter(config["layers"]))


def fewer_layers(config):
    next(iter(config["layers"].values())).pop()


def one_twice(config):
    layers = next(iter(config["layers"].values()))
    config["layers"]["w2a8"] = [layers[0]]


@pytest.mark.parametrize("kind", [made, encoder])
@pytest.mark.parametrize("lie", [another_scheme, another_scheme_for_layers, fewer_layers, one_twice])
def test_a_configuration_that_lies_is_refused(kind, lie, tmp_path):
    config = kind(tmp_path)
    opened(kind, tmp_path)
    lie(config["quantization_config"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FewstepError):
        opened(kind, tmp_path)


ALIKE = [("w4a8g64", "nf4a8"), ("w8a8", "fp8a8"), ("w4a8", "w4a16"), ("w8a8", "w8afp8")]
"""Schemes whose codes and scales have equal types and shapes."""


def saved(kind, scheme, folder):
    torch.manual_seed(0)
    model = tiny.clip_text() if kind is encoder else Three(width=64)
    quantize(model, scheme, rules=())
    model.save_pretrained(folder)
    return model, json.loads((folder / "config.json").read_text())


def without_digest(folder):
    """The weights as they were written before a digest of schemes was in it."""
    (file,) = folder.glob("*.safetensors")
    kept = {name: tensor for name, tensor in load_file(file).items() if not name.endswith(".schemes_digest")}
    save_file(kept, file, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", [made, encoder])
@pytest.mark.parametrize(("written", "claimed"), [pair for one in ALIKE for pair in (one, one[::-1])])
def test_a_scheme_with_tensors_alike_is_not_believed(kind, written, claimed, tmp_path):
    _, config = saved(kind, written, tmp_path)
    opened(kind, tmp_path)
    stated = config["quantization_config"]
    stated["layers"], stated["scheme"] = {claimed: stated["layers"].pop(stated["scheme"])}, claimed
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FewstepError):
        opened(kind, tmp_path)


@pytest.mark.parametrize("kind", [made, encoder])
def test_folders_written_before_there_was_a_digest_open_and_save_anew(kind, tmp_path):
    model, _ = saved(kind, "w4a8", tmp_path)
    without_digest(tmp_path)
    again = opened(kind, tmp_path)
    again.save_pretrained(tmp_path / "anew")
    for found in (again, opened(kind, tmp_path / "anew")):
        for name, tensor in model.state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor), name


@pytest.mark.parametrize("kind", [made, encoder])
@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("packed", lambda t: t.float()),
        ("packed", lambda t: t.view(torch.uint8)),
        ("packed", lambda t: t[:, :-1].contiguous()),
        ("scale", lambda t: t.double()),
        ("scale", lambda t: t * float("nan")),
        ("scale", lambda t: t[:-1].contiguous()),
    ],
)
def test_codes_and_scales_that_lie_are_refused(kind, part, change, tmp_path):
    kind(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    tensors = load_file(file)
    name = sorted(n for n in tensors if n.endswith(f".{part}"))[0]
    save_file({**tensors, name: change(tensors[name])}, file, metadata={"format": "pt"})
    with pytest.raises(FewstepError):
        opened(kind, tmp_path)


def test_the_scheme_of_a_folder_is_one_that_its_layers_have(tmp_path):
    model = Three()
    quantize(model, "w2a8", rules=(Rule(("*",), Scheme(8, 8), "all"),))
    model.save_pretrained(tmp_path)
    assert Three.from_pretrained(tmp_path).config.quantization_config.scheme == "w8a8"


JUNK = [
    None, True, -1, 0, 2**70, 1.5, "", "w4a8", "w" + "9" * 5000, "\ud800", "inner", [], [[]], {}, {"a": {}}, [1, "a"],
    "w²a8", "w4a8g9999999", "w4a8-r9999999", "conv_in.packed", ["inner", "inner"],
]  # fmt: skip


def mutated(value, chance):
    """A copy with one to three nodes replaced, removed, added or renamed."""
    value = copy.deepcopy(value)
    for _ in range(chance.randint(1, 3)):
        nodes = [(value, key) for key in value if key != "quant_method"]
        nodes += [(value[k], j) for k in value if isinstance(value[k], dict) for j in value[k]]
        nodes += [(inner, i) for k in value if isinstance(value[k], dict) for inner in value[k].values()
                  if isinstance(inner, list) for i in range(len(inner))]  # fmt: skip
        if not nodes:
            return value
        holder, key = chance.choice(nodes)
        act = chance.randrange(4)
        if act == 0:
            holder[key] = chance.choice(JUNK)
        elif act == 1:
            del holder[key]
        elif act == 2 and isinstance(holder, dict):
            holder[str(chance.choice(JUNK))] = holder.pop(key)
        elif isinstance(holder[key], str) and holder[key]:
            text = list(holder[key])
            text[chance.randrange(len(text))] = chr(chance.randrange(32, 300))
            holder[key] = "".join(text)
    return value


@pytest.mark.parametrize("count", [1000, pytest.param(20_000, marks=pytest.mark.thorough)])
def test_mutated_configurations_are_refused_or_load_the_same_weights(count, tmp_path):
    config = made(tmp_path)
    original = Three.from_pretrained(tmp_path).state_dict()
    loaded = 0
    for seed in range(count):
        changed = mutated(config["quantization_config"], random.Random(seed))
        (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": changed}))
        try:
            model = Three.from_pretrained(tmp_path)
        except FewstepError:
            continue
        loaded += 1
        found = model.state_dict()
        assert found.keys() == original.keys(), changed
        assert all(torch.equal(found[name], original[name]) for name in found), changed
        assert model(torch.ones(1, 32)).isfinite().all()
    assert 0 < loaded < count / 2
