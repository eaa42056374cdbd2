"""Rows and sentences of the pages of quantization."""

from __future__ import annotations

from typing import Any

from pages.formats import interval, listed

WIDTHS = ("w8a8", "w4a8", "w3a8", "w2a8")


def plain_and_best(found: dict[str, Any], width: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows rounded to nearest, and of the method nearest to full precision, at a width."""
    mine = [r for r in found["rows"] if r["by"] == "fewstep" and r["rules"] and not r["seed"] and r["scheme"] == width]
    return next(r for r in mine if r["method"] == "rtn"), max(mine, key=lambda r: float(r["psnr"]["mean"]))


def rules(quality: dict[str, Any]) -> str:
    """What the rules for single layers win at 4 bits, model by model."""
    words = []
    for name, found in quality["models"].items():
        same = [r for r in found["rows"] if (r["scheme"], r["method"], r["by"]) == ("w4a8", "rtn", "fewstep")]
        ruled, alike = (next(r for r in same if r["rules"] is on) for on in (True, False))
        words.append(f"{ruled['psnr']['mean'] - alike['psnr']['mean']:.1f} ({name})")
    return listed(words)


def mixed_gain(mixed: dict[str, Any], width: str) -> str:
    """What bits per layer win over this width for all at equal bytes."""
    (block,) = (b for b in mixed["blocks"] if b["uniform"] == width)
    return next(interval(gain, 1) for name, gain in block["gains"].items() if name.startswith("uniform"))


def beside(quality: dict[str, Any], model: str, by: str, scheme: str) -> str:
    """Bytes and fidelity of another library's row."""
    found = quality["models"][model]
    row = next(r for r in found["rows"] if (r["by"], r["scheme"]) == (by, scheme))
    return f"{2 * row['bytes'] / found['full_bytes']:.2f}, {row['psnr']['mean']:.0f} dB"


def tuned_rows(quality: dict[str, Any]) -> str:
    """In how many rows Q-Sched changed the PSNR beyond both intervals."""
    rows = [r for found in quality["models"].values() for r in found["rows"] if "q_sched" in r]
    after = [(r["psnr"], r["q_sched"]["psnr"]) for r in rows]
    beyond = sum(b["low"] > a["high"] or b["high"] < a["low"] for a, b in after)
    return f"{beyond} of {len(rows)}"


def others(quality: dict[str, Any]) -> str:
    """Weights of 8 bits by another library beside ours, model by model."""
    words = []
    for name, found in quality["models"].items():
        theirs = next(r for r in found["rows"] if (r["by"], r["scheme"]) == ("torchao", "int8 weights"))
        ours, _ = plain_and_best(found, "w8a8")
        words.append(
            f"on {name} torchao's 8-bit weights stand at {theirs['psnr']['mean']:.0f} dB, `w8a8` at "
            f"{ours['psnr']['mean']:.0f} with {ours['bytes'] / theirs['bytes']:.2f} of the bytes"
        )
    told = "; ".join(words)
    return f"{told[0].upper()}{told[1:]} (torchao leaves convolutions in float)."


def call(found: dict[str, Any]) -> str:
    """How the pipeline was called."""
    return listed(words.replace("=", " ") for words in found["settings"]["call"])


def slower(latency: dict[str, Any]) -> str:
    """Layers in which W8A8 is slower than bfloat16."""
    rows = [row for row in latency["layers"] if row["ms"]["w8a8"] > row["ms"]["bfloat16"]]
    return listed(f"{row['name']} ({row['kind']})" for row in rows)


def title(row: dict[str, Any]) -> str:
    """A row in words."""
    words = f"{row['scheme']} {row['method']}".strip() if row["by"] == "fewstep" else f"{row['by']} {row['scheme']}"
    return words if row["rules"] else f"{words}, all layers alike"


def spread(rows: list[dict[str, Any]]) -> str:
    """Spread over calibration seeds of the methods that calibrate."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["by"] == "fewstep" and row["rules"] and "psnr" in row:
            found.setdefault(title(row), []).append(row["psnr"]["mean"])
    told = [f"{name} {min(v):.2f} to {max(v):.2f} dB" for name, v in found.items() if len(v) > 1]
    return f"Over calibration seeds: {listed(told)}." if told else ""


def verdicts(found: dict[str, Any]) -> str:
    """What the intervals say of the claims that people make."""
    rows = {title(r): r for r in found["rows"] if not r["seed"] and "psnr" in r}
    lines = []
    naive, ours = rows.get("w8a8tensor-static rtn, all layers alike"), rows.get("w8a8 rtn")
    if naive and ours:
        fails = naive["judge_against_full"]["high"] < 0
        lines.append(
            f"- Naive W8A8 (one static scale per tensor, all layers alike): {interval(naive['psnr'])} dB against "
            f"{interval(ours['psnr'])} dB with a scale per channel and token. By the judge it "
            f"{'loses quality' if fails else 'does not fail here: no loss beyond the interval'}."
        )
    harmless = [t for t in rows if t.startswith("w4a8 ") and rows[t]["judge_against_full"]["high"] >= 0]
    all4 = [t for t in rows if t.startswith("w4a8 ")]
    if all4:
        lines.append(f"- W4A8 without a loss that the judge sees: {listed(harmless)} (of {len(all4)} rows).")
    for width in WIDTHS:
        mine = {t: r for t, r in rows.items() if t.startswith(f"{width} ") and r["rules"]}
        if mine:
            order = sorted(mine, key=lambda t: -mine[t]["psnr"]["mean"])
            best = mine[order[0]]
            close = [t for t in order[1:] if mine[t]["psnr"]["high"] >= best["psnr"]["low"]]
            more = best["bytes"] / min(r["bytes"] for r in mine.values())
            size = f" (with {more:.2f} times the bytes)" if more > 1.05 else ""
            lines.append(f"- Best at {width}: {order[0]}{size}; within its interval: {listed(close)}.")
    gained = [t for t, r in rows.items() if "q_sched" in r and r["q_sched"]["psnr"]["low"] > r["psnr"]["high"]]
    lost = [t for t, r in rows.items() if "q_sched" in r and r["q_sched"]["psnr"]["high"] < r["psnr"]["low"]]
    tried = sum("q_sched" in r for r in rows.values())
    lines.append(
        f"- Q-Sched gains beyond both intervals in {len(gained)} of {tried} rows and loses beyond them in {len(lost)}."
    )
    others = [r for r in found["rows"] if r["by"] != "fewstep" and "int4" in r["scheme"] and "psnr" in r]
    if others:
        least, mine4 = min(r["bytes"] for r in others), rows["w4a8 rtn"]["bytes"]
        why = ": they leave convolutions in float" if least > 1.5 * mine4 else ""
        lines.append(
            f"- At 4 bit the smallest backbone of the other libraries has {least:,} bytes, ours {mine4:,}{why}."
        )
    return "\n".join(lines)
