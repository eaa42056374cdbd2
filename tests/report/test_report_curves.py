import pytest

from fewstep.errors import FewstepError
from fewstep.report.curves import lines


def test_lines_become_inline_svg_with_their_names_as_paths():
    one = lines({"a": ([1, 2, 3], [1.0, 0.5, 0.1])}, xlabel="x", ylabel="y", log_y=True)
    two = lines(
        {"a": ([1, 2], [1.0, 0.5]), "b": ([1, 2], [0.2, 0.3])},
        xlabel="x", ylabel="y", bands={"b": ([0.1, 0.2], [0.3, 0.4])}, log_x=True, falling=True,
    )  # fmt: skip
    assert one.startswith("<svg")
    assert "PolyCollection" in two
    assert "PolyCollection" not in one


def test_unequal_lengths_are_refused():
    with pytest.raises(FewstepError, match="as many places"):
        lines({"a": ([1, 2, 3], [1.0])}, xlabel="x", ylabel="y")
    with pytest.raises(FewstepError):
        lines({}, xlabel="x", ylabel="y")
