"""The page of post-training quantization, from the quality table, the layer timings and the true-size run."""

from __future__ import annotations

from typing import Any

from formats import command, listed, table

RESULTS = ("quantization.json", "quant-latency.json", "quant-true-size.json")
PAGE = "quantization.md"
WIDTHS = ("w8a8", "w4a8", "w3a8", "w2a8")


def page(quality: dict[str, Any], latency: dict[str, Any], size: dict[str, Any]) -> str:
    """docs/systems/quantization.md, whole; every number and every verdict comes from the results."""
    e = quality["environment"]
    models = "\n\n".join(_model(name, found) for name, found in quality["models"].items())
    return f"""# Post-training quantization: what each bit costs

Written by `docs/make_pages.py` from `results/quantization.json`, `quant-latency.json` and `quant-true-size.json`.
Schemes, methods and storage: `src/fewstep/quant`; bits per layer: [mixdq.md](mixdq.md).

## Quality

PSNR to full precision with equal seeds on held-out conditions, 95 % intervals over pictures; calibration on other
conditions. "Judge": score minus that of full precision on the same items (the emoji judge; for digits, the share that
the classifier recognises). "Bytes": the whole backbone, packed codes and scales included. "Q-Sched": PSNR after two
scalars per step were searched on the calibration items. Rules: first, last and conditioning layers get 8 bits; "alike":
they do not.

{models}

`{command(e)}`, commit `{e["commit"]}`, {e["device"]}.

## Speed on a CPU

{_speed(latency)}

## True sizes

{_sizes(size)}
"""


def readme(quality: dict[str, Any], latency: dict[str, Any], size: dict[str, Any]) -> str:
    """What a newcomer should know: bytes and fidelity at each width, speed, and how long the largest takes."""
    rows = []
    for name, found in quality["models"].items():
        for width in WIDTHS:
            plain = [r for r in found["rows"] if r["by"] == "fewstep" and r["rules"] and not r["seed"]]
            same = [r for r in plain if r["scheme"] == width]
            best = max(same, key=lambda r: r["psnr"]["mean"])
            rtn = next(r for r in same if r["method"] == "rtn")
            share = f"{rtn['bytes'] / (found['full_bytes'] / 2):.2f}"
            rows.append(
                [name, width, share, _interval(rtn["psnr"], 1), f"{best['psnr']['mean']:.1f} ({best['method']})"]
            )
    heads = ["model", "scheme", "bytes, of bfloat16", "PSNR rounded to nearest, dB", "best method, dB"]
    fast = latency["speedup"]
    unet = next(r for r in size["rows"] if r["model"] == "sdxl-unet" and r["scheme"] == "w4a8")
    return f"""{table(heads, rows)}

Against full precision with equal seeds, {quality["environment"]["device"]}. W8A8 on that processor, over Stable
Diffusion's layer shapes: Linear {fast["Linear over float32"]["w8a8"]:.1f} times float32 and
{fast["Linear over bfloat16"]["w8a8"]:.1f} times bfloat16, Conv2d {fast["Conv2d over float32"]["w8a8"]:.1f} and
{fast["Conv2d over bfloat16"]["w8a8"]:.1f} times. SDXL's UNet ({unet["parameters"] / 1e9:.1f} billion weights) is read
and rounded to w4a8 in {unet["seconds"]:.0f} s, to {unet["of_bfloat16"]:.2f} of its bfloat16 bytes."""


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
    return next(_interval(gain, 1) for name, gain in block["gains"].items() if name.startswith("uniform"))


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


def _model(name: str, found: dict[str, Any]) -> str:
    rows, s = found["rows"], found["settings"]
    first = [r for r in rows if not r["seed"]]
    return f"""### {name}

{listed(w.replace("=", " ") for w in s["call"])}; {s["items"]} held-out and {s["calibration_items"]} calibration items;
full precision {found["full_bytes"]:,} bytes in float32.

{table(["system", "bytes", "PSNR, dB", "SSIM", "judge", "Q-Sched, dB", "seconds"], [_row(r) for r in first])}

{_spread(rows)}

{_verdicts(found)}"""


def _title(row: dict[str, Any]) -> str:
    words = f"{row['scheme']} {row['method']}".strip() if row["by"] == "fewstep" else f"{row['by']} {row['scheme']}"
    return words if row["rules"] else f"{words}, all layers alike"


