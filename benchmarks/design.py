"""Design by reward on GB1: four ways against the exact tilted law of 20^4 sequences, and regret at equal queries.

    python benchmarks/design.py
    python benchmarks/design.py --seeds 0 --training 300 --students 50 --starts 0 --output runs/quick.json

Three parts. `ways`: a masked model of the fit variants (fitness at least FIT, uniform), and the law p(x) exp(scale *
fitness) of four ways; the law of every sampler over all 160,000 sequences is enumerated, nothing is drawn (but SMC).
`students`: its few-step students, likewise. `search`: some measured variants, rounds of proposals, the best found after
each; the model ways, an evolutionary and a random search see equal queries. Each seed is a unit: a killed run goes on.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.sequences import AMINO_ACIDS, ScoredSequences, gb1_landscape
from fewstep.discrete import RevealPlan, TokenDenoiser, TokenLaws, enumerated_law, reveal_plan, tilted_tokens
from fewstep.distillation.didi_instruct import DiDiInstruct, TokenEngine, log_ratio
from fewstep.distillation.sdtt import SelfDistillation, SelfDistillationEngine
from fewstep.files import write_json
from fewstep.jobs.designing import gb1_measure, gb1_start, tokens_of_places
from fewstep.metrics.intervals import seed_interval
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.tasks.design import (
    WAYS,
    DesignSettings,
    SequenceModel,
    SequenceNetwork,
    best_so_far,
    design,
    fit_model,
    steer_tokens,
    tuned_policy,
)
from fewstep.tasks.design.search import propose
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.stage import StageConfig
from fewstep.train.tokens import token_stage

FIT, LEVELS, SCALE = 0.2, 8, 1.0
SCALES = (0.5, 1.0, 2.0, 4.0)
STEPS = (1, 2, 4)
PARTICLES = (100, 1000, 10_000)
ROUNDS, PLATE, START = 4, 96, 96
Numbers = dict[str, float]


@cache
def fitness() -> Tensor:
    """Of all sequences (160000,), 0 where it was not measured."""
    return gb1_landscape().flatten().nan_to_num(nan=0.0).double()


@cache
def data_law() -> Tensor:
    """Uniform over the fit variants (160000,)."""
    fit_ones = (fitness() >= FIT).double()
    return fit_ones / fit_ones.sum()


def tilt(law: Tensor, scale: float) -> Tensor:
    found = law * (scale * (fitness() - fitness().max())).exp()
    return found / found.sum()


def against(law: Tensor, target: Tensor) -> Numbers:
    """A law (160000,) beside a target: how far, how good, how much of it where the data are not."""
    law, f = law.flatten(), fitness()
    inside = target > 0
    return {
        "total_variation": 0.5 * float((law - target).abs().sum()),
        "kl": float((target[inside] * (target[inside] / law[inside].clamp(min=1e-300)).log()).sum()),
        "fitness": float((law * f).sum()),
        "outside": float(law[f < FIT].sum()),
        "entropy": -float((law * law.clamp(min=1e-300).log()).sum()),
    }


def taught(seed: int, training: int) -> SequenceModel:
    """The masked model of the fit variants."""
    places = (data_law() > 0).nonzero().squeeze(1)
    scored = ScoredSequences(tokens_of_places(places), fitness()[places].float(), AMINO_ACIDS)
    return fit_model(scored, levels=LEVELS, steps=training, batch=128, seed=seed)


def real_batches(size: int) -> Callable[[torch.Generator], Tensor]:
    places = (data_law() > 0).nonzero().squeeze(1)
    return lambda g: tokens_of_places(places[torch.randint(len(places), (size,), generator=g)])


def student_of(
    model: SequenceModel, method: str, updates: int, seed: int, **changed: Any
) -> tuple[TokenDenoiser, SequenceNetwork | None]:
    """A few-step student of the model by a method, and its discriminator."""
    judge = None
    student, teacher = copy.deepcopy(model.network), copy.deepcopy(model.network)
    student.requires_grad_(True)
    both = [TokenDenoiser(network, model.process) for network in (student, teacher)]
    rate = 3e-4
    if method == "didi":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            judge = SequenceNetwork(4, 21, 0)
        settings = DiDiInstruct(**{"group": 16, "tau": (1.0, 1.0), "smoothing": 0.0, "teacher": 0.05, **changed})
        modules = {"student": student, "adversary": judge}
        engine: Any = TokenEngine(settings, *both, modules, real_batches(128))
        stage = token_stage(engine, updates, adversary_rate=5.0)
    else:
        sdtt = SelfDistillation(**{"steps": (4, 2), **changed})
        engine = SelfDistillationEngine(sdtt, *both, {"student": student}, teacher, real_batches(128))
        stage = token_stage(engine, updates)
    config = StageConfig(steps=updates, batch=128, learning_rate=rate, seed=seed, device="cpu", ema=0.99, warmup=20)
    fit(stage, config, None, accelerator_for(config), quiet=True)
    return TokenDenoiser(student.eval().requires_grad_(False), model.process), judge


def laws_by_steps(denoiser: TokenDenoiser, steps: tuple[int, ...], target: Tensor) -> dict[str, Numbers]:
    laws = TokenLaws(denoiser, 4)
    return {str(n): against(enumerated_law(reveal_plan(denoiser.process, n), laws), target) for n in steps}


def few_steps(model: SequenceModel, updates: int, seed: int) -> dict[str, dict[str, Numbers]]:
    """The model and its students against the law of the data; `one by one` reveals four tokens in four steps."""
    data, found = data_law(), {}
    found["teacher"] = laws_by_steps(model.denoiser(), (*STEPS, 8, 16), data)
    plan = reveal_plan(model.process, 4, order="random")
    found["teacher"]["one by one"] = against(enumerated_law(plan, TokenLaws(model.denoiser(), 4)), data)
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "DiDi-Instruct": ("didi", {}),
        "DiDi without intermediate states": ("didi", {"intermediate": False}),
        "DiDi without normalised rewards": ("didi", {"normalise": False}),
        "SDTT": ("sdtt", {}),
        "SDTT, reverse": ("sdtt", {"divergence": "reverse"}),
    }
    for name, (method, changed) in kinds.items():
        student, judge = student_of(model, method, updates, seed, **changed)
        found[name] = laws_by_steps(student, STEPS, data)
        if judge is not None and not changed:
            guided = tilted_tokens(student, partial(ratio_of, judge.eval()))
            found["DiDi guided by its discriminator"] = laws_by_steps(guided, STEPS, data)
    return found


@torch.no_grad()
def ratio_of(judge: SequenceNetwork, z: Tensor) -> Tensor:
    """The discriminator's log-ratio of a state (B,), 0 where nothing is masked."""
    return log_ratio(judge(z), z == judge.symbols - 1, 8.0)


