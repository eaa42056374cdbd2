"""What a preset states of itself agrees with the method that it makes."""

import pytest

from fewstep.distillation.method import find_preset, method, presets, stages_over
from fewstep.distillation.part import made_by
from fewstep.distillation.parts import training_stages
from fewstep.process import RectifiedFlow


@pytest.mark.parametrize("name", presets())
def test_facts_agree_with_the_method(name):
    facts, made = find_preset(name), method(name, RectifiedFlow())
    learns_from_the_teachers_samples = bool(made.needs & {"data", "store"})
    assert facts.guidance == ("guidance" in facts.options or learns_from_the_teachers_samples)
    assert facts.reads_layers == ({"modules", "channels"} <= set(facts.options))
    assert facts.staged == (made.updates > 0 or any(made_by(term, training_stages) for term in made.terms.values()))


@pytest.mark.parametrize("name", [name for name in presets() if method(name, RectifiedFlow()).updates])
def test_a_method_that_counts_its_stages_in_updates_says_how_they_fit_a_training(name):
    for updates in (12, 400):
        assert method(name, RectifiedFlow(), **stages_over(name, updates)).updates <= updates
