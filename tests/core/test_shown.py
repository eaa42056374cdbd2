"""What values show in a terminal and in a notebook: short, complete where it matters, and escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from fewstep.api.models import Student
from fewstep.distillation.method import method, presets
from fewstep.plan import Plan, Row
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow, VPDiscrete
from fewstep.quant import quantize
from fewstep.report import blocks
from fewstep.report.page import Page, save_page
from fewstep.runs import Run
from fewstep.schedules import SearchResult
from fewstep.schedules.tuning import Family, Problem, searcher
from fewstep.shown import html_table, text_table
from fewstep.solvers import SOLVERS, grids

DISCRETE, EPSILON = VPDiscrete.from_betas("scaled_linear", beta_start=0.00085, beta_end=0.012), Prediction("epsilon")
PLAN = SOLVERS["dpm_solver_pp_2m"](DISCRETE, EPSILON, grids.trailing(DISCRETE, 4))


class Balanced(HTMLParser):
    """Checks that tags are closed in order, and collects them with the texts."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(html):
    page = Balanced()
    page.feed(html)
    assert not page.open
    return page


def fits(text, lines=24):
    assert len(text.splitlines()) <= lines, text
    assert max(map(len, text.splitlines())) <= 120
    return text


# --- tables -----------------------------------------------------------------------------------------------------


def test_columns_stand_below_one_another():
    lines = text_table(["name", "n"], [["a", "1"], ["long name", "100"]]).splitlines()
    assert lines == ["name         n", "a            1", "long name  100"]


def test_long_lines_are_cut_and_html_is_escaped():
    assert max(map(len, text_table(["a"], [["x" * 200]]).splitlines())) == 79
    page = read(html_table(["<b>"], [["<script>alert(1)</script>"]], "A & B"))
    assert "script" not in page.tags
    assert "A & B" in page.texts


# --- plans and rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SOLVERS))
@pytest.mark.parametrize("steps", [1, 4, 40])
def test_every_plan_fits_a_terminal(name, steps):
    plan = SOLVERS[name](DISCRETE, EPSILON, grids.trailing(DISCRETE, steps))
    text = fits(repr(plan))
    header, _, *lines = text.splitlines()
    assert max(map(len, lines)) <= 79
    assert f"Plan({plan.steps} rows, epsilon, network times" in header
    assert len(lines) == min(plan.steps, 13)
    assert lines[-1].split()[0] == str(plan.steps - 1)
    assert read(plan._repr_html_()).tags.count("tr") == 1 + len(lines)


def test_a_plan_shows_its_numbers():
    lines = [line.split() for line in repr(PLAN).splitlines()]
    for row, line in zip(PLAN.rows, lines[2:], strict=True):
        assert [float(text) for text in line[1:4]] == pytest.approx([row.network_time, row.alpha, row.sigma], rel=1e-3)
    assert float(lines[4][4]) == pytest.approx(PLAN.rows[2].state[2], rel=1e-3)  # the newest coefficient comes first
    assert float(lines[4][5]) == pytest.approx(PLAN.rows[2].state[1], rel=1e-3)


def test_columns_that_say_nothing_are_left_out():
    assert "noise" not in repr(PLAN)
    assert "noise" in repr(SOLVERS["euler_ancestral"](DISCRETE, EPSILON, grids.trailing(DISCRETE, 4)))
    tuned = repr(PLAN.scaled([0.9, 1, 1, 1], [1.0] * 4)).splitlines()
    assert tuned[1].split()[-1] == "s"
    assert [line.split()[-1] for line in tuned[2:]] == ["0.9", "1", "1", "1"]


def test_learned_and_per_channel_coefficients_are_shown():
    scales = torch.tensor([0.9, 1.0, 1.1]).reshape(3, 1, 1)
    plan = PLAN.scaled([torch.tensor(0.9, requires_grad=True), 1, 1, 1], [scales] * 4)
    assert "0.9..1.1" in fits(repr(plan))
    assert "0.9..1.1" in "".join(read(plan._repr_html_()).texts)
    assert "output_scale=0.9..1.1" in repr(plan.rows[1])


def test_a_row_is_its_formula():
    row = Row(999.0, 999.0, 0.6, 0.8, {1: 0.5, 0: -0.25}, {1: 2.0}, noise=0.125, network="oms", guidance=3.0)
    assert repr(row) == (
        "Row(time 999, alpha 0.6, sigma 0.8: next = +0.5 x_1 -0.25 x_0 +2 n_1 +0.125 z, network=oms, guidance=3)"
    )
    texts = read(row._repr_html_()).texts
    assert {"state.1", "0.5", "network", "oms"} <= set(texts)
    assert "anchor" not in texts


