"""The tests are a package: `from tests.pipelines import tiny_pipelines`, `python -m tests.pipelines.support_table`."""

from pathlib import Path

ROOT = Path(__file__).parent.parent  # of the checkout: also the working folder of processes that import tests
