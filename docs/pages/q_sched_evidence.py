"""Sections of the Q-Sched page: where there is something to repair, which objective finds it, a guided student."""

from __future__ import annotations

from typing import Any

from pages.formats import has, interval, listed, results, table


def columns(own: str, judge: str) -> dict[str, tuple[str, int]]:
    """Labels and decimals of the shown metrics; own: the features that are not random ones."""
    return {
        f"frechet:{own}": ("Fréchet (judge) ↓", 3),
        f"mmd:{own}": ("RBF-MMD² (judge) ↓", 4),
        "mmd:random": ("RBF-MMD² (random) ↓", 4),
        f"recall:{own}": ("recall (judge) ↑", 3),
        judge: ("judge ↑", 3),
        f"diversity:{own}": ("diversity ↑", 3),
        "second moment": ("second moment", 3),
        "colour": ("colour", 3),
    }


EMOJI, DIGITS = columns("clip-judge", "judge:clip-judge"), columns("classifier-features", "judge:class")


def facts(results: dict[str, Any]) -> str:
    e = results["environment"]
    return f"`{e['command']}`, commit `{e['commit']}`, {e['device']}, {e['threads']} threads."


def premise(results: dict[str, Any]) -> str:
    """Students x steps x bits, before any search."""
    settings, rows = results["settings"], results["rows"]
    digits = [row for row in rows if "frechet:classifier-features" in row["metrics"]]
    emoji = [row for row in rows if row not in digits]
    phased = any(row["student"].endswith("-pcm") for row in emoji)
    pcm = ", nor does `-pcm`, distilled from the teacher by phased consistency with guidance 7.5" if phased else ""
    parts = [
        "## Where there is something to repair",
        f"Untuned pipelines on {settings['prompts']} held-out prompts x {len(settings['seeds'])} seeds, from "
        "`results/premise.json`. Second moment: mean square of the pictures about middle grey; colour: mean "
        "distance of the largest from the smallest channel. `emoji-student-guided` is `emoji-student` distilled on "
        "with guidance 8, as an adapter; both have the same bytes in memory. `-g3` and `-g5` were made as it was with "
        f"guidance 3 and 5 and do not ship{pcm}; a student that follows a plan of its own has its steps alone.",
        _systems(emoji, EMOJI),
    ]
    if digits:
        parts += [
            "Students of `mnist-dit` (classes, no prompts), trained briefly, its guidance 1.5 inside, against held-out "
            "real digits; features of a classifier, which is the judge too: the share that it reads as the class "
            "asked for.",
            _systems(digits, DIGITS),
        ]
    return "\n\n".join([*parts, hurting(rows), facts(results)])


def _systems(rows: list[dict[str, Any]], shown: dict[str, tuple[str, int]]) -> str:
    lines = []
    for row in rows:
        for scheme, found in row["systems"].items():
            cells = [interval(found.get(metric), digits) for metric, (_, digits) in shown.items()]
            lines.append([row["student"], row["steps"], scheme, *cells])
    null = rows[0]["null"]
    lines.append(
        ["real against real", "–", "–", *(interval(null.get(metric), digits) for metric, (_, digits) in shown.items())]
    )
    return table(["student", "steps", "bits", *(label for label, _ in shown.values())], lines)


def hurting(rows: list[dict[str, Any]]) -> str:
    """Where the paired difference to full precision says that rounding harms."""
    found: dict[str, list[str]] = {}
    for row in rows:
        metric = next(name for name in row["metrics"] if name.startswith("frechet:"))
        for scheme, change in row["differences"].items():
            if change.get(metric, {}).get("low", 0) > 0:
                found.setdefault(scheme, []).append(f"{row['student']} ({row['steps']})")
    told = [f"{scheme} on {listed(names)}" for scheme, names in found.items()]
    return (
        "Rounding alone moves a student away from real pictures, beyond the paired interval of the Fréchet distance, "
        f"in: {'; '.join(told) or 'no row'}. Steps in brackets."
    )


def objectives(results: dict[str, Any]) -> str:
    """How each objective ranks candidates, and what it picks."""
    systems = results["systems"]
    heads = [f"{s['system']} | per seed | MMD² of its pick" for s in systems]
    lines = ["| objective | " + " | ".join([*heads, "least"]) + " |", "|---" * (2 + 3 * len(systems)) + "|"]
    for name in systems[0]["families"]["ramp"]["objectives"]:
        cells = []
        for system in systems:
            row = system["families"]["ramp"]["objectives"][name]
            seeds = ", ".join(f"{value:.2f}" for value in row["per seed"])
            cells.append(f"{interval(row['quality'], 2)} | {seeds} | {row['picked']['mmd:clip-judge']:.4f}")
        lines.append(f"| {name} | " + " | ".join([*cells, f"{least(systems, name)['mean']:.2f}"]) + " |")
    for key, label in (("identity", "untuned"), ("best", "best of the candidates")):
        cells = [f"– | – | {system['families']['ramp'][key]['mmd:clip-judge']:.4f}" for system in systems]
        lines.append(f"| {label} | " + " | ".join([*cells, "–"]) + " |")
    s = results["settings"]
    return "\n\n".join([
        "## Which objective finds it",
        f"Spearman correlation of objectives on {s['prompts']} calibration prompts with held-out quality over "
        f"{s['candidates']} scattered candidates of the family `ramp` (95 % interval over candidates; then each of "
        f"the {len(s['seeds'])} calibration seeds alone), from `results/objectives.json`. Quality: mean rank over "
        "MMD² and Fréchet distance to real pictures on the judge's and on random features, "
        f"{s['held_out']} held-out prompts. No objective sees the judge. Last column: the least correlation of the "
        f"{len(systems)} students.",
        "\n".join(lines),
        choice(systems),
        constant(systems),
        facts(results),
    ])  # fmt: skip


