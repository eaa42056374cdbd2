"""NP-Edit in miniature: an editor without pairs, its ablations, and what it must be compared with.

    python benchmarks/editing.py --folder runs/editing
    python benchmarks/editing.py --seeds 0 --updates 20 --teacher 50 --folder runs/quick --output runs/quick.json

Scikit-learn's 8x8 digits, plain, inverted or bold. The teacher draws digits of a kind, of any class; the editor makes
another kind of a given digit in four calls. What the digit then looks like is known exactly, and never trained on but
by the arm `supervised pairs`. Judges: one network tells the kind, one whether two pictures show the same digit,
whatever their kind; those that train are trained on digits that neither the teacher nor the judges that measure saw.
Every arm begins at the same identity warm-up and makes as many updates. Where several rates or weights of the judge
are given, an arm takes those that a tuning seed likes best by the harmonic mean of the measuring judges (`score`).
`grpo` asks the judges as often. SDEdit runs the teacher from the source at its best strength.

The premise beside: how well the judge tells right edits from wrong ones, by how noisy the judged picture was.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from edited_digits import ANY, BATCH, KINDS, PREDICTION, PROCESS, World, as_kind, made_world
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from fewstep.alignment.judged import answer_log_odds, judge_reward
from fewstep.alignment.presets import alignment
from fewstep.denoiser import Denoiser
from fewstep.distillation.chain import evenly
from fewstep.distillation.engine import assemble
from fewstep.distillation.method import Method
from fewstep.distillation.rollout import noised_data_rollout
from fewstep.distillation.score.regularisers import data_regression
from fewstep.executor import sample
from fewstep.files import read_tensors, write_json, write_tensors
from fewstep.metrics.intervals import seed_interval
from fewstep.quant.apply import quantize
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.solvers import SOLVERS, grids
from fewstep.tasks.editing import Editor, first_row, without
from fewstep.train.distillation import defaults, stage_of
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.stage import StageConfig

TUNING, STRENGTHS, GROUP = 100, (0.5, 0.75, 1.0), 8
CHAIN = evenly(PROCESS, 4)


def trained(world: World, made: Method, start: nn.Module, rate: float, seed: int, updates: int, clean: str,
            reward: Any = None, size: int = BATCH) -> nn.Module:  # fmt: skip
    """The editor after so many updates."""
    engine = assemble(
        made, world.teacher(), copy.deepcopy(world.network).requires_grad_(True),
        lambda m: m if isinstance(m, Editor) else without(m),
        world.batches(clean, size), (64,), student=copy.deepcopy(start).requires_grad_(True), reward=reward,
    )  # fmt: skip
    given = {**defaults(made.settings), "learning_rate": rate, "ema": 0.99}
    config = StageConfig(steps=updates, batch=size, seed=seed, device="cpu", **given)
    fit(stage_of(engine, config, lambda folder: None), config, None, accelerator_for(config), quiet=True)
    return engine.modules["student"].eval().requires_grad_(False)


def arm(world: World, name: str, start: nn.Module, rate: float, judging: float, seed: int, updates: int) -> nn.Module:
    """The editor of an arm."""
    if name == "identity warm-up alone":
        return start
    if name == "supervised pairs":
        made = Method({"data": data_regression()}, CHAIN, noised_data_rollout(CHAIN))
        return trained(world, made, start, rate, seed, updates, "truth")
    both = judge_reward(world.judge, (True, True))
    if name == "grpo":
        made = alignment("grpo", PROCESS, CHAIN, group=GROUP, kl=0.0)
        return trained(world, made, start, rate, seed, updates, "", both, BATCH // GROUP)
    kind = judge_reward(lambda x, batch: world.judge(x, batch)[:, :1], (True,))
    weights = {"matching alone": {"judging": 0.0}, "judge alone": {"judging": judging, "matching": 0.0}}
    options = {"judging": judging, "ratio": 2, "floor": 0.1, **weights.get(name, {})}
    made = alignment("np_edit", PROCESS, CHAIN, **options)
    return trained(world, made, start, rate, seed, updates, "", kind if name == "no identity question" else both)


LOW = "full, in W4A8"
ARMS = ("identity warm-up alone", "full", "no identity question", "matching alone", "judge alone", "grpo",
        "supervised pairs", LOW)  # fmt: skip


def editing(network: nn.Module) -> Callable[[Tensor, Tensor, torch.Generator], Tensor]:
    """Edits of an editor in its four calls."""
    student = Denoiser(network, PROCESS, PREDICTION)

    def edit(source: Tensor, kinds: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(source.shape, generator=generator)
        return CHAIN.sample(student, noise, {"class_labels": kinds, "source": source}, generator)

    return edit


def sdedit(world: World, steps: int, strength: float) -> Callable[[Tensor, Tensor, torch.Generator], Tensor]:
    """The teacher from the source, at this strength of a plan."""
    plan = SOLVERS["ddim"](PROCESS, PREDICTION, grids.uniform(PROCESS, steps))
    first = first_row(plan, strength)
    assert first is not None
    rest = plan.starting_at(first)

    def edit(source: Tensor, kinds: Tensor, generator: torch.Generator) -> Tensor:
        row, noise = rest.rows[0], torch.randn(source.shape, generator=generator)
        state = float(row.alpha) * source + float(row.sigma) * noise
        network = lambda x, t: world.network(x, t, class_labels=kinds)  # noqa: E731
        return sample(rest, network, seeds=range(len(source)), shape=(64,), state=state)

    return edit


@torch.no_grad()
def premise(world: World) -> list[dict[str, float]]:
    """Area under the curve of the judge on what is likely behind right and wrong edits that were noised to a level."""
    generator, found = torch.Generator().manual_seed(3), list[dict[str, float]]()
    source, kinds, truth = world.edits(world.held, generator)
    wrong = as_kind(world.held, (kinds + 1) % KINDS)
    for level in (0.0, 0.25, 0.5, 0.75, 0.9):
        seen = {}
        for name, x in (("right", truth), ("wrong", wrong)):
            noisy = PROCESS.add_noise(x, torch.randn(x.shape, generator=generator), torch.full((len(x),), level))
            any_kind = {"class_labels": torch.full((len(x),), ANY)}
            clean = noisy if level == 0 else world.teacher()(noisy, level, any_kind)
            seen[name] = answer_log_odds(world.training.logits(clean, kinds, source), (True, True))[:, 0]
        labels = [1] * len(truth) + [0] * len(wrong)
        found.append({"noise": level, "area": float(roc_auc_score(labels, torch.cat(list(seen.values())).numpy()))})
    return found


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and interval over seeds of each number."""
    out = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        one = {"mean": values[0], "low": values[0], "high": values[0]}
        found = one if len(values) < 2 else seed_interval(torch.tensor(values, dtype=torch.float64)).as_dict()
        out[key] = {**found, "values": values}
    return out


