"""The table of docs/pipelines.md, made from what the tests of this folder run.

`python -m tests.pipelines.support_table` writes it anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.pipelines import backbone_of, process_of
from fewstep.pipelines.calls import condition_kind
from fewstep.variants import prunable
from tests import ROOT
from tests.pipelines import newest_pipelines as newest
from tests.pipelines import test_adapters, test_image_to_image
from tests.pipelines import tiny_pipelines as tiny

PAGE = ROOT / "docs" / "pipelines.md"
BEGIN, END = "<!-- table: tests/pipelines/support_table.py -->", "<!-- end of table -->"
HEADER = "| pipeline | draws from | network | process | blocks that can be skipped | starts late | LoRA in the folder |"


def table() -> str:
    """One line for each family whose tiny pipeline the tests run."""
    with tempfile.TemporaryDirectory() as folder:
        lines = [_line(name, tiny.MAKERS[name](Path(folder) / name), tiny.CALLS[name]) for name in tiny.MAKERS]
        lines += [_line(name, make(Path(folder) / name), call) for name, (make, call) in newest.FAMILIES.items()]
    return "\n".join([HEADER, "|---|---|---|---|---|---|---|", *lines])


def _line(name: str, pipe: Any, call: Mapping[str, Any]) -> str:
    process, prediction = process_of(pipe, **call)
    model = backbone_of(pipe)
    late = [title for title, family in test_image_to_image.CASES.items() if family == name]
    cells = [
        f"`{type(pipe).__name__}`" + (f" ({name.upper()})" if name in ("sd", "sd2") else ""),
        {"prompt": "prompts", "class_labels": "class labels", "batch_size": "nothing"}[condition_kind(pipe)],
        f"`{type(model).__name__}`",
        f"{type(process).__name__}, {prediction.kind}",
        "yes" if prunable(model) else "no",
        ", ".join(f"`{title}`" for title in late) or "–",
        "yes" if name in test_adapters.FAMILIES else "–",
    ]
    return f"| {' | '.join(cells)} |"


def written() -> str:
    """The table as the page has it."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
