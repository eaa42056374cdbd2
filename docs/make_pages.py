"""Write the pages and the README blocks that hold numbers, from the files that commands wrote. Never edit them by hand.

python docs/make_pages.py          # results/*.json -> docs/systems/*.md, docs/images/*.svg, README.md
python docs/make_pages.py --check  # fail if a page is not what the results say

A page is a module of docs/pages: `PAGE` (its file under docs/systems), `RESULTS` (names of its results; absent ones
leave the page out) or `results()`, `page(*results) -> str`, and if it likes `images(*results)` (SVG by file name) and
`readme(*results)` (the block of the README between its markers). A module with `pages() -> {file: str}` writes several,
and `readme()` the block that its `BLOCK` names.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from fewstep.files import read_json, write_text

ROOT = Path(__file__).parent.parent
MARKS = "<!-- {name}: written by docs/make_pages.py -->", "<!-- {name} end -->"


def modules() -> list[ModuleType]:
    """Every page, by file name."""
    found = []
    sys.path.insert(0, str(ROOT / "docs" / "pages"))
    for file in sorted((ROOT / "docs" / "pages").glob("*.py")):
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.append(module)
    return [module for module in found if hasattr(module, "PAGE") or hasattr(module, "pages")]


def results_of(module: ModuleType) -> tuple[Any, ...] | None:
    """What a page is made from, or None while a file of it is missing."""
    if hasattr(module, "results"):
        found: tuple[Any, ...] | None = module.results()
        return found
    files = [ROOT / "results" / name for name in module.RESULTS]
    return tuple(read_json(f) for f in files) if all(f.exists() for f in files) else None


def pages() -> dict[Path, str]:
    """Every generated file with what it should hold."""
    found: dict[Path, str] = {}
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    for module in modules():
        if hasattr(module, "pages"):
            found |= {ROOT / "docs" / "systems" / name: made.rstrip() + "\n" for name, made in module.pages().items()}
            text = _between(text, module.BLOCK, module.readme())
            continue
        results = results_of(module)
        if results is None:
            continue
        found[ROOT / "docs" / "systems" / module.PAGE] = module.page(*results).rstrip() + "\n"
        for name, picture in (module.images(*results) if hasattr(module, "images") else {}).items():
            found[ROOT / "docs" / "images" / name] = picture
        if hasattr(module, "readme"):
            text = _between(text, module.PAGE.removesuffix(".md"), module.readme(*results))
    return found | {readme: text}


def _between(text: str, name: str, block: str) -> str:
    """The text with the block of this name replaced."""
    begin, end = (mark.format(name=name) for mark in MARKS)
    before, found, rest = text.partition(begin)
    if not found or end not in rest:
        raise SystemExit(f"README.md has no block {begin} ... {end}")
    return f"{before}{begin}\n{block}\n{end}{rest.partition(end)[2]}"


def main() -> int:
    stale = {f: t for f, t in pages().items() if not f.exists() or f.read_text(encoding="utf-8") != t}
    if "--check" in sys.argv:
        print(
            "\n".join(f"not what the results say: {f.relative_to(ROOT)}" for f in stale) or "pages follow the results"
        )
        return bool(stale)
    for file, text in stale.items():
        write_text(file, text, over="all")
        print(f"wrote {file.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