def grid_of(name: str, rates: list[float], judging: list[float]) -> list[tuple[float, float]]:
    """Rates and weights of the judge that an arm may choose among."""
    if name == "identity warm-up alone":
        return [(0.0, 0.0)]
    weighed = name in ("full", "no identity question", "judge alone", LOW)
    return list(itertools.product(rates, judging if weighed else (1.0,)))


def tuned_arms(
    run: Run, world: World, seeds: list[int], updates: int, warm_updates: int, rates: list[float], judging: list[float]
) -> dict[str, Any]:
    """Every arm at the setting that its tuning seed likes best, for each seed; at the only one without tuning."""
    warm = Method({"same": data_regression()}, CHAIN, noised_data_rollout(CHAIN))
    starts, arms = dict[int, nn.Module](), dict[str, Any]()
    with torch.random.fork_rng(devices=[]):
        start = Editor(world.network, "first")
    for seed in (TUNING, *seeds) if len(rates) * len(judging) > 1 else seeds:
        network = copy.deepcopy(start)

        def warmed(seed: int = seed) -> dict[str, Tensor]:
            return trained(world, warm, start, 1e-3, seed, warm_updates, "source").state_dict()

        network.load_state_dict(run.unit(f"warm-{seed}", warmed, save=write_state, load=read_tensors))
        starts[seed] = network

    made = dict[Any, nn.Module]()

    def network_of(name: str, setting: tuple[float, float], seed: int) -> nn.Module:
        asked = "full" if name == LOW else name
        if (asked, setting, seed) not in made:
            made[asked, setting, seed] = arm(world, asked, starts[seed], *setting, seed, updates)
        network = copy.deepcopy(made[asked, setting, seed])
        if name == LOW:
            quantize(network, "w4a8")
        return network

    def of(name: str, setting: tuple[float, float], seed: int) -> dict[str, float]:
        key = f"{name}-{setting[0]:g}-{setting[1]:g}-{seed}".replace(" ", "-").replace(",", "")
        found: dict[str, float] = run.unit(key, lambda: world.measures(editing(network_of(name, setting, seed))))
        return found

    for name in ARMS:
        grid, tried = grid_of(name, rates, judging), "full" if name == LOW else name
        tuning = {setting: of(tried, setting, TUNING) for setting in grid} if len(grid) > 1 else dict[Any, Any]()
        best = max(tuning, key=lambda setting: tuning[setting]["score"]) if tuning else grid[0]
        rows = [of(name, best, seed) for seed in seeds]
        arms[name] = {"rate": best[0], "judging": best[1], "calls": 4, **summary(rows)}
    return arms


