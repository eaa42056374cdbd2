"""docs/pipelines.md claims what the tests of this folder run, and names tests that exist."""

import re
from pathlib import Path

from tests.pipelines import support_table


def test_the_table_is_the_one_the_tests_make():
    assert support_table.written() == support_table.table(), "run: python -m tests.pipelines.support_table"


def test_every_claim_names_a_test_that_exists():
    page = support_table.PAGE.read_text(encoding="utf-8")
    claims = re.findall(r"`(test_\w+)\.py::(test_\w+)`", page)
    assert len(claims) > 8
    for module, function in claims:
        text = (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")
        assert f"def {function}(" in text, (module, function)
