"""MixDQ's claims on the emoji student: mixed precision at equal bytes, order of layers over seeds, the first token.

    python benchmarks/mixdq.py
    python benchmarks/mixdq.py --items 16 --seeds 0 --output quick.json

All layers are treated alike (no rules for first and last layers), so that every row of a block stores the same bytes.
PSNR to full precision with equal seeds on held-out prompts, 95 % bootstrap intervals over prompts; the judge is the
emoji judge, which nothing is optimised on.
"""

import argparse
import copy
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor

from fewstep.files import write_json
from fewstep.jobs.context import seeds_for
from fewstep.jobs.quantize.backbone import quantize_options
from fewstep.jobs.quantize.choose import BitAllocator
from fewstep.jobs.quantize.context import QuantizeContext
from fewstep.metrics.intervals import difference_interval, mean_interval
from fewstep.pipelines import backbone_of
from fewstep.pipelines.conditions import conditions_of
from fewstep.quant import quantize, sensitivity
from fewstep.quant.allocation import LayerOption, allocate
from fewstep.quant.calls import replay
from fewstep.quant.fidelity import mean_ssim, sqnr
from fewstep.quant.first_token import keep_first_tokens
from fewstep.quant.mixed import quantize_mixed
from fewstep.recipes import load
from fewstep.rewards import load_reward
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.zoo import placed

WIDTHS = ["w2a8", "w3a8", "w4a8", "w8a8"]
BUDGETS = ["w3a8", "w4a8"]
NAIVE = "w8a8tensor-static"
RANDOM = 5


class Bench:
    """The emoji student, its held-out pictures in full precision, and what everything is scored with."""

    def __init__(self, folder: Path, items: int, seed: int) -> None:
        settings = ["scheme=''", "effective_bits=8", f"calibration.seed={seed}", "allocation.keep_float=false"]
        self.recipe = load("quantize", [*settings, "allocation.candidates=" + str(WIDTHS).replace("'", "")])
        self.run = Run(folder / str(seed), self.recipe.plain(), quiet=True)
        self.job = QuantizeContext.open(self.recipe, self.run, fuse=True)
        self.prompts = conditions_of(self.job.pipe, "emoji:evaluation", items)
        self.seeds = seeds_for("evaluation", 7, items)
        self.judge = load_reward(placed("clip:emoji-judge"))
        self.truth = self.draw(backbone_of(self.job.pipe))

    def draw(self, model: torch.nn.Module) -> Tensor:
        """Held-out pictures of a backbone."""
        with torch.no_grad():
            return self.job.sampler(unet=model)(self.job.plan, self.prompts, self.seeds)

    def model(self, apart: bool = True) -> torch.nn.Module:
        """A fresh copy of the backbone."""
        model = copy.deepcopy(backbone_of(self.job.pipe))
        if apart:
            keep_first_tokens(model, self.job.calls["unet"])
        return model

    def options(self, model: torch.nn.Module, scheme: str) -> dict:
        """What `quantize` needs for a scheme: calibration for static inputs."""
        job = dataclasses.replace(self.job, recipe=self.recipe.model_copy(update={"scheme": scheme}))
        return quantize_options(job, "unet", model)

    def score(self, model: torch.nn.Module) -> dict:
        """PSNR of every picture, structural similarity, and the judge."""
        images = self.draw(model)
        psnr = -10 * (images - self.truth).square().flatten(1).mean(1).clamp(min=1e-12).log10()
        with torch.no_grad():
            judged = self.judge.score(images, self.prompts).double()
        return {
            "psnr": mean_interval(psnr.double()).as_dict(),
            "each": psnr.tolist(),
            "ssim": mean_ssim(self.truth, images),
            "judge": mean_interval(judged).as_dict(),
        }


def choosers(bench: Bench) -> tuple[BitAllocator, dict, dict]:
    """A chooser with its table, and the table in which every layer is measured by SQNR."""
    model = bench.model()
    chooser = BitAllocator(
        bench.recipe, bench.run, model, bench.job.drawing("unet"), bench.job.calls["unet"], {"method": "rtn"}
    )
    table = bench.run.unit("sensitivity", chooser.measure)
    return chooser, table, model


def options(chooser: BitAllocator, damage) -> dict[str, list[LayerOption]]:
    return {n: [LayerOption(s, c.bytes, damage(n, s)) for s, c in row.items()] for n, row in chooser.costs.items()}


