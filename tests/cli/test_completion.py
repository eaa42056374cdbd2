"""What shells complete: the names that there are, found without torch."""

import os
import subprocess
import sys

import pytest

from fewstep.cli import known
from fewstep.distillation.method import presets
from fewstep.jobs.zoo.run import STAGES
from fewstep.quant import Scheme
from fewstep.quant.methods import METHODS as ROUNDING
from fewstep.recipes import shipped_recipes
from fewstep.schedules import METHODS
from fewstep.schedules.tuning import SEARCHERS
from fewstep.solvers import FACTS
from fewstep.tasks.design import WAYS
from fewstep.zoo import SHIPPED


@pytest.mark.parametrize(
    ("found", "table"),
    [
        (known.methods, presets()),
        (known.solvers, FACTS),
        (known.search_methods, METHODS),
        (known.searchers, SEARCHERS),
        (known.rounding_methods, ROUNDING.kinds()),
        (known.stages, STAGES),
        (known.design_ways, WAYS),
        (known.recipes, shipped_recipes()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_names_are_those_of_the_tables(found, table):
    assert sorted(found("")) == sorted(table)


def test_schemes_are_schemes_and_models_are_pipelines():
    assert [str(Scheme.parse(name)) for name in known.schemes("")] == known.schemes("")
    pipelines = {"emoji-student", "emoji-student-guided", "emoji-teacher", "mnist-dit"}
    assert pipelines == set(known.models("")) <= set(SHIPPED)


def test_the_last_of_several_names_is_completed():
    assert known.methods("dmd2,lc") == ["dmd2,lcm"]
    assert known.methods("nothing") == []


def completed(*words):
    """What bash is told, and which heavy libraries that took."""
    code = (
        "import sys, atexit\n"
        "heavy = lambda: {'torch', 'diffusers', 'transformers', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "atexit.register(lambda: print('heavy:', sorted(heavy())))\n"
        "from fewstep.cli import app; sys.argv = ['fewstep']; app(prog_name='fewstep')"
    )
    asked = {"_FEWSTEP_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    environment = {**os.environ, **asked}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=250, env=environment, check=False
    )
    assert done.stderr == ""
    *names, heavy = done.stdout.split("\n")[:-1]
    assert heavy == "heavy: []"
    return [name for name in names if name]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fewstep", "qua"], {"quantize"}),
        (["fewstep", "insp"], set()),
        (["fewstep", "quantize", "emoji-s"], {"emoji-student", "emoji-student-guided"}),
        (["fewstep", "quantize", "emoji-student", "--scheme", "w4a8r"], {"w4a8row"}),
        (["fewstep", "quantize", "emoji-student", "--parts", "backbone,te"], {"backbone,text"}),
        (["fewstep", "search", "emoji-teacher", "--teacher"], {"--teacher-steps"}),
        (["fewstep", "search", "emoji-teacher", "--method", "g"], {"gits"}),
        (["fewstep", "search", "emoji-teacher", "--solver", "uni"], {"unipc"}),
        (["fewstep", "distill", "dmd"], {"dmd", "dmd2"}),
    ],
)
def test_a_shell_is_told_without_torch(words, expected):
    assert set(completed(*words)) == expected
