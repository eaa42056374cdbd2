"""What the benchmark of design on GB1 says in tables and words."""

from __future__ import annotations

from typing import Any

from pages.formats import apart, listed, shown, table


def few(e: dict[str, Any]) -> str:
    """Distance and entropy by model and steps."""
    rows = []
    for name, laws in e["few steps"].items():
        for steps, law in laws.items():
            rows.append(
                [name, steps, shown(law["total_variation"], 3), shown(law["fitness"], 3), shown(law["entropy"], 2)]
            )
    return table(["model", "steps", "total variation", "mean fitness", "entropy, nats"], rows)


def ways(e: dict[str, Any]) -> str:
    """Each way in each number of steps."""
    rows = []
    for way, laws in e["ways"].items():
        for steps, law in laws.items():
            cells = [shown(law[key], 3) for key in ("total_variation", "kl", "fitness", "outside")]
            rows.append([way, steps, *cells])
    return table(["way", "steps", "total variation", "KL", "mean fitness", "outside"], rows)


def said_of_ways(e: dict[str, Any]) -> str:
    """The nearest way in each number of steps, as far as the seeds tell."""
    said = []
    for steps in ("1", "2", "4"):
        laws = {way: laws[steps] for way, laws in e["ways"].items() if steps in laws and way != "untouched"}
        best = min(laws, key=lambda way: laws[way]["total_variation"]["mean"])
        beaten = [w for w in laws if w != best and apart(laws[best]["total_variation"], laws[w]["total_variation"]) < 0]
        said.append(f"in {steps}: {best}, nearer than {listed(beaten)} (paired by seed)")
    return "Nearest by total variation " + "; ".join(said) + "."


def particles(e: dict[str, Any]) -> str:
    """SMC by number of particles."""
    rows = []
    for count, row in e["particles"].items():
        cells = [shown(row[key], 3) for key in ("fitness", "wanted", "total_variation", "of exact draws", "effective")]
        rows.append([count, *cells])
    return table(
        ["particles", "mean fitness", "of the tilt", "total variation", "of as many exact draws", "effective part"],
        rows,
    )


def scales(e: dict[str, Any]) -> str:
    """Conditioning by scale."""
    rows = []
    for scale, row in e["scales"].items():
        cells = [shown(row[key], 3) for key in ("promised", "fitness", "wanted", "total_variation", "outside")]
        rows.append([scale, *cells])
    return table(["scale", "promised", "mean fitness", "wanted", "total variation", "outside"], rows)


def regret(r: dict[str, Any]) -> str:
    """Regret after each round, by way."""
    each = r["settings"]["plate"]
    quarter = each // (each // 4)
    columns = [f"after {k * each}" for k in range(r["settings"]["rounds"] + 1)]
    rows = []
    for way, found in r["search"].items():
        curve = found["regret"]
        rows.append(
            [
                way,
                *(shown(curve[quarter * k], 2) for k in range(len(columns))),
                shown(found["top"], 2),
                shown(found["seconds"], 1),
            ]
        )
    return table(["way", *columns, "mean of the best ten", "seconds"], rows)


def said_of_search(r: dict[str, Any]) -> str:
    """Who has less regret at the end than the two searches without a model."""
    ends = {way: found["regret"][-1] for way, found in r["search"].items()}
    said = []
    for other in ("evolution", "random"):
        less = [way for way in ends if way not in ("evolution", "random") and apart(ends[way], ends[other]) < 0]
        more = [way for way in ends if way not in ("evolution", "random") and apart(ends[way], ends[other]) > 0]
        said.append(f"Less regret than {other}: {listed(less)}; more: {listed(more)}.")
    return " ".join(said) + " Paired by start, outside of the 95 % interval; others are not told apart."


def support(r: dict[str, Any]) -> str:
    """Promises and distances by scale."""
    rows = []
    for scale, row in r["off support"].items():
        cells = [shown(row[key], 2) for key in ("promised", "measured", "off_support")]
        rows.append([scale, *cells, f"{100 * row['warned']['mean']:.0f} %"])
    return table(["scale", "promised", "measured", "distance", "warned"], rows)
