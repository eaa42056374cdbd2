"""The claims of papers: every arm can be built, every question names what there is, arms cost what is said."""

import dataclasses
import importlib
from pathlib import Path

import pytest
import torch
from claims import yonos
from claims.claim import REAL, Arm, Claim, Question, Real, drawn
from claims.msd import PARTS, SMALL, Routed
from claims.protocol import (
    CANNOT,
    ENOUGH,
    LADDER,
    Costs,
    Protocol,
    answers,
    at_edge,
    best,
    climbed,
    fingerprint,
    keys_of,
    settled,
    summary,
)
from distillation_claims import FIRST, WIDTH, in_order, known, main, usable

from fewstep.distillation.method import Method, method
from fewstep.errors import FewstepError
from fewstep.files import read_json
from fewstep.testing.digits import CLASSES, DigitBed, DigitJudge, DigitNetwork
from fewstep.testing.kernel_digits import load_digits

CLAIMS = known()
METRICS = {"frechet", "precision", "recall", "right", "spread"}
MORE = {"straightness", "error", "coverage", "nearest"}  # of some arms and beds
LOWER = {"frechet", "straightness", "error"}  # is better


@pytest.fixture(autouse=True)
def one_set(monkeypatch):
    """Of samples per student, and a short regression of small ones, are enough to see that things run."""
    monkeypatch.setattr("claims.claim.SETS", 1)
    monkeypatch.setattr("claims.msd.WARM", 20)


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
    for arm_name, arm in claim.all_arms().items():
        made = arm.make(bed.process, 400)
        assert isinstance(made, Method)
        draws[arm_name] = {""} if arm.draws is None or isinstance(arm, Real) else set(arm.draws(bed.process))
    assert claim.questions
    assert all(not q.premise or q.premise in claim.premises for q in claim.questions)
    for question in claim.all_questions():
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
    sides = [[{"": {"x": v}} for v in values] for values in (first, second)]
    answer = Question("a", "b", "x", higher=higher).answer(*sides)
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
    students = [DigitNetwork(4) for _ in PARTS]
    for k, student in enumerate(students):
        torch.nn.init.constant_(student.last.bias, float(k))
    labels = torch.arange(CLASSES)
    out = Routed(students, PARTS)(torch.zeros(CLASSES, 64), torch.full((CLASSES,), 500.0), class_labels=labels)
    assert out[:, 0].tolist() == [next(k for k, part in enumerate(PARTS) if c in part) for c in range(CLASSES)]


def test_four_small_students_weigh_at_most_one():
    small, whole = (sum(p.numel() for p in DigitNetwork(w).parameters()) for w in (SMALL, WIDTH))
    assert 0.9 * whole < len(PARTS) * small <= whole


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


# --- how a claim is asked ---------------------------------------------------------------------------------------------


def fake(value):
    """Numbers of one draw."""
    return {"": {"frechet": value}}


def asked(rates=(3e-4, 1e-3), fixed=False):
    arm = Arm(lambda process, updates: method("lcm", process, guidance=1.0))
    return Claim("", "", "", {"a": arm, "b": arm}, (Question("a", "b"),), rates, (0.0, 0.9), fixed=fixed)


@pytest.mark.parametrize("optimum", [1e-5, 3e-4, 1e-2])
def test_tuning_never_ends_at_the_edge_of_its_grid(optimum):
    """The grid widens along the ladder, on both sides, until the best rate has worse neighbours."""
    calls = []

    def measure(setting):
        calls.append(setting)
        rate, momentum = setting
        return fake(abs(LADDER.index(rate) - LADDER.index(optimum)) + momentum)

    tried = climbed(measure, asked(), [("", "frechet")])
    assert best(tried, ("", "frechet")) == (optimum, 0.0)
    assert not at_edge(tried, (optimum, 0.0))
    assert len(calls) == len(set(calls))


def test_a_grid_that_diverges_everywhere_is_left_downwards():
    tried = climbed(lambda s: fake(1 / s[0]) if s[0] <= 3e-5 else None, asked(), [("", "frechet")])
    assert best(tried, ("", "frechet")) == (3e-5, 0.0)


def test_an_optimum_at_the_end_of_the_ladder_is_told():
    tried = climbed(lambda s: fake(s[0]), asked(), [("", "frechet")])
    assert at_edge(tried, best(tried, ("", "frechet")))