def least(systems: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """How well an objective ranks on the student where it ranks worst, with the interval."""
    found = [system["families"]["ramp"]["objectives"][name]["quality"] for system in systems]
    return min(found, key=lambda quality: float(quality["mean"]))


DEFAULT = "mmd to many-step teacher (clip)"
CLAIMED = "emoji-student-guided"
"""Is tuned in the claim too, so that the choice has to hold without it."""


def choice(systems: list[dict[str, Any]]) -> str:
    """What the table says for the default."""
    names = systems[0]["families"]["ramp"]["objectives"]
    order = sorted(names, key=lambda name: -float(least(systems, name)["mean"]))
    others = [system for system in systems if not system["system"].startswith(CLAIMED)]
    alone = sorted(names, key=lambda name: -float(least(others, name)["mean"]))
    ranks = {name: interval(least(systems, name)) for name in names}
    full = ranks["mmd to few-step full precision (clip)"]
    return (
        f"The default of `search.objective` is `teacher`, {DEFAULT}: {ranks[DEFAULT]} on the student where it ranks "
        f"worst, number {order.index(DEFAULT) + 1} of {len(order)} by the last column. Before it: "
        f"{', '.join(f'{name} {ranks[name]}' for name in order[: order.index(DEFAULT)])}. On "
        f"the {len(others)} students that the claim below is not about: {interval(least(others, DEFAULT))}, number "
        f"{alone.index(DEFAULT) + 1}. A "
        "Fréchet distance needs all items at once, while the mean of an MMD² does not depend on their number, so that "
        "a search may look at few first; distances of pixels are near to the random features that half of the quality "
        f"is made of. JAQ as published: {ranks['jaq']}, its quality term {ranks['quality']}; alignment alone, which "
        f"needs no reference, {ranks['alignment']}. The few-step pipeline's own pictures in full precision: {full}, on "
        "a student whose fault full precision has too; without a teacher and without real pictures a search can repair "
        "what quantization did, and no more."
    )


def constant(systems: list[dict[str, Any]]) -> str:
    """The family in which every state keeps its nominal second moment."""
    told = []
    for system in systems:
        family = system["families"].get("constant-moment")
        if family:
            row, best = family["objectives"]["jaq"], family["best"]["mmd:clip-judge"]
            picked, members = row["picked"]["mmd:clip-judge"], len(system["candidates"]["constant-moment"])
            told.append(
                f"{system['system']}: JAQ ranks its {members} members at {row['quality']['mean']:.2f} and picks MMD² "
                f"{picked:.4f}; the best has {best:.4f}"
            )
    return (
        "Candidates in which s and m share the factor that gives each state its nominal second moment (with "
        "v-prediction s alone cannot: the first state hardly counts): " + "; ".join(told) + "."
    )


def verdict(results: dict[str, Any]) -> str:
    """What the search found, and what the test on unseen calibration items said."""
    found = results["verdict"]
    kept = "the tuned plan was saved" if found["tuned"] else "nothing to gain: the untuned plan was kept"
    searches = "; ".join(
        f"{name}: {s['identity_value']:.4f} untuned, {s['value']:.4f} tuned, {s['spent']:.0f} candidates"
        for name, s in results["search"].items()
    )
    gained, against = interval(found["gain"], 4), found.get("against", "the reference of the search")
    return (
        f"Objective `{found['objective']}` (minus MMD² of the calibration pictures' features). {searches}. On "
        f"{found['prompts']} prompts x {len(found['seeds'])} seeds that neither the search nor the evaluation saw, "
        f"against {against}, it gained {gained}: {kept}."
    )


FULL, LOW, TUNED, FULL_TUNED = "full precision", "quantized", "quantized + Q-Sched", "full precision, tuned"
HURT = ("q-sched-w4a4", "q-sched-guided-w4a4")
"""Runs at bits that these students do not carry."""


def hurt() -> list[Any]:
    """Those that were measured."""
    return [results(name) for name in HURT if has(name)]


def rounding(found: dict[str, Any], metric: str = "frechet:clip-judge") -> str:
    """What rounding did, what tuning gave back, and whether that is the rounding's part or the sampler's."""
    evaluation, recipe = found["evaluation"], found["recipe"]
    systems, pairs = evaluation["systems"], evaluation["comparisons"]
    full, low, tuned, both = (float(systems[name][metric]["mean"]) for name in (FULL, LOW, TUNED, FULL_TUNED))
    change, gap = pairs[f"{TUNED} - {LOW}"][metric], pairs[f"{TUNED} - {FULL_TUNED}"][metric]
    nearer = "nearer" if change["high"] < 0 else "farther" if change["low"] > 0 else "not told apart"
    share = f", {100 * (low - tuned) / (low - full):.0f} % of the way back" if low > full else ""
    others = "; ".join(
        f"{way} {systems[f'{LOW} + {way}'][metric]['mean']:.3f}"
        for way in ("least squares", "PTQD")
        if f"{LOW} + {way}" in systems
    )
    fitted = interval(pairs[f"{TUNED} - {LOW} + least squares"][metric], 3)
    return (
        f"**{recipe['model']}, {recipe['scheme']}**: rounding takes the Fréchet distance (judge) from {full:.3f} to "
        f"{low:.3f}; Q-Sched brings it to {tuned:.3f} ({nearer}: {interval(change, 3)}){share}. "
        f"Beside it: {others}; tuned minus least squares {fitted}. The same "
        f"search brings full precision to {both:.3f}, so that low bits are {low - full:.3f} behind full precision "
        f"untuned and {interval(gap, 3)} behind it when both are tuned."
    )
