import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from fewstep.errors import FewstepError
from fewstep.pipelines.probing import plan_of_scheduler
from fewstep.report import Figure, Page, figures, plan_table, render

M, S = np.linspace(0.9, 1.1, 5), np.linspace(0.8, 1.2, 4)
VALUES = -((M[:, None] - 1.0) ** 2) - (S[None] - 1.0) ** 2
DRAWINGS = {
    "landscape": lambda: figures.landscape(M, S, VALUES, optimum=(1.0, 1.0), box=((0.9, 1.1), (0.9, 1.1))),
    "landscape with holes": lambda: figures.landscape(M, S, np.where(VALUES < -0.04, np.nan, VALUES), optimum=(1, 1)),
    "curve": lambda: figures.search_curve(
        {"a": ([1, 10], [[0, 1], [0, 2]]), "b": ([1, 5, 9], [0, 1, 1])}, reference=("g", 1)
    ),
    "coefficients": lambda: figures.coefficients({"s": [0.9, 1.0], "m": [1.1, 1.0]}),
    "trade-off": lambda: figures.trade_off(
        {"a": [(1, 2), (3, 0.5)], "b": [(2, 1)]}, chosen=(2, 1), xlabel="MB", ylabel="distance"
    ),
    "bars": lambda: figures.bars({"bytes": {"a": 1.0, "b": 2.0}, "ms": {"a": 3.0}}, unit="MB"),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_xml_scale_with_the_page_and_take_its_colour(name):
    svg = DRAWINGS[name]()
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert root.get("viewBox")
    assert root.get("width") is None
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "http" not in svg.replace("http://www.w3.org/", "")
    assert svg in render(Page("t", "s", [Figure("f", svg)]))


def test_same_data_gives_the_same_bytes():
    assert DRAWINGS["coefficients"]() == DRAWINGS["coefficients"]()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.landscape(M, S, VALUES.T, optimum=(1, 1)),
        lambda: figures.landscape(M, S, np.full((5, 4), np.nan), optimum=(1, 1)),
        lambda: figures.search_curve({}),
        lambda: figures.search_curve({"a": ([1, 2, 3], [0, 1])}),
        lambda: figures.coefficients({}),
        lambda: figures.bars({}, unit="MB"),
    ],
)
def test_wrong_shapes_are_named(draw):
    with pytest.raises(FewstepError):
        draw()


def test_a_line_through_nan_does_not_fail():
    figures.search_curve({"a": ([1, 2], [[np.nan, 1.0]])})


def test_plan_table_shows_every_row_and_the_scalars():
    from diffusers import DPMSolverMultistepScheduler

    plan = plan_of_scheduler(DPMSolverMultistepScheduler(), 3).scaled([0.9, 1, 1], [1.2, 1, 1])
    cells = plan_table(plan).cells()
    assert len(cells) == 3
    assert [text for text, *_ in cells[0]][-2:] == ["0.9000", "1.2000"]
    assert len(cells[1][4][0].split()) == 2  # second order: two outputs
