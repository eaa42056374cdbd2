"""Rewards and preferences for a four-step student of 8x8 digits: what each way of tuning wins, and what it breaks.

    python benchmarks/align.py
    python benchmarks/align.py --seeds 0 --budget 20000 --output runs/align-quick.json --folder runs/align-quick

The student is distilled by DMD2 from the digits' teacher. The reward is minus the mean ink ("thin strokes"), whose
known optimum is an empty picture: whoever climbs far enough loses the digit. It judges nothing else: a classifier that
no training saw says whether the digit is still right; distance and recall are to held-out digits, spread is within
classes, `sharp` the energy of the Laplacian against theirs. Every arm gets the same number of samples through networks
and its own learning rate: the one of `RATES` with the highest reward among those that keep the distance below twice
the untouched one (the least distance where none does), tuned with a seed of its own. Curves are measured at quarters.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.alignment.pairwise import own_error
from fewstep.alignment.presets import alignment
from fewstep.denoiser import Denoiser
from fewstep.distillation.chain import Chain, evenly
from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term
from fewstep.distillation.engine import Engine, assemble
from fewstep.distillation.method import Method, method
from fewstep.distillation.part import part
from fewstep.files import write_json
from fewstep.process import Process
from fewstep.runs import Run, environment
from fewstep.testing.digits import DigitBed, class_condition, train_digits
from fewstep.testing.training import distil
from fewstep.train.distillation import defaults, stage_of
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.stage import StageConfig
from fewstep.transition import noise_like

RATES, TUNING_SEED, QUARTERS, PAIRS, BATCH = (1e-4, 3e-4), 100, 4, 2048, 64


def reward(samples: Tensor, batch: Batch | None = None) -> Tensor:
    """Minus the mean ink (B,) of digits (B, 64)."""
    return -samples.mean(1)


@part
def fine_tuning(times: tuple[float, ...]) -> Term:
    """A denoising loss on given samples at the student's own times: what blurs it."""

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        assert batch.clean is not None
        t = torch.tensor(times, dtype=torch.float64)[torch.randint(len(times), (batch.size,), generator=generator)]
        noise = noise_like(tuple(batch.clean.shape), generator, batch.clean)
        value = own_error(networks.student, batch, batch.clean, noise, t).mean()
        return value, {}

    return loss


def tuned_on_best(process: Process, chain: Chain) -> Method:
    """Fine-tuning on the better half of the student's own samples."""
    return Method({"denoising": fine_tuning(chain.times)}, chain)


DMD2 = {"floor": 0.1, "ratio": 1}
ARMS: dict[str, Callable[[Process, Chain], Method]] = {
    "fine-tuning on the best half": tuned_on_best,
    "PSO online": lambda p, c: alignment("pso", p, c),
    "PSO offline": lambda p, c: alignment("pso_offline", p, c),
    "DPO": lambda p, c: alignment("dpo", p, c),
    "GRPO": lambda p, c: alignment("grpo", p, c, group=4, kl=0.0),
    "ReFL": lambda p, c: alignment("refl", p, c),
    "joint 1:1, PSO": lambda p, c: alignment("joint", p, c, policy="pso", distillation_options=DMD2),
    "joint 1:1, ReFL": lambda p, c: alignment("joint", p, c, policy="refl", distillation_options=DMD2),
}


def pairs_of(bed: DigitBed, student: Denoiser, chain: Chain) -> tuple[Tensor, Tensor, Tensor]:
    """Samples that score better, those that score worse under the same class (PAIRS, 64), and the classes."""
    labels = torch.arange(PAIRS) % bed.network.classes
    a, b = (bed.samples(student, chain, labels, seed) for seed in (901, 902))
    first = (reward(a) > reward(b))[:, None]
    return torch.where(first, a, b), torch.where(first, b, a), labels


def batches_of(liked: Tensor, rejected: Tensor, labels: Tensor, best: bool) -> Callable[[torch.Generator], Batch]:
    """Pairs at random; of the best half of all liked samples of each class alone, if asked for."""
    scores = reward(liked)
    good = torch.cat([(mine := (labels == c).nonzero().flatten())[scores[mine] >= scores[mine].median()]
                      for c in labels.unique()])  # fmt: skip

    def draw(generator: torch.Generator) -> Batch:
        rows = torch.randint(len(good) if best else len(liked), (BATCH,), generator=generator)
        rows = good[rows] if best else rows
        condition = class_condition(labels[rows])
        return Batch(BATCH, (liked.shape[1],), liked[rows], condition, rejected=rejected[rows])

    return draw


def numbers(bed: DigitBed, student: Denoiser, chain: Chain) -> dict[str, float]:
    """All measures of a student."""
    labels = bed.data.test_labels.repeat(2)
    found = bed.samples(student, chain, labels)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).reshape(1, 1, 3, 3)

    def sharp(x: Tensor) -> float:
        return float(nn.functional.conv2d(x.reshape(-1, 1, 8, 8), kernel).square().mean())

    return {"reward": float(reward(found).mean()), **bed.measures(found, labels),
            "sharp": sharp(found) / sharp(bed.data.test)}  # fmt: skip


