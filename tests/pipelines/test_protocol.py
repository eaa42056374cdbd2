"""`Pipeline` says what fewstep uses of a pipeline: real ones have it all, and every function that takes one says so."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import fewstep
from fewstep.pipelines.protocol import Pipeline
from tests.pipelines.tiny_pipelines import MAKERS, quiet, stable_diffusion

SOURCE = Path(fewstep.__file__).parent
MEMBERS = sorted({*(name for name in vars(Pipeline) if not name.startswith("_")), *Pipeline.__annotations__})


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_real_pipelines_have_every_member(family, tmp_path):
    pipe = quiet(MAKERS[family](tmp_path))
    assert {"components", "scheduler", "register_modules", "save_pretrained"} <= set(MEMBERS)
    missing = [name for name in (*MEMBERS, "__call__", "__getattr__") if not hasattr(pipe, name)]
    assert not missing


def test_what_the_protocol_lets_callers_pass_is_accepted(tmp_path):
    pipe = stable_diffusion(tmp_path)
    for name in MEMBERS:
        promised = vars(Pipeline).get(name)
        if not inspect.isfunction(promised):
            continue
        real = inspect.signature(getattr(pipe, name))
        taken = inspect.signature(promised).parameters.values()
        named = {p.name: 0 for p in taken if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"}
        real.bind(**named)
        if any(p.kind is p.VAR_KEYWORD for p in taken):
            assert any(p.kind is p.VAR_KEYWORD for p in real.parameters.values()), name


def test_no_argument_named_pipe_has_any_type():
    """The whole package: a pipeline that is passed on as Any is checked by nobody."""
    loose = []
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                loose += [f"{file.name}: {node.name}" for a in arguments if a.arg == "pipe" and _type(a) != "Pipeline"]
    assert not loose


def _type(argument: ast.arg) -> str:
    return "" if argument.annotation is None else ast.unparse(argument.annotation).removesuffix(" | None")