# --- searches, methods, quantization, students ------------------------------------------------------------------


def test_results_of_searches():
    problem = Problem.of(PLAN, Family("free"), lambda plan: [float(plan.rows[0].sample_scale), 1.0])
    searcher("coarse-to-fine")(problem, 30, 0)
    outcome = problem.outcome()
    text = fits(repr(outcome), lines=5)
    assert f"value: {outcome.value:.5g} (unchanged plan: 1)" in text
    assert "1 of 2" in text
    assert "on the edge of the box" in text
    assert "on the edge of the box" in "".join(read(outcome._repr_html_()).texts)
    result = SearchResult(PLAN, -0.25, 57, tuple((float(k), -1.0) for k in range(57)))
    assert fits(repr(result)).startswith("SearchResult(value -0.25, spent 57 on 57 looks)\nPlan(4 rows")
    assert {"-0.25", "57"} <= set(read(result._repr_html_()).texts)


@pytest.mark.parametrize("name", sorted(presets()))
def test_methods_are_a_line_and_their_whole_text_tells_them_apart(name):
    one = method(name, RectifiedFlow())
    assert "\n" not in fits(repr(one))
    assert all(term in repr(one) for term in one.terms)
    page = read(one._repr_html_())
    assert page.tags.count("tr") > len(one.terms)
    assert one.written() == method(name, RectifiedFlow()).written()
    assert "steps=Chain(" in one.written()


def test_the_whole_text_of_a_method_sees_what_the_short_one_does_not():
    few, other = (method("dmd2", RectifiedFlow(), guidance=g) for g in (2.0, 3.0))
    assert repr(few) == repr(other)
    assert few.written() != other.written()


def test_a_quantization_report_is_short_where_print_shows_all():
    layers = [layer for _ in range(30) for layer in (nn.Linear(64, 64), nn.ReLU())]
    report = quantize(nn.Sequential(*layers, nn.LayerNorm(64)), "w4a8")
    text = fits(repr(report), lines=8)
    assert text.startswith("QuantReport(w4a8: ")
    assert re.search(r"w4a8 +\d+ ", text)
    counts = [re.search(r"  (\d+)  ", line) for line in text.splitlines()[2:]]
    assert sum(int(count[1]) for count in counts) == len(report.rows)
    assert "Linear" in str(report)
    assert any("w4a8" in text for text in read(report._repr_html_()).texts)


def test_a_student_shows_its_plan():
    student = Student(nn.Sequential(nn.Linear(2, 2)), PLAN, (2,))
    assert fits(repr(student)).startswith("Student(Sequential, samples (2,))\nPlan(4 rows")
    assert "Sequential" in read(student._repr_html_()).texts


# --- runs -------------------------------------------------------------------------------------------------------


def test_a_run_shows_what_its_report_found(tmp_path):
    with Run(tmp_path / "run", quiet=True) as run:
        assert repr(run) == f"Run({str(tmp_path / 'run')!r}: 0 finished units)"
        assert "Run(" in read(run._repr_html_()).texts[0]
        run.unit("first", lambda: 3)
        table = blocks.Table("Found", [blocks.Column("error", digits=2)], [blocks.TableRow("a <b>", [0.5])])
        later = blocks.Table("Later", [blocks.Column("other")], [blocks.TableRow("z", ["not this"])])
        images = torch.rand(9, 3, 8, 8)
        grid = blocks.ImageGrid("Pictures", [[image] for image in images], [f"r{k}" for k in range(9)], ["one"])
        numbers = blocks.Highlights("Numbers", [("7 %", "smaller", "")])
        save_page(Page("A <title>", "It was found.", [numbers, table, later, grid]), run.path / "report.html")
        page = read(run._repr_html_())
    assert repr(run) == f"Run({str(tmp_path / 'run')!r}: 1 finished unit, with a report)"
    texts = "\n".join(page.texts)
    for text in ("A <title>", "It was found.", "7 %", "smaller", "a <b>", "0.50", "report.html"):
        assert text in texts
    assert "not this" not in texts
    assert page.tags.count("img") == 6
    assert "script" not in page.tags


def test_plans_are_equal_and_saved_as_before(tmp_path):
    PLAN.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == PLAN
