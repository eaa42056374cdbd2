"""Parts of other packages: found by their names, imported when asked for, and blamed when they are broken."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch

from fewstep.alignment.presets import ALIGNMENTS, alignment
from fewstep.cli import known
from fewstep.distillation.method import method, options_of, presets
from fewstep.errors import FewstepError, PluginError
from fewstep.executor import sample
from fewstep.metrics import FEATURES, load_features
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.quant.methods import method_of
from fewstep.recipes import load
from fewstep.rewards import REWARDS, load_reward
from fewstep.schedules import METHODS, search_method
from fewstep.schedules.tuning import SEARCHERS, Family, Problem, searcher
from fewstep.solvers import FACTS, PARAMETRIC, SOLVERS, grids

FLOW, VELOCITY = RectifiedFlow(), Prediction("velocity")

TINY = """
    import torch
    from fewstep.alignment.presets import ALIGNMENTS
    from fewstep.distillation.parts import Method, evenly, preset
    from fewstep.metrics import FeatureNet
    from fewstep.quant.methods import RoundingMethod
    from fewstep.rewards import RewardFunction
    from fewstep.schedules import SearchResult
    from fewstep.solvers import ddim, solver

    def brightness(argument):
        return RewardFunction("brightness", lambda images, prompts: images.mean((1, 2, 3)) * float(argument or 1))

    def mean_colour(argument):
        return FeatureNet("mean-colour", lambda images: images.mean((2, 3)))

    @solver(order=1, source="a test")
    def tiny_euler(process, prediction, grid):
        return ddim(process, prediction, grid)

    @solver(order=1, source="a test", needs=("slope",))
    def tiny_fitted(process, prediction, grid, slope):
        return ddim(process, prediction, grid)

    @preset("tiny-method")
    def tiny_method(process, *, steps: int = 3):
        "A method of another package."
        return Method({"nothing": lambda *given: (torch.zeros(()), {})}, evenly(process, steps))

    @preset("tiny-alignment", ALIGNMENTS, votes=True)
    def tiny_alignment(process, chain, *, beta: float = 2.0):
        return Method({"nothing": lambda *given: (torch.zeros(()), {})}, chain)

    def tiny_search(task):
        return SearchResult("a plan", 1.0, 1)

    def tiny_searcher(problem, budget, seed):
        problem.score(torch.full((problem.size,), 0.9))

    def tiny_rounding(argument):
        return RoundingMethod(strength=0.25)
