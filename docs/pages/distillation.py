"""The page of the distillation methods: what there is, and all of them on one mixture with its exact teacher."""

from __future__ import annotations

from typing import Any

from formats import command, listed, shown, table, words

from fewstep.distillation.method import method, presets
from fewstep.process import RectifiedFlow

RESULTS = ("distillation-toy.json", "distillation-digits.json", "distillation.json")
PAGE = "distillation.md"


def page(results: dict[str, Any], digits: dict[str, Any], contest: dict[str, Any]) -> str:
    """docs/systems/distillation.md, whole; every number and every verdict comes from the results."""
    e, s = results["environment"], results["settings"]
    counts = sorted({row["steps"] for row in results["rows"]})
    commits = sorted({row.get("commit", e["commit"]) for row in results["rows"]})
    blocks = "\n\n".join(_block(results, count) for count in counts)
    return f"""# Distillation methods side by side

Written by `docs/make_pages.py` from `results/distillation-toy.json`, `results/distillation-digits.json` and
`results/distillation.json`. Parts and presets: `src/fewstep/distillation`. Each paper has a page of its own:
{_papers()}.

    fewstep distill                      # list the methods
    fewstep distill dmd2 --model PATH_OR_ID --steps 4 --guidance 3
    fewstep bench distill                # methods on one teacher, equal budgets of network passes

## What there is

A method is a page of data: terms of the student's loss, a roll-out, a critic, an adversary, a slow student, and the
steps that the student is run with. "needs": real data (the teacher's own samples serve too), stored trajectories, or a
negative condition by default; "two times": the network is also told where its jump ends.

{_methods()}

## Which to take

The nearest to the held-out digits below, by what there is to learn from, and those that its interval does not tell
apart; "passes": per sample and update, which is what a small budget buys. No guidance. With guidance, and for critics
that are told their call, see [few-step SiD](sid-few-step.md) and [decoupled DMD](decoupled-dmd.md). Claims that were
asked with premises and enough updates are on each paper's page; older ones say so.

{_advice(digits)}

## One mixture, equal budgets

Eight Gaussians on a circle with the exact teacher, a rectified flow; a student of 20,000 weights that begins as a
regression of the teacher. Each training may spend {s["budget"]:,} sample passes (forward through any network 1,
backward 2 more) at batches of {s["batch"]}; learning rate ({listed(s["rates"])}) and momentum
({listed(s["momenta"])}) are chosen per line by a seed that is not shown, at half the budget. Energy
distance from fresh data times 1000: mean over {len(s["seeds"])} seeds of training, 95 % interval of that mean;
data against data: {results["references"]["data"]["distance"]:.1f}. "Rarest": the least populated mode's share of an
eighth, over all seeds (0: a mode was lost). Making the stored trajectories costs {results["store_passes"]:,} passes
more, once.

{blocks}

## 8x8 digits, a trained teacher

{_digits(digits)}

## MNIST, a pipeline of diffusers

{_contest(contest)}

## How far this carries

- In the plane a critic or an adversary has almost nothing to learn and regression has no texture to blur: the order of
  methods on images may be another. What it does show: that each method's parts are right, and what it costs.
- Options that the papers set for images were changed for points: {_options(results)}.
- Left out: {listed(f"{name} ({why})" for name, why in results["left_out"].items())}.

`{command(e)}`, commit {listed(f"`{c}`" for c in commits)},
{e["device"]}, {e["threads"]} thread(s).
"""


def readme(results: dict[str, Any], digits: dict[str, Any], contest: dict[str, Any]) -> str:
    """The best of each number of steps on the digits."""
    lines = []
    for count in sorted({row["steps"] for row in digits["rows"]}):
        rows = [row for row in digits["rows"] if row["steps"] == count]
        good = sorted(
            ((row["summary"][""]["frechet"], row["method"]) for row in rows if row["summary"]),
            key=lambda pair: float(pair[0]["mean"]),
        )
        teacher = digits["references"][f"guidance 1, {count} steps"]["frechet"]
        best = [f"`{name}` {entry['mean']:.2f}" for entry, name in good[:5]]
        below = sum(entry["high"] < teacher for entry, _ in good)
        lines.append([count, f"{teacher:.2f}", ", ".join(best), f"{below} of {len(rows)}"])
    return table(["steps", "teacher", "nearest students", "methods nearer than the teacher"], lines)