def of_levels(model: SequenceModel) -> list[TokenLaws]:
    return [TokenLaws(model.denoiser(k), 4) for k in range(len(model.means))]


def conditioned(model: SequenceModel, levels: list[TokenLaws], plan: RevealPlan, scale: float) -> Tensor:
    """The law of conditioning: of each level, weighted."""
    weights = model.tilted_levels(scale)
    return torch.stack([w * enumerated_law(plan, laws) for w, laws in zip(weights, levels, strict=True)]).sum(0)


def directed(model: SequenceModel, updates: int, seed: int) -> dict[str, dict[str, Numbers]]:
    """The law of each way against the exact tilt of the data's law."""
    target, found = tilt(data_law(), SCALE), dict[str, dict[str, Numbers]]()
    found["the target itself"] = {"": against(target, target)}
    found["untouched"] = laws_by_steps(model.denoiser(), STEPS, target)
    found["conditioning"], found["guidance"], found["grpo"] = {}, {}, {}
    levels, ahead = of_levels(model), TokenLaws(tilted_tokens(model.denoiser(), partial(model.value, scale=SCALE)), 4)
    reward = lambda x: gb1_measure(x).nan_to_num(nan=0.0)  # noqa: E731
    for n in STEPS:
        plan = reveal_plan(model.process, n)
        found["conditioning"][str(n)] = against(conditioned(model, levels, plan, SCALE), target)
        found["guidance"][str(n)] = against(enumerated_law(plan, ahead), target)
        if n > 1:
            network = tuned_policy(model, reward, steps=n, updates=updates, kl=1 / SCALE, size=128, seed=seed)
            tuned = TokenLaws(TokenDenoiser(network, model.process), 4)
            found["grpo"][str(n)] = against(enumerated_law(plan, tuned), target)
    return found


def particles(model: SequenceModel, seed: int) -> dict[str, Numbers]:
    """SMC against the tilt of the model's own law, which it converges to, and draws from that tilt itself."""
    plan, f = reveal_plan(model.process, 4), fitness()
    own = enumerated_law(plan, TokenLaws(model.denoiser(), 4)).flatten()
    target, found = tilt(own, SCALE), {}
    generator = torch.Generator().manual_seed(seed)
    for count in PARTICLES:
        drawn = steer_tokens(
            plan, model.denoiser(), lambda x: SCALE * gb1_measure(x).nan_to_num(nan=0.0), count=count, length=4,
            generator=generator, value=partial(model.value, scale=SCALE),
        )  # fmt: skip
        place = (drawn.samples * torch.tensor([8000, 400, 20, 1])).sum(1)
        exact = torch.multinomial(target, count, replacement=True, generator=generator)
        found[str(count)] = {
            "fitness": float(f[place].mean()),
            "wanted": float((target * f).sum()),
            "total_variation": _distance(place, target),
            "of exact draws": _distance(exact, target),
            "effective": float(drawn.effective[-1] / count),
        }
    return found


def _distance(places: Tensor, target: Tensor) -> float:
    counts = torch.bincount(places, minlength=len(target)).double()
    return 0.5 * float((counts / counts.sum() - target).abs().sum())