"""
GROUPS = {
    "rewards": {"brightness": "tiny:brightness"},
    "features": {"mean-colour": "tiny:mean_colour"},
    "solvers": {"tiny_euler": "tiny:tiny_euler", "tiny_fitted": "tiny:tiny_fitted"},
    "methods": {"tiny-method": "tiny:tiny_method"},
    "alignments": {"tiny-alignment": "tiny:tiny_alignment"},
    "searches": {"tiny-search": "tiny:tiny_search"},
    "searchers": {"tiny-searcher": "tiny:tiny_searcher"},
    "rounding": {"tiny-rounding": "tiny:tiny_rounding"},
}


@pytest.fixture
def tiny(install):
    install("tiny", TINY, **GROUPS)


@pytest.mark.usefixtures("tiny")
def test_nothing_is_imported_before_a_name_is_asked_for():
    assert SOLVERS["ddim"] is not None
    assert load_reward("contrast").name == "contrast"
    assert "tiny" not in sys.modules
    assert known.solvers("tiny") == ["tiny_euler", "tiny_fitted"]  # completion reads names alone
    assert "tiny" not in sys.modules
    assert "tiny_euler" in SOLVERS
    assert "tiny" in sys.modules


@pytest.mark.usefixtures("tiny")
def test_a_reward_and_a_feature_network():
    images = torch.full((2, 3, 8, 8), 0.5)
    assert load_reward("brightness:2").score(images, ["", ""]).tolist() == [1.0, 1.0]
    assert load_features("mean-colour")(images).tolist() == [[0.5] * 3] * 2
    assert "brightness" in REWARDS.kinds()
    assert FEATURES.check("mean-colour") == "mean-colour"


@pytest.mark.usefixtures("tiny")
def test_solvers_have_their_facts_and_their_table():
    plan = SOLVERS["tiny_euler"](FLOW, VELOCITY, grids.uniform(FLOW, 2))
    assert sample(plan, lambda x, t: -x, seeds=[0], shape=(2,)).isfinite().all()
    assert FACTS["tiny_euler"].source == "a test"
    assert "tiny_fitted" in PARAMETRIC
    assert "tiny_fitted" not in SOLVERS
    assert {"tiny_euler", "ddim"} <= set(SOLVERS)
    assert set(FACTS) == {*SOLVERS, *PARAMETRIC}


@pytest.mark.usefixtures("tiny")
def test_methods_searches_searchers_and_rounding():
    assert presets()["tiny-method"] == "A method of another package."
    assert options_of("tiny-method") == {"steps": 3}
    assert len(method("tiny-method", FLOW).steps) == 3
    chain = method("tiny-method", FLOW).steps
    assert alignment("tiny-alignment", FLOW, chain, beta=1.0).steps == chain
    with pytest.raises(FewstepError, match=r"no option 'gamma'.*beta"):
        alignment("tiny-alignment", FLOW, chain, gamma=1.0)
    assert search_method("tiny-search")(None).plan == "a plan"
    assert "tiny-search" in list(METHODS)
    problem = Problem.of(SOLVERS["ddim"](FLOW, VELOCITY, grids.uniform(FLOW, 2)), Family("ramp"), lambda plan: 1.0)
    searcher("tiny-searcher")(problem, 10, 0)
    assert [entry.theta[0] for entry in problem.history] == pytest.approx([1.0, 0.9])
    assert method_of("tiny-rounding").strength == 0.25


@pytest.mark.usefixtures("tiny")
def test_recipes_take_the_names():
    recipe = load("schedule", ["search.method=tiny-search", "search.features=mean-colour", "teacher.solver=tiny_euler"])
    assert recipe.search.method == "tiny-search"
    assert load("distill", ["method=tiny-method", "options.steps=2"]).options == {"steps": 2}
    aligned = load("align", ["method=tiny-alignment", "pairs=votes.jsonl", "options.beta=1"])
    assert aligned.options == {"beta": 1}
    with pytest.raises(FewstepError, match="learns from votes"):
        load("align", ["method=tiny-alignment"]).check()
    assert known.alignments("tiny") == ["tiny-alignment"]


# --- broken packages ---------------------------------------------------------------------------------------------

FAULTS = {
    "does not import": ("import nothing_like_this", "broken:thing", "does not load: ModuleNotFoundError"),
    "raises": ("raise RuntimeError('no licence')", "broken:thing", "does not load: RuntimeError: no licence"),
    "syntax": ("def :", "broken:thing", "does not load: SyntaxError"),
    "has no such object": ("other = 1", "broken:thing", "does not load: AttributeError"),
}
LOOK_UPS = {
    "rewards": (lambda: load_reward("thing"), REWARDS.kinds),
    "features": (lambda: load_features("thing"), FEATURES.kinds),
    "solvers": (lambda: SOLVERS["thing"], lambda: list(SOLVERS)),
    "methods": (lambda: method("thing", FLOW), presets),
    "alignments": (lambda: ALIGNMENTS.find("thing"), lambda: list(ALIGNMENTS)),
    "searches": (lambda: search_method("thing"), lambda: list(METHODS)),
    "searchers": (lambda: searcher("thing"), lambda: list(SEARCHERS)),
}


@pytest.mark.parametrize("group", sorted(LOOK_UPS))
@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_broken_package_is_named_and_the_rest_works(install, group, fault):
    code, place, message = FAULTS[fault]
    look, names = LOOK_UPS[group]
    before = set(names())
    install("broken", code, "0.3", **{group: {"thing": place}})
    with pytest.raises(PluginError, match=rf"'thing' \(fewstep.{group}\) of broken 0.3 {message}") as error:
        look()
    assert "Update or uninstall broken; fewstep works without it." in str(error.value)
    with pytest.warns(UserWarning, match=r"left out: the plug-in 'thing' .* of broken 0.3"):
        assert set(names()) == before


@pytest.mark.parametrize(
    ("group", "code", "message"),
    [
        ("solvers", "def thing(process, prediction, grid): ...", "decorate it with @fewstep.solvers.solver"),
        ("methods", "def thing(process): ...", "decorate it with @fewstep.distillation.method.preset"),
        ("searches", "thing = 3", "is a int, which cannot be called"),
        ("rewards", "def thing(argument): return 3", "makes a int, which is no reward"),
        ("features", "def thing(argument): return lambda x: x", "makes a function, which is no feature network"),
        ("rewards", "def thing(argument): return {}[argument]", "fails with KeyError"),
        ("rewards", "def thing(): ...", "fails with TypeError"),
    ],
)
def test_what_is_no_such_part_is_refused(install, group, code, message):
    install("odd", code, **{group: {"thing": "odd:thing"}})
    with pytest.raises(PluginError, match=f"of odd 1.0 {message}|of odd 1.0 .*{message}"):
        LOOK_UPS[group][0]()


def test_a_plug_in_that_refuses_its_argument_says_so_itself(install):
    code = """
        from fewstep.errors import FewstepError
        def thing(argument):
            raise FewstepError("thing takes no argument", value=argument)
    """
    install("strict", code, rewards={"thing": "strict:thing"})
    with pytest.raises(FewstepError, match="thing takes no argument"):
        load_reward("thing:5")


def test_our_own_names_cannot_be_taken(install):
    code = """
        from fewstep.solvers import solver
        def thing(argument): raise NotImplementedError
        @solver(order=9, source="an impostor")
        def ddim(process, prediction, grid): raise NotImplementedError
    """
    install("impostor", code, rewards={"contrast": "impostor:thing"}, solvers={"ddim": "impostor:ddim"})
    assert load_reward("contrast").name == "contrast"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "ddim" in set(SOLVERS)
    assert FACTS["ddim"].order == 1


def test_two_packages_with_one_name_are_both_named(install):
    for name in ("first", "second"):
        install(name, "def thing(argument): ...", rewards={"thing": f"{name}:thing"})
    with pytest.raises(PluginError, match=r"several packages bring 'thing' .*'first 1.0', 'second 1.0'"):
        load_reward("thing")


def test_an_unknown_name_is_an_error_as_ever():
    with pytest.raises(FewstepError, match="unknown search method .*'s3'"):
        search_method("s4")
    with pytest.raises(KeyError):
        SOLVERS["nothing"]
    assert SOLVERS.get("nothing") is None
