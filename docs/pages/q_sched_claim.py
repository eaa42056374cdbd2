"""The claim of Q-Sched on students distilled with strong guidance, from results/q-sched-claim.json and premise.json."""

from __future__ import annotations

from typing import Any

from pages.formats import interval, listed, percent, results, table

FULL, LOW, TUNED, FULL_TUNED = "full precision", "quantized", "quantized + Q-Sched", "full precision, tuned"
WAYS = ("quantized + least squares", "quantized + PTQD", "SVDQuant", "MixDQ", FULL_TUNED)
MAIN = "frechet:clip-judge"
COLUMNS = {
    MAIN: ("Fréchet (judge) ↓", 3),
    "mmd:clip-judge": ("MMD² (judge) ↓", 4),
    "frechet:random": ("Fréchet (random) ↓", 3),
    "frechet:pixels": ("Fréchet (pixels) ↓", 3),
    "recall:clip-judge": ("recall (judge) ↑", 3),
    "diversity:clip-judge": ("diversity ↑", 3),
    "judge:clip-judge": ("judge ↑", 3),
}
BOX = (0.8, 1.2)
"""In which a search begins."""
Row = dict[str, Any]


def rows() -> list[Row]:
    """Every run: a student and a seed of the search."""
    found: list[Row] = results("q-sched-claim")["rows"]
    return found


def first() -> list[Row]:
    """The runs that also show the other ways: those of the first seed of the search."""
    seed = results("q-sched-claim")["settings"]["search_seeds"][0]
    return [row for row in rows() if row["search seed"] == seed]


def measured() -> str:
    """Which part of the benchmark has been run."""
    seeds = {row["search seed"] for row in rows()}
    told = [f"Seeds of the search, each with other noise on the calibration prompts: {len(seeds)}."]
    planned = results("q-sched-claim")["settings"]["search_seeds"]
    missing = [f"{s}, search seed {n}" for n in planned for s in _students() if (s, n) not in _runs()]
    if missing:
        told.append(f"Not measured yet: {listed(missing)}.")
    bare = [row["student"] for row in first() if "MixDQ" not in row["evaluation"]["systems"]]
    if len(bare) < len(first()):
        told.append(
            "Ways at equal bytes, by what the file takes, with the first seed of the search: SVDQuant pays for its "
            "float branch by one scale per row or fewer bits per weight, whichever keeps more of the network's output; "
            "MixDQ chooses bits per layer."
        )
    if bare:
        told.append(f"SVDQuant and MixDQ at equal bytes are not measured yet on {listed(bare)}.")
    return " ".join(told)


def _students() -> list[str]:
    return list(results("q-sched-claim")["students"])


def _runs() -> set[tuple[str, int]]:
    return {(row["student"], row["search seed"]) for row in rows()}


def standing() -> str:
    """How far every student of the premise table stands from real pictures before any tuning; farthest first."""
    table_rows = [row for row in results("premise")["rows"] if row["steps"] == 4 and MAIN in row["metrics"]]
    found = {row["student"]: row["systems"][FULL][MAIN] for row in table_rows}
    order = sorted(found, key=lambda name: -float(found[name]["mean"]))
    return "; ".join(f"{name} {interval(found[name], 3)}" for name in order)


def made() -> str:
    """How the students were made that do not ship."""
    told = results("q-sched-claim")["students"]
    return " ".join(f"{n}: `{s['command']}`, commit `{s['commit'][:12]}`." for n, s in told.items() if "command" in s)


def verdict() -> str:
    """Whether what was asked for is reached, in words that follow the numbers."""
    told = []
    for student in _students():
        own = [row for row in rows() if row["student"] == student]
        ways = [f"search seed {row['search seed']}: {_reached(row['reached'])}" for row in own]
        won = sum(row["reached"]["reached"] for row in own)
        if not own:
            continue
        said = "reached" if won == len(own) else "not reached" if not won else f"reached in {won} of {len(own)} runs"
        told.append(f"- **{student}: {said}.** {'; '.join(ways)}.")
    return "\n".join([*told, *_others()])


def _reached(found: Row) -> str:
    recall = "recall kept" if found["recall kept"] else "recall lost"
    against = percent(found["tuned - untuned low bits"]["clip-judge"])
    return f"Fréchet (judge) {percent(found['nearer']['clip-judge'])}, {recall}; against untuned low bits {against}"