def _row(row: dict[str, Any]) -> list[str]:
    if "refused" in row:
        return [_title(row), f"refused: {row['refused']}", *[""] * 5]
    after = _interval(row["q_sched"]["psnr"]) if "q_sched" in row else ""
    judge = _interval(row["judge_against_full"], 3)
    return [_title(row), f"{row['bytes']:,}", _interval(row["psnr"]), f"{row['ssim']:.3f}", judge, after,
            f"{row['seconds']:.1f}"]  # fmt: skip


def _spread(rows: list[dict[str, Any]]) -> str:
    """Spread over calibration seeds of the methods that calibrate."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["by"] == "fewstep" and row["rules"] and "psnr" in row:
            found.setdefault(_title(row), []).append(row["psnr"]["mean"])
    told = [f"{name} {min(v):.2f} to {max(v):.2f} dB" for name, v in found.items() if len(v) > 1]
    return f"Over calibration seeds: {listed(told)}." if told else ""


def _verdicts(found: dict[str, Any]) -> str:
    """What the intervals say of the claims that people make."""
    rows = {_title(r): r for r in found["rows"] if not r["seed"] and "psnr" in r}
    lines = []
    naive, ours = rows.get("w8a8tensor-static rtn, all layers alike"), rows.get("w8a8 rtn")
    if naive and ours:
        fails = naive["judge_against_full"]["high"] < 0
        lines.append(
            f"- Naive W8A8 (one static scale per tensor, all layers alike): {_interval(naive['psnr'])} dB against "
            f"{_interval(ours['psnr'])} dB with a scale per channel and token. By the judge it "
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


def _speed(latency: dict[str, Any]) -> str:
    e = latency["environment"]
    wanted = ("w8a8", "w8a8 bfloat16", "w8a8 channels last", "w4a8row", "w4a8", "w4a16", "torchao w8a8", "bfloat16")
    kinds = ("Linear", "Conv2d")
    cells = [
        [name, *(_times(latency["speedup"][f"{kind} over {base}"].get(name)) for kind in kinds for base in FLOATS)]
        for name in wanted
    ]
    heads = ["arithmetic", *(f"{kind}, over {base}" for kind in kinds for base in FLOATS)]
    slower = [
        f"{row['name']} ({row['kind']})" for row in latency["layers"] if row["ms"]["w8a8"] > row["ms"]["bfloat16"]
    ]
    unet = [[r["scheme"], f"{r['ms']:.0f}", f"{r['resident_bytes']:,}"] for r in latency["unet"]]
    return f"""Geometric means over the layer shapes of Stable Diffusion 1.5 at 512 x 512: how many times faster than
float32 and bfloat16, best of interleaved rounds in one process. The processor has {listed(latency["flags"])}.

{table(heads, cells)}

- W8A8 is slower than bfloat16 in: {listed(slower)}.
- Below 8 bit a layer trades time for memory: codes are unpacked in every call. `fewstep.quant.native.keep` keeps them
  unpacked (one byte per weight), as fast as W8A8.
- 8-bit layers keep oneDNN's copy of their weight beside the codes: two bytes per weight in memory, one on disk.

One evaluation of a small UNet (8 x 8 latents, batch 16), whose layers are too small to gain:

{table(["scheme", "ms", "bytes in memory"], unet)}

`{command(e)}`, commit `{e["commit"]}`, {e["device"]}, {e["threads"]} threads. Nothing was measured
on a GPU."""


FLOATS = ("float32", "bfloat16")


def _sizes(size: dict[str, Any]) -> str:
    e = size["environment"]
    rows = []
    for r in size["rows"]:
        extra = f"{r['extra_peak_bytes'] / 1e6:.0f} MB" if "extra_peak_bytes" in r else ""
        share = f"{r['extra_over_largest_layer']:.2f}" if "extra_over_largest_layer" in r else ""
        seconds = f"{r['seconds']:.0f}" if "seconds" in r else ""
        rows.append([r["model"], r["scheme"], f"{r['parameters'] / 1e9:.2f}", f"{r['disk_bytes'] / 1e9:.2f}",
                     f"{r['of_bfloat16']:.3f}", seconds, extra, share])  # fmt: skip
    heads = ["network", "scheme", "10^9 weights", "GB", "of bfloat16", "seconds", "extra peak", "of the largest layer"]
    return f"""Random weights in the published configurations, read layer by layer from a folder (`load_quantized`),
rounded to nearest. "Extra peak": memory beyond the finished model, also as a share of the largest layer's float32 copy.
FLUX was only counted.

{table(heads, rows)}

`{command(e)}`, commit `{e["commit"]}`, {e["device"]}, {size["threads"]} thread(s)."""


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _interval(value: dict[str, float], digits: int = 2) -> str:
    return f"{value['mean']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"
