"""What the results of a claim say on the pages: its arms, its answers, their premises."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from formats import listed, made_by, results, table

CANNOT = "cannot be shown here"


def block(name: str) -> str:
    """A claim: how it was asked, its arms, its answers with their premises."""
    found = results(name)
    arms, answers = (_arms, _answers) if asked_again(found) else (_first_arms, _first_answers)
    return f"""### "{found["says"]}"

{found["asks"]} {_setting(found)}

{arms(found)}

{chr(10).join(answers(found))}

{_open(found)}{_curve(found)}{_usable(found)}{_made_by(found)}

"""


def counted(names: Iterable[str]) -> str:
    """How many answers of each kind; a question that both budgets answer alike counts once."""
    said = []
    for found in (results(f"claim-{name}") for name in names):
        apart = {(*_key(a), a["verdict"], "" if asked_again(found) else k) for k, a in enumerate(found["answers"])}
        said += [VERDICTS.get(verdict, verdict) for *_, verdict, _ in apart]
    kinds = [(word.partition(",")[0], said.count(word)) for word in (*VERDICTS.values(), CANNOT)]
    return ", ".join(f"{count} {word}" for word, count in kinds if count)


def asked_again(found: dict[str, Any]) -> bool:
    """Whether the results hold premises, tuning per question, and equal updates beside equal passes."""
    return bool(found["settings"].get("format", 1) > 1)


def _usable(found: dict[str, Any]) -> str:
    """How forgiving each arm is; nothing for results that kept only the best setting."""
    told = [
        f"{name} {arm['usable']} of {len(arm['tried'])}"
        for name, arm in found["arms"].items()
        if arm["updates"] and "usable" in arm
    ]
    share = "half" if asked_again(found) else "a quarter"
    head = f"Settings that came, at {share} of the budget, within twice the best score of any arm:"
    return f"{head} {listed(told)}.\n\n" if told else ""


def _setting(found: dict[str, Any]) -> str:
    s = found["settings"]
    if asked_again(found):
        least = f"{s['budget']:,} sample passes" if s["budget"] else f"{s['updates']:,} updates of the dearest arm"
        return (
            f"Equal passes ({least} and what they cost for the others) and equal updates, batches of {s['batch']}, "
            "cosine decay; rate and momentum chosen per draw at half of that by another seed, the grid widened until "
            f"none lies at its edge; mean and 95 % interval over up to {len(s['seeds'])} seeds."
        )
    return (
        f"{s['budget']:,} sample passes a training, batches of {s['batch']}, {len(s['seeds'])} seeds, mean and 95 %"
        " interval; learning rate and momentum chosen per arm by another seed, at a quarter of the budget, without "
        "decay: to be asked again with premises and enough updates."
    )


def _first_arms(found: dict[str, Any]) -> str:
    shown = [("frechet", 2), ("precision", 2), ("recall", 2), ("right", 3), ("spread", 2)]
    shown += [(name, 3) for name in sorted({a["metric"] for a in found["answers"]} - {name for name, _ in shown})]
    heads, rows = ["arm", "updates", *(metric for metric, _ in shown), "rate, momentum"], []
    for name, arm in found["arms"].items():
        setting = f"{arm['learning_rate']:g}, {arm['momentum']:g}"
        if arm["summary"] is None:
            rows.append([name, arm["updates"], "a seed diverged", *[""] * (len(shown) - 1), setting])
            continue
        for draw, metrics in arm["summary"].items():
            cells = [_interval(metrics[metric], digits) if metric in metrics else "" for metric, digits in shown]
            rows.append([f"{name}, {draw}" if draw else name, arm["updates"], *cells, setting])
    return table(heads, rows)


def _interval(entry: dict[str, Any], digits: int) -> str:
    return f"{_number(entry['mean'], digits)} ± {_number((entry['high'] - entry['low']) / 2, digits)}"


def _number(value: float, digits: int, sign: str = "") -> str:
    """With so many decimals; what has exploded in powers of ten."""
    return f"{value:{sign}.{digits}f}" if abs(value) < 1000 else f"{value:{sign}.1e}"


VERDICTS = {"yes": "yes", "no": "no, the other way round", "open": "not told apart"}


def _first_answers(found: dict[str, Any]) -> Iterator[str]:
    for a in found["answers"]:
        yield f"- {_asked(a)} {VERDICTS[a['verdict']]} ({_difference(a)})."


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


COLUMNS = (("frechet", 2), ("precision", 2), ("recall", 2), ("right", 3), ("spread", 2))


def _arms(found: dict[str, Any]) -> str:
    """A row for every arm, draw and budget; the teacher in the same steps, and real samples."""
    columns = [*COLUMNS]
    columns += [(name, 3) for name in sorted({a["metric"] for a in found["answers"]} - {n for n, _ in columns})]
    rows: list[list[object]] = []
    seen: set[str] = set()
    for name, arm in found["arms"].items():
        for run in sorted(arm["runs"], key=lambda r: -r["updates"]):
            rows += list(_run_rows(name, arm, run, columns))
        for draw, metrics in arm.get("teacher", {}).items():
            cells = [_number(metrics[m], digits) if m in metrics else "" for m, digits in columns]
            label = f"the teacher, {draw}" if draw else f"the teacher, as {name}"
            if str(cells) not in seen:
                seen.add(str(cells))
                rows.append([label, 0, "", *cells, ""])
    return table(["arm", "updates", "seeds", *(metric for metric, _ in columns), "rate, momentum"], rows)


def _run_rows(name: str, arm: Any, run: Any, columns: list[tuple[str, int]]) -> Iterator[list[object]]:
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
            cells = [_interval(entry[m], digits) if m in entry else "" for m, digits in columns]
        yield [label, run["updates"], count, *cells, *[""] * (len(columns) - len(cells)), setting]


def _answers(found: dict[str, Any]) -> Iterator[str]:
    """Each question once, with both budgets, its premises and what the verdict should not rest on."""
    pairs: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for a in found["answers"]:
        pairs.setdefault(_key(a), []).append(a)
    for group in map(_merged, pairs.values()):
        said = "; ".join(f"at equal {a['at']} {_verdict(a)}" for a in group)
        yield f"- {_asked(group[0])} {said[0].upper()}{said[1:]}."
        if any(a["verdict"] in ("no", CANNOT) for a in group):
            yield from (f"  - {_premise(p)}" for p in group[0]["premises"])


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


def _open(found: dict[str, Any]) -> str:
    left = found.get("open", [])
    return f"Not trained yet: {listed(left)}.\n\n" if left else ""


def _curve(found: dict[str, Any]) -> str:
    """Where more updates stop helping."""
    drawn = found.get("curve")
    if not drawn:
        return ""
    points = [f"{p['updates']:,}: {listed(_number(v, 2) for v in p['frechet'])}" for p in drawn["points"]]
    which = f" ({drawn['draw']})" if drawn["draw"] else ""
    head = f"Distance of *{drawn['arm']}*{which} by updates (two seeds)"
    return f"{head}: {'; '.join(points)}.\n\n"


def _made_by(found: dict[str, Any]) -> str:
    """Where the numbers come from; arms may be of several commits."""
    commits = sorted({arm["commit"] for arm in found["arms"].values() if "commit" in arm})
    return made_by(found) + (f" Arms measured at {listed(f'`{c}`' for c in commits)}." if commits else "")