def test_every_draw_has_the_setting_that_suits_it():
    tried = {(1e-4, 0.0): {"1": {"frechet": 1.0}, "8": {"frechet": 2.0}},
             (1e-3, 0.0): {"1": {"frechet": 2.0}, "8": {"frechet": 1.0}}}  # fmt: skip
    assert [best(tried, (draw, "frechet"))[0] for draw in ("1", "8")] == [1e-4, 1e-3]
    keys = [("1", "frechet"), ("8", "frechet")]
    assert settled(tried, keys) == {keys[0]: (1e-4, 0.0), keys[1]: (1e-3, 0.0)}
    tried[1e-4, 0.0]["8"]["frechet"] = 1.02  # one seed cannot tell these apart
    assert set(settled(tried, keys).values()) == {(1e-4, 0.0)}
    keys = keys_of(CLAIMS["mlcm"], "segments")
    assert {draw for draw, _ in keys} == {f"{n} steps" for n in (1, 2, 4, 8)}
    assert {metric for _, metric in keys_of(CLAIMS["yonos"], "scale distilled")} == {"error", "frechet"}


@pytest.mark.parametrize("name", ["tdm", "msd", "mmd_ddm"])
def test_the_dearest_arm_has_enough_updates_and_the_others_its_passes(bed, name):
    protocol = Protocol(batch=16)
    costs = Costs.of(CLAIMS[name], bed, protocol)
    spent = [costs.at_passes[arm] * cost for arm, cost in costs.passes.items()]
    assert costs.at_updates == min(costs.at_passes.values()) == pytest.approx(ENOUGH, abs=1)
    assert max(spent) - min(spent) <= max(costs.passes.values())


def row(*values, updates=ENOUGH, edge=False):
    seeds = [fake(v) for v in values]
    run = {"updates": updates, "learning_rate": 1e-3, "momentum": 0.0, "seeds": seeds}
    chosen = [{"draw": "", "metric": "frechet", "learning_rate": 1e-3, "momentum": 0.0, "edge": edge}]
    return {"updates": updates, "runs": [run], "chosen": chosen}


def test_a_no_without_its_premise_is_no_answer():
    """The untreated arm is as good as real samples: what the method repairs is not there."""
    rows = {"a": row(1.2, 1.21, 1.22), "b": row(1.0, 1.01, 1.0)}
    verdicts = {}
    for real in (row(0.5, 0.5, 0.51), row(1.0, 1.01, 1.0)):
        for answer in answers(asked(), {**rows, REAL: real}):
            assert answer["premises"][0]["difference"]["n"] == 3
            verdicts[answer["at"], answer["premises"][0]["holds"]] = answer["verdict"]
    assert verdicts == {(at, holds): "no" if holds else CANNOT for at in ("passes", "updates") for holds in (1, 0)}


def test_verdicts_say_what_they_should_not_rest_on():
    rows = {"a": row(1.0, 1.1, updates=300, edge=True), "b": row(2.0, 2.1), REAL: row(0.1, 0.1, updates=0)}
    (answer, _) = answers(asked(), rows)
    assert answer["verdict"] == "yes"
    assert answer["but"] == ["a was tuned to the edge of its grid", "a had 300 updates"]


def test_real_samples_are_those_of_the_classes_asked_for(bed):
    found = Real(asked().arms["a"].make, share=0.0).train(bed, 0, 8, 0)[""]
    other = Real(asked().arms["a"].make, share=0.0).train(bed, 0, 8, 1)[""]
    assert found != other
    assert 0.9 < found["spread"] < 1.1
    noise = bed.measures(torch.randn(len(bed.asked()), 64), bed.asked())
    assert found["frechet"] < noise["frechet"]


def test_a_changed_arm_has_another_mark(bed):
    claim = CLAIMS["tdm"]
    marks = {fingerprint(claim, name, bed) for name in claim.all_arms()}
    assert len(marks) == len(claim.all_arms())
    assert marks == {fingerprint(claim, name, bed) for name in claim.all_arms()}
    later = dataclasses.replace(claim, version=claim.version + 1)
    wider = dataclasses.replace(claim, rates=(1e-3,))
    for other in (later, wider):
        assert fingerprint(other, "TDM", bed) not in marks


def test_the_queue_begins_with_what_matters():
    assert in_order(list(CLAIMS))[:3] == ["mmd_ddm", "mlcm", "sid_few_step"]
    assert set(FIRST) <= set(CLAIMS)