def _others() -> list[str]:
    """The tuned student in low bits against everything else, and Q-Sched on top of the other ways."""
    told = []
    for way in WAYS:
        pairs = [(row, row["evaluation"]["comparisons"].get(f"{TUNED} - {way}")) for row in rows()]
        told += _won(f"Tuned low bits against {way}", [(r, p[MAIN]) for r, p in pairs if p])
    for way in ("SVDQuant", "MixDQ"):
        pairs = [(row, row["evaluation"]["comparisons"].get(f"{way} + Q-Sched - {way}")) for row in rows()]
        told += _won(f"Q-Sched on top of {way}", [(r, p[MAIN]) for r, p in pairs if p])
    return told


def _won(what: str, changes: list[tuple[Row, Any]]) -> list[str]:
    nearer = [_name(row) for row, change in changes if change["high"] < 0]
    farther = [_name(row) for row, change in changes if change["low"] > 0]
    alike = [_name(row) for row, change in changes if change["low"] <= 0 <= change["high"]]
    said = [(nearer, "nearer"), (farther, "farther"), (alike, "not told apart")]
    told = "; ".join(f"{word} on {listed(names)}" for names, word in said if names)
    return [f"- {what}: {told}."] if told else []


def _name(row: Row) -> str:
    return f"{row['student']} (search seed {row['search seed']})"


def changes() -> str:
    """Tuned low bits minus untuned full precision, run by run."""
    heads = ["student", "search seed", "Fréchet (judge)", "Fréchet (random)", "Fréchet (pixels)", "recall (judge)"]
    heads += ["recall (random)", "judge", "diversity", "tuned FP - tuned low bits, Fréchet (judge)"]
    cells = []
    for row in rows():
        found, change = row["reached"], row["evaluation"]["comparisons"][f"{TUNED} - {FULL}"]
        kept = ("recall:clip-judge", "recall:random", "judge:clip-judge", "diversity:clip-judge")
        cells.append([
            row["student"], row["search seed"],
            *(percent(found["nearer"][net]) for net in ("clip-judge", "random", "pixels")),
            *(interval(change[metric], 3) for metric in kept),
            interval(found["tuned full precision - tuned low bits"]["clip-judge"], 3),
        ])  # fmt: skip
    return table(heads, cells)


def searches() -> str:
    """What the searches found, whether on the edge of the box, and what the run's own test decided."""
    heads = ["student", "search seed", "pipeline", "objective untuned", "tuned", "candidates", "on the edge", "s", "m"]
    cells = []
    for row in rows():
        for name, search in row["search"].items():
            tuned = FULL_TUNED if name == FULL else f"{name} + Q-Sched"
            scales = row["coefficients"][tuned]
            ends = [f"{scales[key][0]:.2f} to {scales[key][-1]:.2f}" for key in ("sample_scale", "output_scale")]
            values = [f"{search[key]:.4f}" for key in ("identity_value", "value")]
            low, high = BOX
            beyond = any(not low < value < high for value in search["theta"])
            edge = "yes" if search["on_boundary"] else "of the first box, which was widened" if beyond else "no"
            cells.append([row["student"], row["search seed"], name, *values, f"{search['spent']:.0f}", edge, *ends])
    return table(heads, cells)


def tests() -> str:
    """The decision that the tool made by itself."""
    told = []
    for row in rows():
        verdict = row["verdict"]
        kept = "the tuned plan was saved" if verdict["tuned"] else "nothing to gain: the untuned plan was kept"
        told.append(f"{_name(row)}: {interval(verdict['gain'], 4)}, {kept}")
    return "; ".join(told)


def systems(row: Row) -> str:
    """Every system of a run."""
    evaluation, null = row["evaluation"], row["evaluation"]["null"]
    heads = ["system", "MB", *(label for label, _ in COLUMNS.values())]
    shown = {**evaluation["systems"], "real against real": null}
    cells = [
        [name, _size(row, name), *(interval(found.get(m), digits) for m, (_, digits) in COLUMNS.items())]
        for name, found in shown.items()
    ]
    return table(heads, cells)


def _size(row: Row, name: str) -> str:
    """Megabytes of the file of a system's network."""
    if name.startswith(FULL):
        return f"{row['quantization']['disk_before'] / 1e6:.2f}"
    sizes, base = row["bytes"], name.removesuffix(" + Q-Sched")
    same = base.startswith(LOW) or base.endswith(f", {LOW}")  # the unguided student has the same network
    known = sizes.get(base) or (sizes[LOW] if same else None)
    return f"{known / 1e6:.2f}" if known else "–"


def visible() -> str:
    """Which feature networks see that the untuned students are not real."""
    told = []
    for row in first():
        seen = row["reached"]["visible"]
        some, others = ([net for net in seen if seen[net] is sees] for sees in (True, False))
        told.append(f"the fault of {row['student']} is seen by {listed(some)} and not by {listed(others)}")
        if not some:
            told[-1] = f"the fault of {row['student']} is too small for each of {listed(others)}"
    return "; ".join(told)