def by_scale(model: SequenceModel) -> dict[str, Numbers]:
    """How far the tilt may reach: conditioning in 4 steps, what the model promises and what is there."""
    levels, plan, found = of_levels(model), reveal_plan(model.process, 4), {}
    for scale in SCALES:
        law = conditioned(model, levels, plan, scale)
        promised = float((model.tilted_levels(scale) * model.means).sum())
        numbers = against(law, tilt(data_law(), scale))
        wanted = float((tilt(data_law(), scale) * fitness()).sum())
        found[f"{scale:g}"] = {**numbers, "promised": promised, "wanted": wanted}
    return found


def one_search(way: str, seed: int, rounds: int, plate: int, scale: float) -> dict[str, Any]:
    """The best fitness after each query, and what was promised."""
    begun, told = time.process_time(), []
    start, best = gb1_start(START, seed), float(fitness().max())

    def seen(round: int, made: Any, scores: Tensor) -> None:
        promised = {"promised": float(made.expected.nanmean())} if made.expected.isfinite().any() else {}  # of models
        told.append(
            {**promised, "measured": float(scores.nanmean()), "off_support": made.off_support, "filled": made.filled}
        )

    settings = DesignSettings(seed=seed, scale=scale)
    grown = design(start, gb1_measure, way, rounds=rounds, count=plate, settings=settings, seen=seen)
    curve = best_so_far(grown.scores)[START - 1 :]
    return {
        "regret": [best - float(curve[k]) for k in range(0, rounds * plate + 1, plate // 4)],
        "top": float(grown.scores.nan_to_num(nan=0).topk(10).values.mean()),
        "rounds": told,
        "seconds": time.process_time() - begun,
    }


def off_support(seed: int) -> dict[str, Any]:
    """One plate at growing scales: promised, measured, distance, and whether a warning is said."""
    start, found = gb1_start(START, seed), {}
    for scale in (1.0, 4.0, 16.0, 64.0):
        made = propose(start, "conditioning", PLATE, DesignSettings(seed=seed, scale=scale))
        scores = gb1_measure(made.tokens)
        found[f"{scale:g}"] = {
            "promised": float(made.expected.mean()), "measured": float(scores.nanmean()),
            "off_support": made.off_support, "warned": float(bool(made.warnings(start))),
        }  # fmt: skip
    return found


def ways(seed: int, training: int, updates: int) -> dict[str, Any]:
    begun, model = time.process_time(), taught(seed, training)
    found = {"ways": directed(model, updates, seed), "particles": particles(model, seed), "scales": by_scale(model)}
    return {**found, "seconds": time.process_time() - begun}


def students(seed: int, training: int, updates: int) -> dict[str, Any]:
    begun = time.process_time()
    found = few_steps(taught(seed, training), updates, seed)
    return {"few steps": found, "seconds": time.process_time() - begun}


def over_seeds(each: list[Any]) -> Any:
    """Mean and interval of every number over the seeds."""
    first = each[0]
    if isinstance(first, dict):
        return {key: over_seeds([one[key] for one in each]) for key in first}
    if isinstance(first, list):
        return [over_seeds([one[k] for one in each]) for k in range(len(first))]
    values = torch.tensor([float(v) for v in each], dtype=torch.float64)
    entry = {"values": values.tolist(), "mean": float(values.mean())}
    if len(each) > 1:
        interval = seed_interval(values)
        entry |= {"low": interval.low, "high": interval.high}
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--starts", type=int, nargs="+", default=[0, 1, 2], help="seeds of the searches")
    parser.add_argument("--training", type=int, default=500)
    parser.add_argument("--students", type=int, default=100, help="updates of students and policies")
    parser.add_argument("--parts", nargs="+", default=["ways", "search", "students"], help="what is measured")
    parser.add_argument("--output", type=Path, default=Path("results/design.json"))
    parser.add_argument("--folder", type=Path, default=Path("runs/design"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    settings = {
        "seeds": given.seeds, "starts": given.starts, "training": given.training, "students": given.students,
        "fit": FIT, "scale": SCALE, "rounds": ROUNDS, "plate": PLATE, "start": START,
        "fit variants": int((data_law() > 0).sum()), "search scale": DesignSettings().scale,
        "best fitness": float(fitness().max()),
    }  # fmt: skip
    found: dict[str, Any] = {}
    with Run(given.folder, settings, quiet=True) as run:
        for part, function in (("ways", ways), ("students", students)):
            if part in given.parts:
                each = [
                    run.unit(f"{part}-{s}", partial(function, s, given.training, given.students)) for s in given.seeds
                ]
                found |= {key: over_seeds([one[key] for one in each]) for key in each[0]}
                found[f"seconds of {part}"] = found.pop("seconds")
        if "search" in given.parts:
            scale = DesignSettings().scale
            searches = {
                way: [run.unit(f"{way}-{s}", partial(one_search, way, s, ROUNDS, PLATE, scale)) for s in given.starts]
                for way in WAYS
            }
            found["search"] = {way: over_seeds(each) for way, each in searches.items()}
            found["off support"] = over_seeds([run.unit(f"support-{s}", partial(off_support, s)) for s in given.starts])
    write_json(given.output, {
        "settings": settings, **found, "environment": environment(), "seconds": time.perf_counter() - begun,
    })  # fmt: skip


if __name__ == "__main__":
    main()
