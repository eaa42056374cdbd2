"""Names that a shell completes, read from the sources without running them: torch would take seconds at every key.

Where several are written with commas, the last is completed. `tests/cli` compares all with the tables they come from.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from fewstep.plugins import plugin_names

PACKAGE = Path(__file__).parent.parent


def models(incomplete: str) -> list[str]:
    """Shipped pipelines."""
    from fewstep.zoo import SHIPPED

    return beginning(incomplete, [name for name, line in SHIPPED.items() if "Pipeline" in line])


def recipes(incomplete: str) -> list[str]:
    """Shipped recipes."""
    return beginning(incomplete, sorted(file.stem for file in (PACKAGE / "recipes").glob("*.yaml")))


def methods(incomplete: str) -> list[str]:
    """Distillation methods."""
    return beginning(incomplete, [*_decorated("distillation/presets", "preset"), *plugin_names("fewstep.methods")])


def alignments(incomplete: str) -> list[str]:
    """Alignment methods."""
    return beginning(incomplete, [*_decorated("alignment", "preset"), *plugin_names("fewstep.alignments")])


def solvers(incomplete: str) -> list[str]:
    """Solvers."""
    return beginning(incomplete, [*_decorated("solvers", "solver"), *plugin_names("fewstep.solvers")])


def search_methods(incomplete: str) -> list[str]:
    """Methods of schedule searches."""
    return beginning(incomplete, [*_keys("schedules/methods.py", "METHODS"), *plugin_names("fewstep.searches")])


def searchers(incomplete: str) -> list[str]:
    """Searchers of few numbers, as Q-Sched's."""
    return beginning(
        incomplete, [*_keys("schedules/tuning/searchers.py", "SEARCHERS"), *plugin_names("fewstep.searchers")]
    )


def rounding_methods(incomplete: str) -> list[str]:
    """Methods by which weights are rounded."""
    return beginning(incomplete, [*_decorated("quant/methods", "rounding_method"), *plugin_names("fewstep.rounding")])


def stages(incomplete: str) -> list[str]:
    """Stages of `fewstep train`."""
    return beginning(incomplete, _keys("jobs/zoo/run.py", "STAGES"))


def schemes(incomplete: str) -> list[str]:
    """Quantization schemes that are often wanted; others can be written too."""
    return beginning(incomplete, ["w8a8", "w4a8", "w4a8row", "w4a16", "w4a4", "w8a16", "w3a8", "w2a8"])


def design_ways(incomplete: str) -> list[str]:
    """Ways of `fewstep design`."""
    return beginning(incomplete, ["conditioning", "guidance", "smc", "grpo", "evolution", "random"])


def beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    """The names that begin so."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]


def _decorated(folder: str, decorator: str) -> list[str]:
    """Names of the functions in a folder that a decorator enters in a table: its first text, or the function's own."""
    found = []
    for file in sorted((PACKAGE / folder).glob("*.py")):
        for node in (node for node in _tree(file) if isinstance(node, ast.FunctionDef)):
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == decorator:
                    texts = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                    found.append(texts[0] if texts else node.name)
    return sorted(found)


def _keys(file: str, table: str) -> list[str]:
    """Keys of a dictionary, or members of a tuple, that a module assigns to a name."""
    for node in _tree(PACKAGE / file):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == table for target in targets):
                value: ast.expr = node.value
                if isinstance(value, ast.Call):  # Registry(what, group, own)
                    value = next((given for given in value.args if isinstance(given, ast.Dict)), value)
                parts = value.keys if isinstance(value, ast.Dict) else getattr(value, "elts", [])
                return [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return []


def _tree(file: Path) -> Iterator[ast.stmt]:
    return iter(ast.parse(file.read_text(encoding="utf-8")).body)