def free_arms(run: Run, world: World) -> dict[str, Any]:
    """What needs no training: the source itself, and SDEdit at its best strength."""
    arms = {"the source itself": {"calls": 0, **summary([world.measures(lambda source, kinds, g: source)])}}
    for steps in (4, 50):
        made = lambda s, n=steps: world.measures(sdedit(world, n, s))  # noqa: E731
        rows = {s: run.unit(f"sdedit-{steps}-{s:g}", lambda s=s, made=made: made(s)) for s in STRENGTHS}
        best = max(rows, key=lambda s: rows[s]["score"])
        arms[f"SDEdit, {steps} steps"] = {"strength": best, "calls": steps, **summary([rows[best]])}
    return arms


def write_state(state: dict[str, Tensor], path: Path) -> None:
    write_tensors(path, {name: value.contiguous() for name, value in state.items()}, over="all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=800, help="of every arm")
    parser.add_argument("--warm", type=int, default=800, help="updates of the identity warm-up")
    parser.add_argument("--teacher", type=int, default=3000, help="updates of the teacher; half as many of the judges")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3], help="that an arm may choose among")
    parser.add_argument("--judging", type=float, nargs="+", default=[0.03, 0.3], help="weights of the judge, likewise")
    parser.add_argument("--folder", type=Path, default=Path("runs/editing"))
    parser.add_argument("--output", type=Path, default=Path("results/editing.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    about = {"updates": given.updates, "warm": given.warm, "teacher": given.teacher, "batch": BATCH,
             "rates": given.rates, "judging": given.judging, "strengths": list(STRENGTHS),
             "seeds": given.seeds}  # fmt: skip
    with Run(given.folder, about, quiet=True) as run:
        world = made_world(given.teacher)
        area = run.unit("premise", lambda: premise(world))
        arms = free_arms(run, world) | tuned_arms(
            run, world, given.seeds, given.updates, given.warm, given.rates, given.judging
        )
    document = {"settings": about, "premise": area, "arms": arms, "seconds": time.perf_counter() - begin,
                "environment": environment()}  # fmt: skip
    write_json(given.output, document, over="all")


if __name__ == "__main__":
    main()
