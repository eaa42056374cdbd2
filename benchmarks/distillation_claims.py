"""What the papers of distillation claim, asked of 8x8 digits at equal passes and at equal updates.

    python benchmarks/distillation_claims.py              # every arm that is not in results/ yet, one thread
    python benchmarks/distillation_claims.py tdm sim --updates 200 --seeds 0 1 --results runs/quick

A teacher (flow matching, 270,000 weights) is trained once. The arm of a claim whose update costs most makes so many
updates, the others as many as its passes pay for (a sample forward through any network counts one, backward two more),
and once more as many as it. Learning rate (cosine to zero) and momentum are chosen at half of that, for each draw that
a question asks about, by a seed that is not reported; the grid widens until no choice lies at its edge. Quality:
Frechet distance from held-out digits in the features of a classifier that no training saw, precision, recall, share of
right classes, spread within classes. Each answer has its premises: what the method repairs must be there to be seen.

Results are written after each arm, so that a killed run goes on with the next. Claims about shapes run where `--voxels`
gives them (.npz of 32^3 occupancy, see fewstep.testing.voxels), else they are left out.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import pkgutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import claims
import torch
from claims.claim import REAL, Claim, real, score
from claims.protocol import Costs, Protocol, answers, compared, curve, fingerprint

from fewstep.files import read_json, read_tensors, write_json, write_tensors
from fewstep.runs import Run, environment
from fewstep.testing.digits import DigitBed, DigitJudge, DigitNetwork, train_digits
from fewstep.testing.kernel_digits import load_digits
from fewstep.testing.voxels import PREDICTION, load_voxels, shape_measures, train_voxels

WIDTH, FORMAT = 128, 2
FIRST = (
    "mmd_ddm", "mlcm", "sid_few_step", "tdm", "decoupled_dmd", "flash_dmd", "sim", "cmt", "slimflow", "yonos", "msd",
    "instaflow", "accvideo", "mdt",
)  # fmt: skip
"""The order of importance; what is not named comes last."""


def known() -> dict[str, Claim]:
    """Every claim by the name of its module."""
    found = {}
    for module in pkgutil.iter_modules(claims.__path__):
        claim = getattr(importlib.import_module(f"claims.{module.name}"), "CLAIM", None)
        if claim is not None:
            found[module.name] = claim
    return found


def bed_of(folder: Path, steps: int, voxels: Sequence[Path] = ()) -> DigitBed:
    """The teacher and the judge of the digits, or of these shapes, trained once."""
    data = load_voxels(voxels) if voxels else load_digits()
    size, classes = data.train.shape[1], int(data.train_labels.max()) + 1

    def save(bed: DigitBed, draft: Path) -> None:
        parts = {"teacher": bed.network, "judge": bed.judge}
        write_tensors(draft, {f"{n}.{k}": v for n, m in parts.items() for k, v in m.state_dict().items()})

    def load(place: Path) -> DigitBed:
        network, judge = DigitNetwork(WIDTH, size=size, classes=classes), DigitJudge(size, classes)
        tensors, parts = read_tensors(place), {"teacher": network, "judge": judge}
        for name, module in parts.items():
            module.load_state_dict({k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"{name}.")})
            module.eval().requires_grad_(False)
        if voxels:
            return DigitBed(data, network, judge, prediction=PREDICTION, further=shape_measures)
        return DigitBed(data, network, judge)

    def compute() -> DigitBed:
        return train_voxels(data, steps, WIDTH) if voxels else train_digits(steps, width=WIDTH)

    with Run(folder / ("voxels" if voxels else "bed"), {"teacher": steps}, quiet=True) as run:
        return run.unit("bed", compute, save=save, load=load, artifact="bed.safetensors")


def asked(name: str, claim: Claim, bed: DigitBed, run: Run, given: argparse.Namespace, curves: bool) -> None:
    """Train every arm whose results are not there yet, and write them down one by one.

    curves: how the first arm goes on with more updates too, which comes after all claims.
    """
    protocol, place = protocol_of(given), given.results / f"claim-{name}.json"
    costs = Costs.of(claim, bed, protocol)
    settings = {**protocol.plain(), "teacher": given.teacher, "format": FORMAT}
    found = read_json(place) if place.exists() else {}
    kept = found if found.get("settings") == settings else {"arms": {}}
    marks = {arm: fingerprint(claim, arm, bed) for arm in claim.all_arms()}
    rows = {arm: row for arm, row in kept["arms"].items() if marks.get(arm) == row["mark"]}
    first, teacher = claim.questions[0].better, references(bed)

    def write(drawn: dict[str, Any] | None = None) -> None:
        """As far as it goes; earlier results stay until a question is answered."""
        usable(rows)
        answered = list(answers(claim, rows))
        if answered and (answered, drawn) != (found.get("answers"), found.get("curve")):
            write_json(place, {
                "paper": claim.paper, "says": claim.says, "asks": claim.asks, "arms": rows, "answers": answered,
                "open": [arm for arm in marks if arm not in rows], "curve": drawn, "settings": settings,
                "references": teacher, "environment": environment(),
                "seconds": sum(row["seconds"] for row in rows.values()),
            })  # fmt: skip

    for arm in [arm for arm in marks if arm not in rows]:
        began = time.perf_counter()
        row = compared(arm, claim, bed, run, protocol, costs, marks[arm])
        rows[arm] = {**row, "mark": marks[arm], "commit": environment()["commit"]}
        rows[arm] |= {"seconds": time.perf_counter() - began}
        print(f"{name}, {arm}: {row['updates']} updates, {rows[arm]['seconds']:.0f} s", flush=True)
        write()
    drawn = kept.get("curve")
    if curves and rows[first]["chosen"] and (drawn is None or drawn["mark"] != marks[first]):
        drawn = {**curve(claim, bed, run, protocol, rows[first], marks[first]), "mark": marks[first]}
    write(drawn)
    for answer in answers(claim, rows) if curves else ():
        print(f"{name}: {told(answer)}", flush=True)


def usable(rows: dict[str, Any], worse: float = 2.0) -> None:
    """Add to every arm the settings tried whose score is at most `worse` times the best score of any arm."""
    scores = {n: [score(t["draws"]) for t in row["tried"]] for n, row in rows.items()}
    best = min((value for values in scores.values() for value in values), default=0.0)
    for name, row in rows.items():
        row["usable"] = sum(value <= worse * best for value in scores[name])


def protocol_of(given: argparse.Namespace) -> Protocol:
    """What was asked for."""
    return Protocol(tuple(given.seeds), given.batch, given.updates, given.budget or 0)


def in_order(names: Sequence[str]) -> list[str]:
    """The claims by importance."""
    return sorted(names, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))


@functools.lru_cache(maxsize=2)  # all claims of a bed have the same
def references(bed: DigitBed) -> dict[str, Any]:
    """Real samples, and the teacher in some Euler steps, with and without guidance."""
    labels, found = bed.asked(), {REAL: real(bed)}
    for guidance, steps in itertools.product((1.0, 1.5, 2.0), (1, 2, 4, 8, 64)):
        states, _ = bed.walk(guidance, labels, torch.Generator().manual_seed(7), steps)
        found[f"guidance {guidance:g}, {steps} steps"] = bed.measures(states[-1], labels)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", help=f"of {', '.join(in_order(list(known())))}; all unless given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--updates", type=int, default=Protocol.updates, help="of the arm whose update costs most")
    parser.add_argument("--budget", type=int, help="sample passes of one training, in place of --updates")
    parser.add_argument("--teacher", type=int, default=6000, help="updates of the teacher")
    parser.add_argument("--voxels", type=Path, nargs="+", default=[], help="shapes, for the claims that need them")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--folder", type=Path, default=Path("runs/distillation-claims"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = given.claims or in_order(list(known()))
    for curves, name in itertools.product((False, True), names):
        if name not in known():
            parser.error(f"no claim {name!r}; there are {', '.join(known())}")
        claim = known()[name]
        if claim.voxels and not given.voxels:
            print(f"{name}: left out, it needs --voxels FILES_OR_FOLDERS (.npz of 32^3 shapes)", flush=True)
            continue
        bed = bed_of(given.folder, given.teacher, given.voxels if claim.voxels else ())
        with Run(given.folder / name, protocol_of(given).plain(), quiet=True) as run:
            asked(name, claim, bed, run, given, curves)


def told(answer: dict[str, Any]) -> str:
    """An answer in a line."""
    d = answer["difference"]
    there = answer["draw"] if answer["than_draw"] is None else answer["than_draw"]
    arms = f"{answer['better']} {answer['draw']} against {answer['than']} {there}, {answer['metric']}"
    return f"{arms}, equal {answer['at']}: {d['mean']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f}): {answer['verdict']}"


if __name__ == "__main__":
    main()
