"""What the results of a claim say on the pages: its arms, its answers, their premises."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pages.formats import commits, listed

CANNOT = "cannot be shown here"
VERDICTS = {"yes": "yes", "no": "no, the other way round", "open": "not told apart"}
COLUMNS = (("frechet", 2), ("precision", 2), ("recall", 2), ("right", 3), ("spread", 2))


def counted(claims: Iterable[dict[str, Any]]) -> str:
    """How many answers of each kind; a question that both budgets answer alike counts once."""
    said = []
    for found in claims:
        apart = {(*_key(a), a["verdict"], "" if asked_again(found) else k) for k, a in enumerate(found["answers"])}
        said += [VERDICTS.get(verdict, verdict) for *_, verdict, _ in apart]
    kinds = [(word.partition(",")[0], said.count(word)) for word in (*VERDICTS.values(), CANNOT)]
    return ", ".join(f"{count} {word}" for word, count in kinds if count)


def asked_again(found: dict[str, Any]) -> bool:
    """Whether the results hold premises, tuning per question, and equal updates beside equal passes."""
    return bool(found["settings"].get("format", 1) > 1)


def columns(found: dict[str, Any]) -> list[tuple[str, int]]:
    """Metrics of its table with their decimals: the usual ones, and those that are asked about."""
    more = {a["metric"] for a in found["answers"]} - {name for name, _ in COLUMNS}
    return [*COLUMNS, *((name, 3) for name in sorted(more))]


def arms(found: dict[str, Any]) -> Iterator[list[object]]:
    """A row for every arm, draw and budget; the teacher in the same steps, and real samples."""
    metrics = columns(found)
    if not asked_again(found):
        for name, arm in found["arms"].items():
            yield from _first_rows(name, arm, metrics)
        return
    seen: set[str] = set()
    for name, arm in found["arms"].items():
        for run in sorted(arm["runs"], key=lambda r: -r["updates"]):
            yield from _run_rows(name, arm, run, metrics)
        for draw, measured in arm.get("teacher", {}).items():
            cells = [_number(measured[m], digits) if m in measured else "" for m, digits in metrics]
            if str(cells) not in seen:
                seen.add(str(cells))
                yield [f"the teacher, {draw}" if draw else f"the teacher, as {name}", 0, "", *cells, ""]


def _first_rows(name: str, arm: Any, metrics: list[tuple[str, int]]) -> Iterator[list[object]]:
    """Those of results without premises."""
    setting = f"{arm['learning_rate']:g}, {arm['momentum']:g}"
    if arm["summary"] is None:
        yield [name, arm["updates"], "a seed diverged", *[""] * (len(metrics) - 1), setting]
        return
    for draw, measured in arm["summary"].items():
        cells = [_interval(measured[m], digits) if m in measured else "" for m, digits in metrics]
        yield [f"{name}, {draw}" if draw else name, arm["updates"], *cells, setting]


def _run_rows(name: str, arm: Any, run: Any, metrics: list[tuple[str, int]]) -> Iterator[list[object]]:
    """The draws that this setting was chosen for."""
    setting = f"{run['learning_rate']:g}, {run['momentum']:g}" if arm["chosen"] else ""
    mine = [c for c in arm["chosen"] if (c["learning_rate"], c["momentum"]) == (run["learning_rate"], run["momentum"])]
    good = [seed for seed in run["seeds"] if seed is not None]
    draws = list(dict.fromkeys(c["draw"] for c in mine)) if mine else list(good[0] if good else [])
    for draw in draws:
        label = f"{name}, {draw}" if draw else name
        count = f"{len(good)} of {len(run['seeds'])}" if len(good) < len(run["seeds"]) else f"{len(good)}"
        cells = ["diverged"] if run["summary"] is None else []
        if run["summary"] is not None:
            entry = run["summary"][draw]
            cells = [_interval(entry[m], digits) if m in entry else "" for m, digits in metrics]
        yield [label, run["updates"], count, *cells, *[""] * (len(metrics) - len(cells)), setting]


def _interval(entry: dict[str, Any], digits: int) -> str:
    return f"{_number(entry['mean'], digits)} ± {_number((entry['high'] - entry['low']) / 2, digits)}"


def _number(value: float, digits: int, sign: str = "") -> str:
    """With so many decimals; what has exploded in powers of ten."""
    return f"{value:{sign}.{digits}f}" if abs(value) < 1000 else f"{value:{sign}.1e}"


def answers(found: dict[str, Any]) -> Iterator[str]:
    """Each question once, with both budgets, its premises and what the verdict should not rest on."""
    if not asked_again(found):
        for a in found["answers"]:
            yield f"- {_asked(a)} {VERDICTS[a['verdict']]} ({_difference(a)})."
        return
    pairs: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for a in found["answers"]:
        pairs.setdefault(_key(a), []).append(a)
    for group in map(_merged, pairs.values()):
        said = "; ".join(f"at equal {a['at']} {_verdict(a)}" for a in group)
        yield f"- {_asked(group[0])} {said[0].upper()}{said[1:]}."
        if any(a["verdict"] in ("no", CANNOT) for a in group):
            yield from (f"  - {_premise(p)}" for p in group[0]["premises"])


def _asked(a: dict[str, Any]) -> str:
    """The question in words."""
    there = a["draw"] if a["than_draw"] is None else a["than_draw"]
    better, than = (
        f"*{arm}*{f' ({draw})' * bool(draw)}" for arm, draw in ((a["better"], a["draw"]), (a["than"], there))
    )
    return f"Is the {a['metric']} of {better} {'higher' if a['higher'] else 'lower'} than that of {than}?"


def _difference(a: dict[str, Any]) -> str:
    """Of the two metrics, with its interval."""
    d = a["difference"]
    digits = 2 if max(abs(d["low"]), abs(d["high"])) >= 0.05 else 4
    mean, low, high = (_number(d[key], digits, "+") for key in ("mean", "low", "high"))
    return f"difference {mean}, {low} to {high}"


def _key(a: dict[str, Any]) -> tuple[Any, ...]:
    """What is asked, whatever the budget."""
    return a["better"], a["than"], a["metric"], a["draw"], a["than_draw"]


def _merged(group: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One answer where equal passes and equal updates are the same trainings."""
    if len(group) == 2 and group[0]["difference"] == group[1]["difference"]:
        return [{**group[0], "at": "passes and updates"}]
    return group