def _advice(found: dict[str, Any]) -> str:
    """By number of steps and by what the method needs."""
    kinds = {"conditions alone": set[str](), "real data": {"data"}, "stored trajectories": {"data", "store"}}
    lines = []
    for count in sorted({row["steps"] for row in found["rows"]}):
        teacher = found["references"][f"guidance 1, {count} steps"]["frechet"]
        lines.append([count, f"{teacher:.2f}", *(_nearest(found, count, needs) for needs in kinds.values())])
    return table(["steps", "teacher", *kinds], lines)


def _nearest(found: dict[str, Any], count: int, has: set[str]) -> str:
    """The best of the methods that need no more, with those whose interval reaches its mean."""
    rows = [row for row in found["rows"] if row["steps"] == count and row["summary"]]
    fit = [row for row in rows if method(row["method"], RectifiedFlow()).needs - {"guidance"} <= has]
    fit.sort(key=lambda row: float(row["summary"][""]["frechet"]["mean"]))
    if not fit:
        return ""
    best = fit[0]["summary"][""]["frechet"]
    told = [f"`{fit[0]['method']}` {shown(best, 2)} ({fit[0]['passes_per_update']:.0f} passes)"]
    alike = [row for row in fit[1:] if row["summary"][""]["frechet"]["low"] <= best["high"]]
    return ", ".join([*told, *(f"`{row['method']}`" for row in alike[:3])])


def _block(results: dict[str, Any], count: int) -> str:
    rows = [row for row in results["rows"] if row["steps"] == count]
    references = results["references"]
    teacher, untrained = (references[f"{name}, {count}"]["distance"] for name in ("teacher", "untrained"))
    rows.sort(key=lambda row: row["distance"]["mean"] if row["distance"] else float("inf"))
    cells = []
    for row in rows:
        d = row["distance"]
        shown = f"{d['mean']:.1f} ({d['low']:.1f} to {d['high']:.1f})" if d else "a seed diverged"
        setting = f"{row['learning_rate']:g}, {row['momentum']:g}"
        cost = f"{row['passes_per_update']:.1f}"
        cells.append([row["method"], shown, f"{row['rarest']:.2f}", cost, row["updates"], setting])
    heads = ["method", "distance", "rarest", "passes per sample", "updates", "rate, momentum"]
    worse = [row["method"] for row in rows if not row["distance"] or row["distance"]["high"] >= teacher]
    name = "step" if count == 1 else "steps"
    return f"""### {count} {name}

The exact teacher in as many Euler steps: {teacher:.1f}; the untrained student: {untrained:.1f}.

{table(heads, cells)}

Not better than the teacher beyond the interval: {listed(worse)}."""


def _papers() -> str:
    names = [paper["name"] for paper in words("papers")]
    return ", ".join(f"[{name}]({name}.md)" for name in names)


def _digits(found: dict[str, Any]) -> str:
    e, s = found["environment"], found["settings"]
    blocks = "\n\n".join(_digit_block(found, count) for count in sorted({row["steps"] for row in found["rows"]}))
    commits = sorted({row["commit"] for row in found["rows"]})
    return f"""Ten classes in 64 pixels (scikit-learn's digits, 1,472 to learn from, 325 held out); a teacher of 270,000
weights, students that begin as the teacher. {s["budget"]:,} sample passes a training, batches of {s["batch"]}; learning
rate ({listed(s["rates"])}) and momentum ({listed(s["momenta"])}) chosen per line {_tuning(s)} by a seed
that is not shown. No guidance. Frechet distance from the held-out digits in the features of a classifier that no
generator was trained on: mean over {len(s["seeds"])} seeds with the 95 % interval of that mean; "spread": distance of
two samples of a class over that of two held-out digits. The stored trajectories cost {found["store_passes"]:,} passes
more, once. The teacher in 64 steps: {found["references"]["guidance 1, 64 steps"]["frechet"]:.2f}.

{blocks}

Options that differ from the papers': {_options(found)}.

`{command(e)}`, commit {listed(f"`{c}`" for c in commits)}, {e["device"]}, {e["threads"]} thread(s).
"""