def test_a_killed_queue_goes_on_with_the_arms_that_are_missing(bed, tmp_path, monkeypatch):
    """Results are written after each arm; a second call trains nothing that is there, a changed arm it does."""
    trained = []

    class Quick(Arm):
        def train(self, bed, updates, batch, seed, **settings):
            trained.append(self.width)
            if self.width == 3 and not again:
                raise KeyboardInterrupt
            value = {"frechet": 2.0 + self.width + 0.1 * seed + settings["learning_rate"]}
            return {"": dict.fromkeys(METRICS, 0.5) | value}

        def passes(self, bed, batch, steps=4):
            return 3.0 * batch

    again = False
    make = asked().arms["a"].make
    arms = {f"width {w}": Quick(make, width=w) for w in (1, 2, 3)}
    claim = Claim("p", "s", "a", arms, (Question("width 1", "width 2"), Question("width 1", "width 3")), momenta=(0.0,))
    monkeypatch.setattr("distillation_claims.known", lambda: {"c": claim})
    monkeypatch.setattr("distillation_claims.bed_of", lambda *args: bed)
    given = [
        "x",
        "c",
        "--updates",
        "10",
        "--seeds",
        "0",
        "1",
        "--results",
        str(tmp_path),
        "--folder",
        str(tmp_path / "r"),
    ]
    monkeypatch.setattr("sys.argv", given)
    with pytest.raises(KeyboardInterrupt):
        main()
    found = read_json(tmp_path / "claim-c.json")
    assert found["open"] == ["width 3"]
    assert {a["verdict"] for a in found["answers"]} == {"yes"}
    again, before = True, len(trained)
    main()
    assert set(trained[before:]) == {3, 1}  # the missing arm, and the curve of the first one
    found = read_json(tmp_path / "claim-c.json")
    assert found["open"] == []
    assert len(found["answers"]) == 4
    assert [len(p["frechet"]) for p in found["curve"]["points"]] == [2, 2, 2, 2]
    before = len(trained)
    main()
    assert len(trained) == before


def test_a_page_tells_answers_with_their_premises_seeds_and_doubts(monkeypatch):
    """No cell and no verdict may be lost on the way from the results to the page."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs"))
    pages = importlib.import_module("make_pages").environment()
    blocks = pages.globals["claim_blocks"]
    numbers = [{"": {"frechet": v, **dict.fromkeys(METRICS - {"frechet"}, 0.5)}} for v in (1.2, 1.21, 1.22)]
    run = {"updates": 300, "learning_rate": 1e-3, "momentum": 0.9, "seeds": [*numbers[:2], None], "summary": None}
    good = {**run, "updates": 1200, "seeds": numbers, "summary": summary(numbers)}
    chosen = [{"draw": "", "metric": "frechet", "learning_rate": 1e-3, "momentum": 0.9, "edge": True}]
    rows = {"a": {"chosen": chosen, "runs": [good, run], "teacher": {"": numbers[0][""]}}, "b": row(1.0, 1.01, 1.0)}
    rows |= {REAL: {**row(1.0, 1.0, 1.0), "chosen": []}}
    for name in ("b", REAL):
        rows[name]["runs"][0]["summary"] = None
    for one in rows.values():
        one |= {"updates": 1, "tried": [], "commit": "c0ffee"}
    claim = asked()
    found = {
        "says": "It says so.", "asks": "Asked so.", "arms": rows, "answers": list(answers(claim, rows)), "open": ["c"],
        "curve": {"arm": "a", "draw": "", "points": [{"updates": 75, "frechet": [3.0, 3.5]}]},
        "settings": {**Protocol().plain(), "format": 2}, "seconds": 1.0,
        "environment": {"command": "x.py", "commit": "abc", "device": "CPU", "threads": 1},
    }  # fmt: skip
    page = pages.from_string('{% from "_claim.md.j2" import claim with context %}{{ claim(r) }}').render(r=found)
    assert "| a | 1200 | 3 | 1.21 ± 0.02 |" in page
    assert "| a | 300 | 2 of 3 | diverged |" in page
    assert "| the teacher, as a | 0 |" in page
    assert "at equal updates cannot be shown here" in page
    assert "At equal passes cannot be shown here (difference +0.21" in page
    assert "; but a was tuned to the edge of its grid)" in page
    assert "a was tuned to the edge of its grid, a had 300 updates and 1 of 3 seeds of a diverged" in page
    assert "Premise: real samples are better than the untreated arm: no" in page
    assert "Not trained yet: c." in page
    assert "75: 3.00 and 3.50" in page
    assert blocks.counted([found]) == "1 cannot be shown here"  # at either budget
    found["answers"][1] |= {"verdict": "no"}
    assert blocks.counted([found]) == "1 no, 1 cannot be shown here"
