"""A part is the function that it makes, and still says its name and arguments wherever it goes."""

import copy
import pickle

import pytest
import torch

from fewstep.distillation.method import find_preset, method, presets
from fewstep.distillation.part import Part, part, replaced
from fewstep.distillation.times import fixed_times, uniform_times
from fewstep.errors import FewstepError
from fewstep.process import RectifiedFlow

FLOW = RectifiedFlow()


def drawn(law):
    return law(5, FLOW, torch.Generator().manual_seed(0), None)


def test_a_part_is_known_by_its_name_and_arguments():
    law = uniform_times(0.1, high=0.5)
    assert repr(law) == "uniform_times(low=0.1, high=0.5, shift=1.0)"
    assert law == uniform_times(low=0.1, high=0.5, shift=1.0)
    assert law != uniform_times(0.1, 0.6)
    assert (law.low, law.high) == (0.1, 0.5)
    with pytest.raises(AttributeError):
        law.lowest  # noqa: B018


def test_bad_arguments_are_refused_when_a_part_is_made():
    with pytest.raises(FewstepError, match="rise"):
        uniform_times(0.5, 0.1)
    with pytest.raises(FewstepError, match="rise"):
        replaced(uniform_times(0.1, 0.5), high=0.0)
    with pytest.raises(TypeError, match="lowest"):
        uniform_times(lowest=0.1)


@pytest.mark.parametrize("again", [lambda p: pickle.loads(pickle.dumps(p)), copy.deepcopy, copy.copy])
def test_a_copy_is_the_same_part_and_draws_the_same(again):
    law = fixed_times((0.25, 0.5, 0.75))
    assert again(law) == law
    assert again(law) is not law
    assert torch.equal(drawn(again(law)), drawn(law))


def test_functions_of_a_module_are_named_and_those_made_elsewhere_told_apart():
    assert repr(holding(drawn)) == "holding(value=drawn)"
    assert " at 0x" in repr(holding(lambda: 1))


@part
def holding(value):
    return lambda: value


def test_replaced_changes_what_is_computed():
    law = replaced(uniform_times(0.1, 0.5), low=0.5)
    assert bool((drawn(law) == 0.5).all())


def test_what_the_function_states_can_be_read():
    @part
    def stating(value: float):
        def function():
            return value

        function.needs = {"teacher"}
        return function

    assert stating(2.0).needs == {"teacher"}
    assert stating(2.0)() == 2.0


def test_a_method_is_written_alike_in_every_process():
    """Sets of words are printed in an order that each process draws anew: a resumed run would be refused."""
    assert "needs=['data', 'guidance']" in method("dmd2", FLOW).written()


OWN = [name for name in presets() if find_preset(name).make.__module__.startswith("fewstep.")]


@pytest.mark.parametrize("name", OWN)
def test_every_method_can_be_pickled_and_is_equal_to_one_made_again(name):
    """Processes that train together are handed the method; its parts are no closures that cannot travel."""
    made = method(name, FLOW)
    assert pickle.loads(pickle.dumps(made)) == made == method(name, FLOW)
    assert " at 0x" not in made.written()
    assert all(isinstance(term, Part) for term in made.terms.values())
