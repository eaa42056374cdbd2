import subprocess
import sys
from typing import Literal

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field

from fewstep.errors import FewstepError
from fewstep.recipes import Recipe, RecipePart, kinds, load, register, resolve, shipped_recipes
from fewstep.recipes.loader import locate, parse


class Search(RecipePart):
    seed: int = 0
    evaluations: int = Field(125, ge=1)
    rate: float = 1e-3
    kind: Literal["grid", "tpe"] = "grid"


class Probe(Recipe):
    model: str = "emoji-student"
    steps: int = Field(4, ge=1, le=64)
    search: Search = Search()
    extra: Search | None = None
    several: tuple[Search, ...] = ()


register("probe", f"{__name__}:Probe", f"{__name__}:execute")


def execute(recipe, run):
    return None


BASE = {"kind": "probe"}


def test_defaults_overrides_and_round_trip(tmp_path):
    recipe = resolve(BASE, ["steps=8", "search.rate=1e-4", "search.seed=3", "model=a/b=c", "extra.seed=1"])
    assert isinstance(recipe, Probe)
    assert (recipe.steps, recipe.search.rate, recipe.search.seed, recipe.model) == (8, 1e-4, 3, "a/b=c")
    assert recipe.extra == Search(seed=1)
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(recipe.plain()))
    assert load(file) == recipe  # the resolved copy runs again as it is


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["stesp=3"], ["stesp", "'steps'"]),
        (["search.sead=3"], ["search.sead", "'seed'"]),
        (["extra.sead=3"], ["extra.sead", "'seed'"]),
        (["several=[{evaluation: 3}]"], ["several.0.evaluation", "'evaluations'"]),
        (["steps=0"], ["steps", "greater than or equal to 1", "found: 0"]),
        (["steps=many"], ["steps", "'many'"]),
        (["search.kind=grit"], ["search.kind", "'grit'", "grid"]),
        (["search.rate=.nan"], ["search.rate", "finite"]),
        (["steps.x=1"], ["steps", "integer", "x"]),
        (["model=x", "model.y=1"], ["model is no section", "'x'"]),
        (["steps"], ["key=value", "'steps'"]),
        (["=3"], ["key=value"]),
        (["kind=prob"], ["kind", "'prob'", "'probe'"]),
        (["search=[1"], ["not YAML"]),
    ],
)
def test_mistakes_name_the_key_the_value_and_the_mend(overrides, words):
    with pytest.raises(FewstepError) as caught:
        resolve(BASE, overrides)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_kind_and_an_empty_file_are_explained(tmp_path):
    with pytest.raises(FewstepError, match="kind is missing"):
        resolve({"steps": 4})
    file = tmp_path / "empty.yaml"
    file.write_text("")
    with pytest.raises(FewstepError, match="mapping"):
        load(file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: probe\nsteps: 1\nsteps: 2\n", "steps is given twice"),
        ("kind: &a probe\nmodel: *a\n", "aliases"),
        ("kind: !!python/object:os.system probe\n", "not YAML"),
        ("kind: probe\n1: 2\n", "quotes"),
        ("kind: probe\nsteps: 1:30\n", "steps.*integer.*'1:30'"),
        ("kind: probe\nsteps: 2001-01-01\n", "steps.*integer"),
        ("kind: probe\nmodel: true\n", "model.*string.*quotes"),
        ("kind: probe\n---\nkind: probe\n", "several"),
        ("kind: probe\nextra: " + "[" * 40 + "]" * 40, "deeper"),
    ],
)
def test_yaml_traps(text, words):
    with pytest.raises(FewstepError, match=words):
        resolve(parse(text))


WORDS = ["2024", "010", "1e5", "1.10", "1:30", "0x1F", "1_000", "2001-01-01", "no", "a}"]


@pytest.mark.parametrize("path", [*WORDS, "models/v1 #2", "a: b", "*x", "-"])
def test_a_path_is_read_as_it_is_written(path):
    assert resolve(BASE, [f"model={path}"]).model == path
    assert resolve(BASE, [f"model={path!r}"]).model == path
    assert resolve(BASE, chosen={"model": path}).model == path


