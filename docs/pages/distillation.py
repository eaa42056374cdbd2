"""Rows and sentences of the page of all distillation methods."""

from __future__ import annotations

from typing import Any

from pages.formats import listed

from fewstep.distillation.method import method, presets
from fewstep.process import RectifiedFlow


def methods() -> list[dict[str, str]]:
    """Every preset with what it needs and which networks are trained beside the student."""
    rows = []
    for name, about in presets().items():
        made = method(name, RectifiedFlow())
        beside = [word for word in ("critic", "adversary") if getattr(made, word) is not None]
        if made.target is not None and not made.target.live:
            beside.append("slow student")
        facts = {"needs": ", ".join(sorted(made.needs)), "beside": ", ".join(beside)}
        rows.append({"name": name, "about": about.rstrip("."), **facts, "two_times": "yes" if made.two_times else ""})
    return rows


def counts(results: dict[str, Any]) -> list[int]:
    """The numbers of steps of a leaderboard."""
    return sorted({row["steps"] for row in results["rows"]})


def ranked(results: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Its rows at so many steps, nearest first, diverged ones last."""
    rows = [row for row in results["rows"] if row["steps"] == count]
    return sorted(rows, key=lambda row: row["distance"]["mean"] if row["distance"] else float("inf"))


def by_frechet(results: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The same where rows hold several metrics."""
    rows = [row for row in results["rows"] if row["steps"] == count]
    return sorted(rows, key=lambda row: row["summary"][""]["frechet"]["mean"] if row["summary"] else float("inf"))


def worse(rows: list[dict[str, Any]], teacher: float) -> str:
    """Who is not better than the teacher beyond the interval."""
    return listed(row["method"] for row in rows if not row["distance"] or row["distance"]["high"] >= teacher)


def tuning(settings: dict[str, Any]) -> str:
    """At which budget rates were chosen."""
    if "tuning" in settings:
        return f"at {settings['tuning']:g} of the budget (cosine decay, a grid that widens at its edges)"
    return "at a quarter of the budget"


def contest(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines of the contest by steps and distance."""
    name = "frechet:classifier-features"
    return sorted(found["summary"], key=lambda line: (line["steps"], line["metrics"][name]["mean"]))


def few(found: dict[str, Any]) -> dict[int, Any]:
    """The teacher in as few steps."""
    return {line["steps"]: line["teacher_few"] for line in found["summary"]}


def left_out(results: dict[str, Any]) -> str:
    """Methods that were not run, and why."""
    return listed(f"{name} ({why})" for name, why in results["left_out"].items())


def options(results: dict[str, Any]) -> str:
    """Options that differ from the presets'."""
    return listed(
        f"`{name}` ({', '.join(f'{k}={v}' for k, v in given.items())})" for name, given in results["options"].items()
    )