def _tuning(settings: dict[str, Any]) -> str:
    if "tuning" in settings:
        return f"at {settings['tuning']:g} of the budget (cosine decay, a grid that widens at its edges)"
    return "at a quarter of the budget"


def _digit_block(found: dict[str, Any], count: int) -> str:
    rows = [row for row in found["rows"] if row["steps"] == count]
    teacher = found["references"][f"guidance 1, {count} steps"]
    good = sorted((r for r in rows if r["summary"]), key=lambda row: row["summary"][""]["frechet"]["mean"])
    cells = [
        [
            row["method"], shown(m["frechet"], 2), *(f"{m[k]['mean']:.2f}" for k in ("precision", "recall", "spread")),
            f"{row['passes_per_update']:.1f}", row["updates"], f"{row['learning_rate']:g}, {row['momentum']:g}",
        ]
        for row in good
        for m in [row["summary"][""]]
    ]  # fmt: skip
    cells += [[row["method"], "a seed diverged", *[""] * 6] for row in rows if not row["summary"]]
    beside = {"the teacher": teacher, "real samples": found["references"].get("real samples")}
    for label, row in beside.items():
        if row is not None:
            cells.append([label, *(f"{row[k]:.2f}" for k in ("frechet", "precision", "recall", "spread")), "", "", ""])
    heads = ["method", "Frechet", "precision", "recall", "spread", "passes per sample", "updates", "rate, momentum"]
    return f"### {count} {'step' if count == 1 else 'steps'}\n\n{table(heads, cells)}"


def _contest(found: dict[str, Any]) -> str:
    c, e = found["contest"], found["environment"]
    metrics = {
        name: title
        for key, title in (("frechet", "Frechet distance"), ("precision", "precision"), ("recall", "recall"))
        for name in found["summary"][0]["metrics"]
        if name == f"{key}:classifier-features"
    }
    first = next(iter(metrics))
    rows = [
        [
            line["method"], line["steps"], line["updates"],
            *(f"{m['mean']:.3f} ± {m['deviation']:.3f}" for m in (line["metrics"][name] for name in metrics)),
        ]
        for line in sorted(found["summary"], key=lambda one: (one["steps"], one["metrics"][first]["mean"]))
    ]  # fmt: skip
    few = {line["steps"]: line["teacher_few"] for line in found["summary"]}
    commits = sorted({entry["commit"] for entry in found["entries"] if "commit" in entry})
    rows += [["the teacher", steps, "", *(f"{few[steps][name]:.3f}" for name in metrics)] for steps in few]
    return f"""`{c["model"]}`, a budget of {c["budget"]:,} sample passes, batches of {c["batch"]}, learning rate
{c["learning_rate"]:g} for all, no tuning. Against fresh samples of the teacher in 24 steps, in the features of a digit
classifier that no training saw; mean ± standard deviation over {len(c["seeds"])} seeds of training.
The last lines are the teacher in as few steps.

{table(["method", "steps", "updates", *metrics.values()], rows)}

A minute of training on one thread shows that the engine works on a real pipeline; it does not rank the methods.

`{command(e)}`, commit {listed(f"`{c}`" for c in commits)},
{e["device"]}."""


def _methods() -> str:
    rows = []
    for name, about in presets().items():
        made = method(name, RectifiedFlow())
        beside = [word for word in ("critic", "adversary") if getattr(made, word) is not None]
        if made.target is not None and not made.target.live:
            beside.append("slow student")
        cells = [", ".join(sorted(made.needs)), ", ".join(beside), "yes" if made.two_times else ""]
        rows.append([f"`{name}`", about.rstrip("."), *cells])
    return table(["name", "method", "needs", "networks beside", "two times"], rows)


def _options(results: dict[str, Any]) -> str:
    return listed(
        f"`{name}` ({', '.join(f'{k}={v}' for k, v in given.items())})" for name, given in results["options"].items()
    )