def _verdict(a: dict[str, Any]) -> str:
    but = f"; but {listed(a['but'])}" if a["but"] else ""
    return f"{VERDICTS.get(a['verdict'], a['verdict'])} ({_difference(a)}, {a['difference']['n']} seeds{but})"


def _premise(p: dict[str, Any]) -> str:
    number = f" ({_difference(p)})" if "difference" in p else " (not measured yet)"
    return f"Premise: {p['says']}: {'yes' if p['holds'] else 'no'}{number}."


def usable(found: dict[str, Any]) -> str:
    """How forgiving each arm is; nothing for results that kept only the best setting."""
    arms = {name: arm for name, arm in found["arms"].items() if arm["updates"] and "usable" in arm}
    return listed(f"{name} {arm['usable']} of {len(arm['tried'])}" for name, arm in arms.items()) if arms else ""


def points(drawn: dict[str, Any]) -> str:
    """Where more updates stop helping."""
    each = [f"{p['updates']:,}: {listed(_number(v, 2) for v in p['frechet'])}" for p in drawn["points"]]
    return "; ".join(each)


def measured_at(found: dict[str, Any]) -> str:
    """The commits of the arms, where they are known."""
    arms = [arm for arm in found["arms"].values() if "commit" in arm]
    return f" Arms measured at {commits(arms)}." if arms else ""
