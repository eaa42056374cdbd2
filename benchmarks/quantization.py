"""Every quantization method on small few-step models, bits from 8 to 2, beside what other libraries give.

    python benchmarks/quantization.py
    python benchmarks/quantization.py --models emoji-student --items 16 --seeds 0 --output quick.json

Per row: bytes of the backbone, PSNR and structural similarity to full precision with equal seeds on held-out
conditions (95 % bootstrap intervals over pictures), a judge that nothing was optimised on, the Frechet distance of its
features to those of the full-precision pictures, and the PSNR after a Q-Sched search of equal budget on the calibration
items. Fast methods that calibrate are repeated over calibration seeds. torchao, optimum-quanto and bitsandbytes enter
through their diffusers configurations; what cannot run here is listed with the reason.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.files import write_json
from fewstep.jobs.context import seeds_for
from fewstep.jobs.quantize.backbone import quantize_options
from fewstep.jobs.quantize.context import QuantizeContext
from fewstep.jobs.quantize.job import searched
from fewstep.jobs.tuning import scaled
from fewstep.metrics import load_features
from fewstep.metrics.classifier import load_classifier
from fewstep.metrics.distances import frechet, psnr
from fewstep.metrics.intervals import difference_interval, mean_interval
from fewstep.pipelines import backbone_of, identity_of
from fewstep.pipelines.conditions import conditions_of
from fewstep.quant import quantize
from fewstep.quant.calibration import Calibration
from fewstep.quant.fidelity import mean_ssim
from fewstep.quant.reconstruct import reconstruct
from fewstep.quant.report import tensor_bytes
from fewstep.recipes import load
from fewstep.rewards import load_reward
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.zoo import placed, shipped

MODELS = {"emoji-student": ["steps=4"], "mnist-dit": ["steps=8", "guidance=1.5"]}
WIDTHS = ("w8a8", "w4a8", "w3a8", "w2a8")
METHODS = ("rtn", "clip", "smoothquant", "gptq", "adaround", "brecq", "svdquant:8")
NAIVE = ("w8a8tensor-static", "w8a8-static", "w4a8row", "w4a16")
REPEATED = ("smoothquant", "gptq", "svdquant:8")
SLOW = ("adaround", "brecq")
"""Minutes per row: one calibration seed, and not at 8 bit, where rounding hardly matters."""
BASELINES = ("torchao int8 dynamic", "torchao int8 weights", "torchao int4 weights", "quanto int8", "quanto int4",
             "quanto int2", "bitsandbytes nf4")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A system of the table: who quantizes, how, and from which calibration."""

    by: str
    scheme: str
    method: str
    seed: int = 0
    rules: bool = True

    @property
    def name(self) -> str:
        words = [self.by, self.scheme, self.method, str(self.seed), "" if self.rules else "alike"]
        return "-".join(w for w in words if w).replace(" ", "-").replace(":", "")


def table(seeds: list[int]) -> list[Row]:
    """All rows of one model."""
    ours = [Row("fewstep", s, m) for s in WIDTHS for m in METHODS if s != "w8a8" or m not in SLOW]
    ours += [Row("fewstep", s, m, n) for s in ("w4a8", "w3a8") for m in REPEATED for n in seeds if n]
    ours += [Row("fewstep", s, "rtn") for s in NAIVE]
    ours += [Row("fewstep", s, "rtn", rules=False) for s in (*WIDTHS, "w8a8tensor-static")]
    return ours + [Row(name.split()[0], name.partition(" ")[2], "") for name in BASELINES]