def equal_bytes(bench: Bench, chooser: BitAllocator, table: dict, sqnrs: dict) -> list[dict]:
    """One block per budget: that of a uniform width, and what else may be done with its bytes."""
    blocks = []
    for uniform in BUDGETS:
        budget = sum(row[uniform].bytes for row in chooser.costs.values())
        chooser.__dict__["budget"] = budget  # instead of the recipe's
        chosen = chooser.choose(table, {})
        joint = chooser.choose(table, {n: sqnrs[n] for n, g in chooser.groups.items() if g == "content"})
        plans: dict[str, dict[str, str]] = {f"uniform {uniform}": dict.fromkeys(chooser.names, uniform)}
        plans["MixDQ"] = chosen["schemes"]
        plans["MixDQ, SQNR alone in its sweep"] = joint["schemes"]
        noise = options(chooser, lambda n, s: sensitivity.damage_of(sqnrs[n][s], "quality"))
        plans["SQNR only"] = allocate(noise, budget).schemes
        for k in range(RANDOM):
            generator = torch.Generator().manual_seed(k)
            harm = dict(zip(chooser.names, torch.rand(len(chooser.names), generator=generator).tolist(), strict=True))
            bits = {s: c.weight_bits for s, c in next(iter(chooser.costs.values())).items()}
            rough = options(chooser, lambda n, s, harm=harm, bits=bits: harm[n] * 4.0 ** -bits[s])
            plans[f"random order {k}"] = allocate(rough, budget).schemes
        rows = {}
        for name, schemes in plans.items():
            model = bench.model()
            quantize_mixed(model, schemes)
            sizes = sum(chooser.costs[n][s].bytes for n, s in schemes.items())
            rows[name] = {"bytes": sizes, **bench.score(model)}
            print(f"  {name:24} {sizes:>9,} bytes  {rows[name]['psnr']['mean']:.2f} dB", flush=True)
        gains = {
            other: difference_interval(*(torch.tensor(rows[n]["each"]).double() for n in ("MixDQ", other))).as_dict()
            for other in rows
            if other != "MixDQ"
        }
        blocks.append({
            "budget": budget, "uniform": uniform, "rows": rows, "gains": gains, "chosen": chosen["chosen"],
            "tried": chosen["tried"], "schemes": chosen["schemes"],
        })  # fmt: skip
    return blocks


def first_token(bench: Bench) -> dict:
    """Uniform widths with the first token apart and not; the naive W8A8 of one static scale per tensor among them."""
    found = {}
    for scheme in [*WIDTHS, NAIVE]:
        for apart in (False, True):
            model = bench.model(apart)
            quantize(model, scheme, rules=(), **bench.options(model, scheme))
            found[f"{scheme}{', first token apart' if apart else ''}"] = bench.score(model)
    return found


def additivity(chooser: BitAllocator, sqnrs: dict, tries: int = 12) -> dict:
    """Sum of single noise powers against the noise with all layers quantized, over random tables of widths."""
    truth, pairs = replay(chooser.model, chooser.calls), []
    for k in range(tries):
        generator = torch.Generator().manual_seed(100 + k)
        picks = torch.randint(len(WIDTHS), (len(chooser.names),), generator=generator).tolist()
        schemes = dict(zip(chooser.names, (WIDTHS[p] for p in picks), strict=True))
        model = copy.deepcopy(chooser.model)
        quantize_mixed(model, schemes)
        together = 10 ** (-sqnr(truth, replay(model, chooser.calls)) / 10)
        pairs.append([sum(10 ** (-sqnrs[n][s] / 10) for n, s in schemes.items()), together])
    logs = torch.tensor(pairs).log()
    return {"pairs": pairs, "correlation": float(torch.corrcoef(logs.T)[0, 1])}


def stability(tables: list[dict], groups: dict[str, str]) -> dict:
    """Spearman correlation of the layers' order between calibration seeds."""
    found = {}
    for group in ("content", "quality"):
        for scheme in WIDTHS:
            lists = [[t[n][scheme] for n, g in groups.items() if g == group] for t in tables]
            pairs = [spearmanr(a, b).statistic for i, a in enumerate(lists) for b in lists[:i]]
            if pairs:
                found[f"{group}, {scheme}"] = [float(p) for p in pairs]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("results/mixdq.json"))
    parser.add_argument(
        "--folder", type=Path, default=None, help="keeps what is measured; a temporary one unless given"
    )
    given = parser.parse_args()
    begun = time.perf_counter()
    folder = given.folder or Path(tempfile.mkdtemp())
    tables, first = [], None
    for seed in given.seeds:
        bench = Bench(folder, given.items, seed)
        chooser, table, _ = choosers(bench)
        tables.append(table)
        first = first or (bench, chooser)
        print(f"seed {seed}: sensitivities after {time.perf_counter() - begun:.0f} s", flush=True)
    bench, chooser = first
    sqnrs = bench.run.unit("sqnr", lambda: {**tables[0], **chooser.measure_ratios()})
    results = {
        "settings": {
            "model": bench.recipe.model, "steps": bench.recipe.steps, "items": given.items, "seeds": given.seeds,
            "calibration_items": bench.recipe.calibration.items, "candidates": WIDTHS,
            "layers": len(chooser.names), "content": sum(g == "content" for g in chooser.groups.values()),
        },
        "blocks": bench.run.unit("blocks", lambda: equal_bytes(bench, chooser, tables[0], sqnrs)),
        "first_token": bench.run.unit("first-token", lambda: first_token(bench)),
        "additivity": bench.run.unit("additivity", lambda: additivity(chooser, sqnrs)),
        "stability": stability(tables, chooser.groups),
        "sensitivity": tables[0],
        "groups": chooser.groups,
        "environment": environment(),
        "seconds": time.perf_counter() - begun,
    }  # fmt: skip
    for block in results["blocks"]:
        spread = [r["psnr"]["mean"] for n, r in block["rows"].items() if n.startswith("random")]
        print(block["uniform"], "random orders, mean:", round(statistics.mean(spread), 2), block["gains"])
    for part in [*(b["rows"] for b in results["blocks"]), results["first_token"]]:
        for row in part.values():
            row.pop("each", None)
    write_json(given.output, results)
    print(results["stability"], results["additivity"]["correlation"])
    print(f"{given.output}: {results['seconds']:.0f} s")


if __name__ == "__main__":
    main()
