"""Write the pages that hold numbers from the files that commands wrote. Never edit them by hand.

python docs/make_pages.py          # results/*.json -> pages of docs/, docs/images/*.svg, the block of the README
python docs/make_pages.py --check  # fail if a page is not what the results say

docs/templates/PAGE.md.j2 makes docs/PAGE.md; docs/templates/blocks/NAME.md.j2 fills the block NAME of README.md. A
template calls `results("q-sched")` for results/q-sched.json, and the functions of docs/pages/*.py by the module's name.
Every entry of docs/papers.yaml makes a page of its own by docs/templates/paper.md.j2.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fewstep.files import write_text

DOCS = Path(__file__).parent
ROOT, TEMPLATES = DOCS.parent, DOCS / "templates"
MARKS = "<!-- {name}: written by docs/make_pages.py -->", "<!-- {name} end -->"


def environment() -> Environment:
    """Templates that know the results and the helpers."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for file in sorted((DOCS / "pages").glob("*.py")):
        made.globals[file.stem] = importlib.import_module(f"pages.{file.stem}")
    formats: Any = made.globals["formats"]
    shared = ("results", "has", "made_by", "command", "ratio", "than", "table", "PAIRED")
    made.globals |= {"papers": formats.words("papers"), **{name: getattr(formats, name) for name in shared}}
    made.filters |= {
        name: getattr(formats, name) for name in ("shown", "interval", "listed", "percent", "means", "numbers", "f")
    }
    return made


def pages() -> dict[Path, str]:
    """Every generated file with what it should hold."""
    made, found = environment(), dict[Path, str]()
    for file in sorted(TEMPLATES.rglob("*.md.j2")):
        name = file.relative_to(TEMPLATES).as_posix()
        if not name.startswith(("_", "blocks/")) and name != "paper.md.j2":
            found[DOCS / name.removesuffix(".j2")] = _tidy(made.get_template(name).render())
    for paper in made.globals["papers"]:
        page = made.get_template("paper.md.j2").render(paper=paper)
        found[DOCS / "systems" / f"{paper['name']}.md"] = _tidy(page)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for file in sorted((TEMPLATES / "blocks").glob("*.md.j2")):
        text = _between(text, file.name.removesuffix(".md.j2"), made.get_template(f"blocks/{file.name}").render())
    for module in made.globals.values():
        drawn = module.images() if hasattr(module, "images") else {}
        found |= {DOCS / "images" / name: picture for name, picture in drawn.items()}
    return found | {ROOT / "README.md": text}


def _tidy(text: str) -> str:
    """Without the empty lines that loops leave."""
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


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