@pytest.mark.parametrize("path", WORDS)
def test_a_path_in_a_file_is_read_as_it_is_written(path):
    assert resolve(parse(f"kind: probe\nmodel: {path}\n")).model == path


def test_numbers_are_decimal():
    assert resolve(BASE, ["steps=010", "search.rate=1e-4"]) == resolve({**BASE, "steps": 10, "search": {"rate": 1e-4}})
    assert resolve(parse("kind: probe\nsteps: 010\n")).steps == 10
    assert resolve(BASE, ["model="]).model == ""
    assert resolve(BASE, ["extra=null"]).extra is None


def test_a_large_recipe_is_refused_before_it_is_read(tmp_path):
    file = tmp_path / "long.yaml"
    file.write_text("kind: probe\nprompts:\n" + "- a prompt\n" * 100_000)
    with pytest.raises(FewstepError, match="longer"):
        load(file)


def test_shipped_recipes_are_found_by_name_and_by_the_path_in_the_docs():
    for name, file in shipped_recipes().items():
        assert locate(name) == locate(f"recipes/{name}.yaml") == file
    with pytest.raises(FewstepError, match="no such recipe"):
        locate("no-such-recipe")
    with pytest.raises(FewstepError, match="no such recipe"):
        locate("elsewhere/q-sched.yaml")


def test_unreadable_file(tmp_path):
    file = tmp_path / "binary.yaml"
    file.write_bytes(b"\xff\xfe\x00kind")
    with pytest.raises(FewstepError, match=r"binary\.yaml"):
        load(file)


def outcome(make):
    """A valid recipe or a FewstepError; anything else escapes and fails the test."""
    try:
        recipe = make()
    except FewstepError:
        return
    assert isinstance(recipe, Recipe)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=4) | st.dates()
KEYS = (
    st.sampled_from(["kind", "steps", "search", "extra", "several", "seed", "rate", "model"])
    | st.text()
    | st.integers()
)
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))


@given(TREES, st.booleans())
def test_any_values_give_a_recipe_or_a_recipe_error(tree, with_kind):
    outcome(lambda: resolve({**BASE, **tree} if with_kind and isinstance(tree, dict) else tree))


@given(st.text(), st.booleans())
@example("a: !!timestamp x", True)
@example("a: !!bool x", True)
@example("a: !!float x", True)
@example("? [a, b]\n: 1", True)
@example("[" * 1500, False)
@example("&a [*a]", False)
@example("steps: " + "9" * 5000, True)
def test_any_text_gives_a_recipe_or_a_recipe_error(text, with_kind):
    outcome(lambda: resolve(parse("kind: probe\n" + text if with_kind else text)))


@given(st.lists(st.text(), max_size=3))
@example(["steps=1", "search=*a"])
@example(["..=1"])
def test_any_override_gives_a_recipe_or_a_recipe_error(overrides):
    outcome(lambda: resolve(BASE, overrides))


@given(st.text())
@example("a\x00b")
@example("x" * 5000)
def test_any_name_gives_a_recipe_or_a_recipe_error(name):
    outcome(lambda: load(name))


def test_kinds_are_lazy():
    register("nowhere", "no_such_module:X", "no_such_module:run")
    assert "nowhere" in kinds.known()


def test_recipes_are_read_without_torch():
    """The command line asks them for its options, at each key that a shell completes."""
    code = (
        "import sys; from fewstep.recipes import kinds; [kinds.schema(kind) for kind in kinds.known()];"
        "sys.exit(', '.join({'torch', 'diffusers', 'scipy', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("verb", "kind"), [("search", "schedule"), ("tune", "q-sched"), ("quantize", "quantize")])
def test_a_recipe_is_found_by_the_name_of_its_verb(verb, kind):
    assert load(verb).kind == kind
