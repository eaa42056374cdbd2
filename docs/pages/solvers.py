"""Quality against evaluations of every solver and search, from results/solvers.json."""

from __future__ import annotations

from typing import Any

from fewstep.report.curves import lines

RESULTS, PAGE = ("solvers.json",), "solvers.md"
GROUPS = {"diffusers": "best of diffusers", "fewstep": "best solver", "search": "searched"}


def page(results: dict[str, Any]) -> str:
    """docs/systems/solvers.md, whole."""
    models = results["models"]
    parts = [
        f"""# Solvers and schedule search

Written by `docs/make_pages.py` from `results/solvers.json`. Every solver of `fewstep.solvers`, every deterministic
scheduler of diffusers, and the searches of `fewstep search`, on the same networks, noise and conditions.

**Distance**: root mean square difference from the result of the same network's {_teacher(models)}-evaluation trajectory
from the same noise, over the standard deviation of the results. It measures the sampler alone. **Fréchet**: distance
of features from real data; it also contains the network's own error, so it has a floor (the teacher's). All numbers
are on held-out noise and conditions, means over {_seeds(models)} seeds, ± half of the 95 % interval over seeds. Our
solvers run on the best of four usual grids and diffusers' schedulers on the best of their own spacings, chosen on
calibration items (above 6 evaluations the choice made at 6 is kept, with half of the held-out items); searches saw the
calibration items alone.

{verdicts(results)}
"""
    ]
    for name, model in models.items():
        e = model["environment"]
        parts.append(
            f"""## {name}: {model["about"]}

![distance by evaluations](../images/solvers-{name}.svg)

{best(model)}

### Distance from the teacher, every system

{table(model, "distance", results["evaluations"])}

### Fréchet distance to real data (the teacher, all items: {_shown(model["teacher_quality"])})

Above 6 evaluations half of the items serve, which raises every Fréchet distance: compare within those columns alone.

{table(model, "frechet", results["evaluations"])}

{model["calibration"]} calibration items, {model["held_out"]} held-out items per seed, searches of {model["budget"]}
plans (one search seed). Commit `{e["commit"]}`, {e["device"]}, {e["threads"]} thread(s),
{sum(model["seconds"].values()):.0f} s.
"""
        )
    parts.append(f"Command: `{results['environment']['command']}`")
    return "\n".join(parts)


def images(results: dict[str, Any]) -> dict[str, str]:
    """Best of each group by evaluations, one drawing per model."""
    drawn = {}
    for name, model in results["models"].items():
        curves = {}
        for group, label in GROUPS.items():
            found = [(int(n), e["best"][group]["distance"]) for n, e in model["summary"].items() if group in e["best"]]
            curves[label] = ([n for n, _ in found], [d for _, d in found])
        drawn[f"solvers-{name}.svg"] = lines(
            curves, xlabel="network evaluations", ylabel="distance from the teacher", log_x=True, log_y=True
        )
    return drawn


def readme(results: dict[str, Any]) -> str:
    """What searching wins at six evaluations."""
    rows = ["| model, 6 evaluations | best of diffusers | best solver, no search | searched |", "|---|---|---|---|"]
    for name, model in results["models"].items():
        entry = model["summary"].get("6")
        if entry is None:
            continue
        cells = [f"{entry['best'][g]['distance']:.3f} ({_name(entry['best'][g]['name'])})" for g in GROUPS]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def best(model: dict[str, Any]) -> str:
    """Best of each group, and the paired difference of the search to diffusers."""
    rows = ["| evaluations | best of diffusers | best solver | searched | searched minus diffusers |", "|---" * 5 + "|"]
    for n, entry in model["summary"].items():
        cells = [
            f"{entry['best'][g]['distance']:.4f} ({_name(entry['best'][g]['name'])})" if g in entry["best"] else "–"
            for g in GROUPS
        ]
        change = entry.get("search - diffusers")
        shown = "–" if change is None else f"{change['mean']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f})"
        rows.append(f"| {n} | " + " | ".join([*cells, shown]) + " |")
    note = "The search is the one that was best on its own items; the others are the best in hindsight."
    return "\n".join(rows) + f"\n\n{note} The difference is paired, its interval over items."


def table(model: dict[str, Any], metric: str, evaluations: list[int]) -> str:
    """Systems by evaluations."""
    names = dict.fromkeys(name for n in evaluations for name, r in model["rows"][str(n)].items() if metric in r)
    rows = ["| system | " + " | ".join(map(str, evaluations)) + " |", "|---" * (len(evaluations) + 1) + "|"]
    for name in sorted(names, key=lambda n: (n.startswith("diffusers"), n.startswith("search"), n)):
        cells = [_shown(model["rows"][str(n)].get(name, {}).get(metric)) for n in evaluations]
        rows.append(f"| {_name(name)} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def verdicts(results: dict[str, Any]) -> str:
    """The two targets, in words that follow the numbers."""
    lines = []
    for name, model in results["models"].items():
        entries = {int(n): e for n, e in model["summary"].items()}
        tried = {n: e["search - diffusers"] for n, e in entries.items() if "search - diffusers" in e and 5 <= n <= 10}
        won = [n for n, d in tried.items() if d["high"] < 0]
        ratio = [entries[n]["best"]["diffusers"]["distance"] / entries[n]["best"]["search"]["distance"] for n in tried]
        lines.append(
            f"- **{name}**: at 5 to 10 evaluations the searched plan is nearer to the teacher than the best of "
            f"diffusers, outside the interval, at {_list(won)} of {_list(sorted(tried))} evaluations "
            f"({min(ratio):.1f} to {max(ratio):.1f} times nearer). {_twenty(model)}"
        )
    return "\n".join(lines)


def _twenty(model: dict[str, Any]) -> str:
    """Whether eight evaluations reach what diffusers' best reaches at twenty, by both measures."""
    rows = model["rows"]
    goal = model["summary"]["20"]["best"]["diffusers"]["distance"]
    short = {int(n): e["best"]["search"] for n, e in model["summary"].items() if "search" in e["best"] and int(n) <= 8}
    nearest = min(short, key=lambda n: short[n]["distance"])
    reached = short[nearest]["distance"] <= goal
    theirs = min(r["frechet"]["mean"] for n, r in rows["20"].items() if r["group"] == "diffusers")
    ours = rows["8"][short[8]["name"]][
        "frechet"
    ]  # fewer evaluations had more items: no comparison of Fréchet distances
    met, alike = ("met" if reached else "missed"), ("reaches" if ours["low"] <= theirs else "does not reach")
    return (
        f"Diffusers' best at 20 evaluations is at {goal:.4f}; the searches' best with at most 8 is at "
        f"{short[nearest]['distance']:.4f} ({nearest} evaluations), so the target is {met} by distance. The Fréchet "
        f"distance of diffusers' best at 20 is {theirs:.3f}; the searched plan at 8 ({ours['mean']:.3f}) {alike} it "
        "within its interval."
    )


def _shown(entry: Any) -> str:
    if entry is None:
        return "–"
    digits = 4 if abs(entry["mean"]) < 1 else 2
    return f"{entry['mean']:.{digits}f} ± {(entry['high'] - entry['low']) / 2:.{digits}f}"


def _name(name: str) -> str:
    return name.removeprefix("search: ") if name.startswith("search") else f"`{name}`" if " " not in name else name


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values)) if values else "none"


def _teacher(models: dict[str, Any]) -> int:
    return int(next(iter(models.values()))["teacher"])


def _seeds(models: dict[str, Any]) -> int:
    first = next(iter(models.values()))
    return int(next(iter(next(iter(first["rows"].values())).values()))["seeds"])
