"""The claims of papers: every arm can be built, every question names what there is, arms cost what is said."""

import pytest
import torch
from claims import yonos
from claims.claim import Question, drawn
from claims.msd import PARTS, SMALL, Routed
from distillation_claims import WIDTH, known, usable

from fewstep.distill.beds.digits import CLASSES, DigitBed, DigitJudge, DigitNetwork
from fewstep.distill.method import Method, method
from fewstep.errors import FewstepError
from fewstep.models.digits import load_digits

CLAIMS = known()
METRICS = {"frechet", "precision", "recall", "right", "spread"}
MORE = {"straightness", "error", "coverage", "nearest"}  # of some arms and beds
LOWER = {"frechet", "straightness", "error"}  # is better


@pytest.fixture(scope="module")
def bed():
    """An untrained one: what is asked here is whether things run."""
    torch.manual_seed(0)
    teacher, judge = DigitNetwork(16), DigitJudge()
    torch.nn.init.normal_(teacher.last.weight, std=0.1)
    return DigitBed(load_digits(), teacher.eval().requires_grad_(False), judge.eval().requires_grad_(False))


@pytest.mark.parametrize("name", CLAIMS)
def test_every_arm_is_a_method_and_every_question_names_arms_draws_and_metrics(bed, name):
    claim = CLAIMS[name]
    draws = {}
    for arm_name, arm in claim.arms.items():
        made = arm.make(bed.process, 400)
        assert isinstance(made, Method)
        draws[arm_name] = {""} if arm.draws is None else set(arm.draws(bed.process))
    assert claim.questions
    for question in claim.questions:
        assert question.draw in draws[question.better]
        assert (question.draw if question.than_draw is None else question.than_draw) in draws[question.than]
        assert question.metric in METRICS | MORE
        assert question.higher is (question.metric not in LOWER)


@pytest.mark.parametrize("name", CLAIMS)
def test_an_arm_of_every_claim_trains_and_is_measured(bed, name, monkeypatch):
    monkeypatch.setattr(yonos, "TEACHER", 2)
    arm = next(arm for arm in CLAIMS[name].arms.values() if arm.share)
    updates = max(3, arm.make(bed.process, 3).updates)
    numbers = arm.train(bed, updates, 8, 0, learning_rate=1e-4, momentum=0.5)
    for draw in numbers.values():
        assert METRICS <= set(draw) <= METRICS | MORE
        assert all(torch.tensor(list(draw.values())).isfinite())


@pytest.mark.parametrize(
    ("first", "second", "higher", "verdict"),
    [
        ((1.0, 1.1, 0.9), (2.0, 2.1, 2.0), False, "yes"),
        ((1.0, 1.1, 0.9), (2.0, 2.1, 2.0), True, "no"),
        ((2.0, 2.1, 2.0), (1.0, 1.1, 0.9), False, "no"),
        ((1.0, 3.0, 2.0), (2.0, 2.1, 2.0), False, "open"),
    ],
)
def test_a_verdict_asks_for_more_than_the_spread_of_the_seeds(first, second, higher, verdict):
    arms = {name: [{"": {"x": v}} for v in values] for name, values in (("a", first), ("b", second))}
    answer = Question("a", "b", "x", higher=higher).answer(arms)
    assert answer["verdict"] == verdict
    assert answer["difference"]["mean"] == pytest.approx(sum(first) / 3 - sum(second) / 3)


def test_an_arm_without_a_share_is_the_teacher_in_euler_steps(bed):
    arm = CLAIMS["mmd_ddm"].arms["teacher"]
    found = arm.train(bed, 0, 8, 0, learning_rate=1e-3, momentum=0.0)
    labels = bed.asked()
    states, _ = bed.walk(1.0, labels, torch.Generator().manual_seed(7), 10)
    assert found["10 steps"] == pytest.approx(bed.measures(states[-1], labels), rel=1e-3, abs=2e-3)


def test_students_of_parts_cost_their_number_and_answer_for_their_own_classes(bed):
    claim = CLAIMS["msd"]
    one, four = claim.arms["one"], claim.arms["four"]
    assert four.passes(bed, 16) == pytest.approx(len(PARTS) * one.passes(bed, 16))
    assert sorted(c for part in PARTS for c in part) == list(range(CLASSES))
    assert four.share == len(PARTS) * one.share  # each of the four is updated as often as the one
    students = [DigitNetwork(4) for _ in PARTS]
    for k, student in enumerate(students):
        torch.nn.init.constant_(student.last.bias, float(k))
    labels = torch.arange(CLASSES)
    out = Routed(students, PARTS)(torch.zeros(CLASSES, 64), torch.full((CLASSES,), 500.0), class_labels=labels)
    assert out[:, 0].tolist() == [next(k for k, part in enumerate(PARTS) if c in part) for c in range(CLASSES)]


def test_four_small_students_weigh_at_most_one():
    small, whole = (sum(p.numel() for p in DigitNetwork(w).parameters()) for w in (SMALL, WIDTH))
    assert 0.9 * whole < len(PARTS) * small <= whole


def test_updates_of_the_student_are_equal_where_flash_dmd_says_so(bed):
    arms = CLAIMS["flash_dmd"].arms
    updates = [arms[name].share / arms[name].passes(bed, 32, 32) for name in ("ratio 5", "ratio 1", "ratio 1, pulled")]
    assert updates == pytest.approx([updates[0]] * 3, rel=0.05)


def test_a_student_that_makes_no_numbers_is_an_error(bed):
    made = method("lcm", bed.process, steps=1, guidance=1.0)
    broken = bed.model(lambda x, time, **_: torch.full_like(x, float("nan")))
    with pytest.raises(FewstepError, match="not finite"):
        drawn(bed, broken, made.steps)


def test_usable_settings_are_those_near_the_best_of_all_arms():
    def tried(*scores):
        return {"tried": [{"draws": None if s is None else {"": {"frechet": s}}} for s in scores]}

    rows = {"a": tried(1.0, 1.9, 2.1), "b": tried(None, 2.0)}
    usable(rows)
    assert [row["usable"] for row in rows.values()] == [2, 1]