class Subject:
    """A pipeline with its plan, its held-out pictures in full precision, and what they are scored with."""

    def __init__(self, name: str, run: Run, items: int, search: int) -> None:
        self.name, self.run, self.search = name, run, search
        recipe = load("quantize", [f"model={name}", "scheme=w8a8", "batch=32", "calibration.items=24", *MODELS[name]])
        self.job = QuantizeContext.open(recipe, run, fuse=True)
        self.conditions = conditions_of(self.job.pipe, recipe.prompts("auto", held_out=True), items)
        self.seeds = seeds_for("evaluation", 7, items)
        self.truth = self.draw(backbone_of(self.job.pipe))
        if name == "mnist-dit":
            self.judge: Any = load_classifier(shipped("mnist-features"))
            self.features = load_features(f"classifier:{shipped('mnist-features')}")
        else:
            self.judge = load_reward(placed("clip:emoji-judge"))
            self.features = load_features(placed("clip:emoji-judge"))
        self.truth_features = self.features(self.truth)
        self.judged = self.judge.score(self.truth, self.conditions).double()

    @torch.no_grad()
    def draw(self, model: nn.Module, plan: Any = None) -> Tensor:
        """Held-out pictures of a backbone."""
        generate = self.job.sampler(**{self.job.backbone: model})
        return generate(plan or self.job.plan, self.conditions, self.seeds)

    def calibration(self, model: nn.Module, seed: int) -> Calibration:
        """Statistics of all layers on the calibration items of a seed."""
        calibration = self.job.recipe.calibration.model_copy(update={"seed": seed})
        recipe = self.job.recipe.model_copy(update={"calibration": calibration, "method": "gptq"})
        return quantize_options(dataclasses.replace(self.job, recipe=recipe), self.job.backbone, model)["calibration"]

    @cached_property
    def calibrations(self) -> dict[int, Calibration]:
        return {}

    def build(self, row: Row) -> tuple[nn.Module, float]:
        """The quantized backbone, and the seconds that it took (calibration included)."""
        began = time.perf_counter()
        if row.by != "fewstep":
            return baseline(self, row), time.perf_counter() - began
        full = backbone_of(self.job.pipe)
        model = copy.deepcopy(full)
        if row.seed not in self.calibrations:
            self.calibrations[row.seed] = self.calibration(copy.deepcopy(full), row.seed)
        more: dict[str, Any] = {} if row.rules else {"rules": ()}
        method = "adaround" if row.method == "brecq" else row.method
        quantize(model, row.scheme, method=method, calibration=self.calibrations[row.seed], **more)
        if row.method == "brecq":
            self._reconstruct(full, model)
        return model, time.perf_counter() - began

    def _reconstruct(self, full: nn.Module, low: nn.Module) -> None:
        items = self.job.calibration
        some = items.pick(range(min(16, len(items.seeds))))

        @torch.no_grad()
        def run(model: nn.Module) -> None:
            some.draw(self.job.sampler(**{self.job.backbone: model}), self.job.plan, "latent")

        reconstruct(full, low, run, blocks_of(low), calls=8, steps=100)

    def tuned(self, model: nn.Module) -> Any:
        """The plan that Q-Sched finds on the calibration items."""
        generate = self.job.sampler(**{self.job.backbone: model})
        base = self.job.plan.replace(identity=identity_of(generate.pipe, self.job.guidance))
        name = f"q-sched-{time.time_ns()}"  # scores of another network must not be read
        return scaled(base, searched(self.job, generate, base, self.search, name).theta)

    @torch.no_grad()
    def score(self, images: Tensor) -> dict[str, Any]:
        """Everything about held-out pictures of one system."""
        each = psnr(images, self.truth).double()
        judged = self.judge.score(images, self.conditions).double()
        return {
            "psnr": mean_interval(each).as_dict(),
            "ssim": mean_ssim(self.truth, images),
            "judge_against_full": difference_interval(judged, self.judged).as_dict(),
            "frechet_to_full": frechet(self.features(images), self.truth_features),
        }


def blocks_of(model: nn.Module) -> list[str]:
    """Names of the units of reconstruction, in running order: transformer blocks, or resnets and attentions."""
    kinds = ("BasicTransformerBlock", "ResnetBlock2D", "Transformer2DModel")
    found = [n for n, m in model.named_modules() if type(m).__name__ in kinds]
    return [n for n in found if not any(n.startswith(f"{other}.") for other in found)]