def passes(engine: Engine, count: int = 2) -> float:
    """Samples through networks in one step, a mean over `count`."""
    seen, names = [0], ("student", "teacher", "critic", "reference")

    def counted(model: Denoiser) -> Denoiser:
        def network(x: Tensor, time: Tensor, **condition: Any) -> Tensor:
            seen[0] += len(x)
            out: Tensor = model.network(x, time, **condition)
            return out

        return dataclasses.replace(model, network=network)

    given = {n: counted(model) for n in names if (model := getattr(engine.networks, n)) is not None}
    copied = dataclasses.replace(engine, networks=dataclasses.replace(engine.networks, **given))
    for step in range(count):
        for _, loss in copied.turns(step, count, torch.Generator().manual_seed(step)):
            loss()
    return seen[0] / count


def tuned(
    name: str, bed: DigitBed, start: nn.Module, chain: Chain, rate: float, seed: int, budget: int, turns: int = 2
) -> dict[str, Any]:
    """Curves of one arm.

    turns: steps after which its updates recur, over which their cost is a mean.
    """
    made = ARMS[name](bed.process, chain)
    pairs = pairs_of(bed, bed.model(start), chain)
    batches = batches_of(*pairs, best=name.startswith("fine"))
    student = copy.deepcopy(start).requires_grad_(True)
    engine = assemble(made, bed.teacher(), bed.start(), lambda m: m, batches, bed.shape, student=student, reward=reward)
    cost = passes(engine, turns)
    steps = max(QUARTERS, int(budget / cost) // QUARTERS * QUARTERS)
    given = {**defaults(made.settings), "learning_rate": rate, "ema": 0.9}
    config = StageConfig(steps=steps, batch=BATCH, seed=seed, device="cpu", **given)
    stage, curve = stage_of(engine, config, lambda folder: None), list[dict[str, float]]()

    def after(step: int) -> None:
        engine.after(step)
        if step % (steps // QUARTERS) == 0 and step < steps:
            curve.append({"updates": step, **numbers(bed, engine.networks.student, chain)})

    fit(dataclasses.replace(stage, after=after), config, None, accelerator_for(config), quiet=True)
    curve.append({"updates": steps, **numbers(bed, engine.networks.student, chain)})
    return {"passes per update": cost, "curve": curve, **curve[-1]}


def student_of(run: Run, bed: DigitBed, seed: int, updates: int) -> tuple[nn.Module, Chain]:
    """The distilled student of a seed."""
    chain = evenly(bed.process, 4)
    made = method("dmd2", bed.process, steps=4, guidance=1.0, adversarial=0.0, floor=0.1, ratio=2)

    def train() -> dict[str, Any]:
        torch.manual_seed(seed)
        engine, _ = distil(bed, made, steps=updates, batch=128, seed=seed)
        return {k: v.tolist() for k, v in engine.modules["student"].state_dict().items()}

    network = bed.start()
    network.load_state_dict({k: torch.tensor(v) for k, v in run.unit(f"student-{seed}", train).items()})
    return network.eval().requires_grad_(False), chain


def chosen(rows: dict[str, dict[str, Any]], untouched: dict[str, float]) -> str:
    """The rate of the tuning seed."""
    kept = {rate: row for rate, row in rows.items() if row["frechet"] < 2 * untouched["frechet"]}
    if not kept:
        return min(rows, key=lambda rate: rows[rate]["frechet"])
    return max(kept, key=lambda rate: kept[rate]["reward"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--budget", type=int, default=80_000, help="samples through networks of an arm")
    parser.add_argument("--updates", type=int, default=400, help="of the distillation of the student")
    parser.add_argument("--teacher-steps", type=int, default=2500)
    parser.add_argument("--folder", type=Path, default=Path("runs/align"))
    parser.add_argument("--output", type=Path, default=Path("results/align.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    about = {"budget": given.budget, "updates": given.updates, "teacher": given.teacher_steps, "rates": list(RATES)}
    with Run(given.folder, about, quiet=True) as run:
        bed = train_digits(given.teacher_steps)
        students = {s: student_of(run, bed, s, given.updates) for s in (TUNING_SEED, *given.seeds)}
        untouched = {
            s: run.unit(f"untouched-{s}", lambda s=s: numbers(bed, bed.model(students[s][0]), students[s][1]))
            for s in students
        }
        arms: dict[str, Any] = {}
        for name in ARMS:
            key = name.replace(" ", "-").replace(":", "-").replace(",", "")

            def of(seed: int, rate: float, name: str = name, key: str = key) -> dict[str, Any]:
                start, chain = students[seed]
                found: dict[str, Any] = run.unit(
                    f"{key}-{seed}-{rate:g}", lambda: tuned(name, bed, start, chain, rate, seed, given.budget)
                )
                return found

            tuning = {str(rate): of(TUNING_SEED, rate) for rate in RATES}
            best = chosen(tuning, untouched[TUNING_SEED])
            arms[name] = {"rate": float(best), "tuning": tuning,
                          "seeds": {str(s): of(s, float(best)) for s in given.seeds}}  # fmt: skip
        write_json(given.output, {"settings": about, "seeds": given.seeds, "environment": environment(),
                                  "untouched": {str(s): untouched[s] for s in given.seeds}, "arms": arms})  # fmt: skip


if __name__ == "__main__":
    main()
