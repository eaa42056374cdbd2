"""Each way of going wrong is told by its own sentence, and a sound training by none."""

import pytest

from fewstep.distillation.health import LEAST, advice


def history(count=20, **ends):
    """Numbers that jump from one value to another in the middle."""
    return [
        {"step": 20.0 * k, **{n.replace("__", "/"): (a if 2 * k < count else b) for n, (a, b) in ends.items()}}
        for k in range(count)
    ]


SOUND = {"dm__gap": (0.2, 0.1), "dm__cosine": (0.95, 0.97), "samples__spread": (1.0, 1.1), "student__gradient": (1, 2)}


def test_a_sound_training_is_left_alone():
    assert advice(history(**SOUND)) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"samples__spread": (1.0, 0.1)}, "Collapse"),
        ({"dm__gap": (0.1, 0.5), "dm__cosine": (0.97, 0.6)}, "critic lags"),
        ({"dm__gap": (0.1, 0.5), "samples__spread": (1.0, 2.5)}, "Too much guidance"),
        ({"adversary__real": (0.1, 8.0), "adversary__fake": (0.0, -8.0)}, "adversary dominates"),
        ({"critic__gradient": (0.1, 90.0)}, "gradient of the critic"),
    ],
)
def test_what_is_wrong_is_named(changes, told):
    said = advice(history(**{**SOUND, **changes}))
    assert len(said) == 1
    assert told in said[0]


def test_a_few_numbers_are_no_trend():
    assert advice(history(LEAST - 1, samples__spread=(1.0, 0.0))) == []


def test_a_larger_gap_alone_is_no_alarm():
    assert advice(history(**{**SOUND, "dm__gap": (0.1, 0.5)})) == []