def baseline(subject: Subject, row: Row) -> nn.Module:
    """The backbone as another library quantizes it, through its diffusers configuration."""
    from diffusers import BitsAndBytesConfig, QuantoConfig, TorchAoConfig
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    configs: dict[tuple[str, str], Callable[[], Any]] = {
        ("torchao", "int8 dynamic"): lambda: TorchAoConfig(Int8DynamicActivationInt8WeightConfig()),
        ("torchao", "int8 weights"): lambda: TorchAoConfig(Int8WeightOnlyConfig()),
        ("torchao", "int4 weights"): lambda: TorchAoConfig(IntxWeightOnlyConfig(torch.int4, PerGroup(32))),
        ("quanto", "int8"): lambda: QuantoConfig(weights_dtype="int8"),
        ("quanto", "int4"): lambda: QuantoConfig(weights_dtype="int4"),
        ("quanto", "int2"): lambda: QuantoConfig(weights_dtype="int2"),
        ("bitsandbytes", "nf4"): lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    }
    full: Any = backbone_of(subject.job.pipe)
    with tempfile.TemporaryDirectory() as folder:
        full.save_pretrained(folder)
        config = configs[row.by, row.scheme]()
        model = type(full).from_pretrained(folder, quantization_config=config, torch_dtype=torch.float32)
    return model.eval().requires_grad_(False)


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all tensors of any library's model."""
    return tensor_bytes([*model.parameters(), *model.buffers()])


def measured(subject: Subject, row: Row) -> dict[str, Any]:
    """One row of the table."""
    about = {"by": row.by, "scheme": row.scheme, "method": row.method, "seed": row.seed, "rules": row.rules}
    try:
        model, seconds = subject.build(row)
        found = subject.score(subject.draw(model))
    except Exception as error:  # another library's refusal is a result
        if row.by == "fewstep":
            raise
        return {**about, "refused": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    found |= {"bytes": stored_bytes(model), "seconds": seconds}
    low = not row.scheme.startswith("w8") or row.method == "rtn"  # at 8 bit there is little to repair
    if subject.search and row.by == "fewstep" and not row.seed and row.rules and low:
        found["q_sched"] = subject.score(subject.draw(model, subject.tuned(model)))
    return about | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--search", type=float, default=30, help="budget of Q-Sched in passes over the items")
    parser.add_argument("--output", type=Path, default=Path("results/quantization.json"))
    parser.add_argument("--folder", type=Path, help="keeps what is measured; a temporary one unless given")
    given = parser.parse_args()
    begun, folder = time.perf_counter(), given.folder or Path(tempfile.mkdtemp())
    results: dict[str, Any] = {}
    for name in given.models:
        settings = {"model": name, "items": given.items, "search": given.search}
        run = Run(folder / name, settings, quiet=True)
        subject = Subject(name, run, given.items, given.search)
        rows = []
        for row in (r for r in table(given.seeds) if given.rows in r.name):
            rows.append(run.unit(row.name, partial(measured, subject, row)))
            text = rows[-1].get("refused") or f"{rows[-1]['psnr']['mean']:6.2f} dB {rows[-1]['bytes']:>10,} bytes"
            after = rows[-1].get("q_sched", {}).get("psnr", {}).get("mean", math.nan)
            print(f"{time.perf_counter() - begun:6.0f} s  {name} {row.name:44} {text} {after:6.2f}", flush=True)
        full = backbone_of(subject.job.pipe)
        results[name] = {
            "settings": settings | {"call": MODELS[name], "calibration_items": len(subject.job.calibration.seeds)},
            "full_bytes": stored_bytes(full), "judge_full": mean_interval(subject.judged).as_dict(), "rows": rows,
        }  # fmt: skip
    write_json(given.output, {"models": results, "environment": environment()})


if __name__ == "__main__":
    main()
