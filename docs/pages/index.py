"""Rows of the pages that list things: the systems, and the results with how they were made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pages.claim_blocks import counted
from pages.formats import DOCS, RESULTS, command, listed, results, words

PAGES = {
    "ageing": "cradle2cane", "editing": "np-edit",
    "convergence": "dpm-solver", "distillation-": "distillation", "gpu-": "quantization", "latents": "svg",
    "one-more-step": "oms", "q-sched": "q-sched", "quant": "quantization", "true-size-job": "quantization",
    "restoration": "resshift",
    "search-": "q-sched", "terrain": "outliers", "usf": "usf-s3", "yonos-": "yonos-sr",
}  # fmt: skip
"""Pages that results with this beginning are on, where the names differ."""


def systems() -> list[dict[str, Any]]:
    """Every system with its state, what held, and its page as a link."""
    return [_system(entry) for entry in words("systems")]


def _system(entry: dict[str, Any]) -> dict[str, Any]:
    page, claims = entry.get("page"), entry.get("claims", [])
    held = entry.get("held", "")
    if claims:
        told = counted(results(f"claim-{name}") for name in claims)
        held = f"Questions put to it on small data: {told}."
    link = entry.get("link") or (f"{page}.md" if page else "")
    state = "works" if page else "in part" if held else "not yet"
    return {**entry, "held": held or "–", "state": state, "link": f"[page]({link})" if link else "–"}


def made() -> Iterator[dict[str, str]]:
    """Every file of results: command, commit, seeds, device, and the page that shows it."""
    for file in sorted(RESULTS.glob("*.json")):
        found = results(file.stem)
        e = found.get("environment", found)
        yield {
            "file": file.name,
            "command": command(e),
            "commit": e["commit"],
            "seeds": _seeds(found.get("evaluation", found)),
            "device": f"{e['device']}, {e['threads']} thread(s)",
            "page": _page(file.stem),
        }


def _seeds(found: Any) -> str:
    """How many, wherever the file says it first."""
    if isinstance(found, dict) and "seeds" in found:
        seeds = found["seeds"]
        return str(seeds if isinstance(seeds, int) else len(seeds))
    below = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    return next((said for part in below if (said := _seeds(part)) != "–"), "–")


def _page(stem: str) -> str:
    if stem.startswith("claim-"):
        name = stem.removeprefix("claim-")
        pages = [p for p in words("papers") if name in p["claims"]]
        return listed(f"[{p['name']}](systems/{p['name']}.md)" for p in pages)
    if (DOCS / "systems" / f"{stem}.md").exists():
        return f"[{stem}](systems/{stem}.md)"
    fitting = [start for start in PAGES if stem.startswith(start)]
    return f"[{PAGES[fitting[0]]}](systems/{PAGES[fitting[0]]}.md)" if fitting else "below"
