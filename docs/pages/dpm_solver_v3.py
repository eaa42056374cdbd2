"""What the numbers say of DPM-Solver-v3."""

from __future__ import annotations

from typing import Any

from pages.formats import PAIRED, listed, shown, than


def verdict_mixture(mixture: dict[str, Any]) -> str:
    """Where fitted forms beat both fixed ones, order by order."""
    errors, steps = mixture["errors"], mixture["steps"]
    words = []
    for order in ("1", "2", "3"):
        parts = []
        for form in ("l alone", "l, s, b"):
            fixed = [min(pair) for pair in zip(errors["data"][order], errors["noise"][order], strict=True)]
            won = [n for n, own, best in zip(steps, errors[form][order], fixed, strict=True) if own < best]
            parts.append(f"{form} at {listed(won)} of {listed(steps)} steps")
        words.append(f"- order {order}: {'; '.join(parts)}")
    return "Better than the better of data and noise form:\n\n" + "\n".join(words)


def verdict_digits(digits: dict[str, Any]) -> str:
    """The best of v3 against the best of the others, both chosen on calibration items; and what s and b do."""
    rows = digits["rows"]
    words = []
    for n in next(iter(rows.values())):
        groups = [{k: r[n] for k, r in rows.items() if k.startswith("v3") is fitted} for fitted in (True, False)]
        names = [min(group, key=lambda k: group[k]["calibration"]) for group in groups]
        ours, theirs = (group[name] for group, name in zip(groups, names, strict=True))
        said = than(ours, theirs, "nearer", "farther")
        words.append(f"- {n} evaluations: {names[0]} {shown(ours)}, {names[1]} {shown(theirs)}: {said}")
    pairs = [(rows[k][n], rows[k.replace("l, s, b", "l alone")][n]) for k in rows if "l, s, b" in k for n in rows[k]]
    hurt, helped = (sum(a["mean"] * sign > b["mean"] * sign for a, b in pairs) for sign in (1, -1))
    return (
        f"The v3 variant that is best on the calibration items against the other solver that is. {PAIRED}\n\n"
        + "\n".join(words)
        + f"\n\ns and b on top of l: a larger distance in {hurt} of {len(pairs)} pairs, a smaller one in {helped}."
    )
