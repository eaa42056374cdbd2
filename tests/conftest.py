"""What holds for all tests: one thread, no deadline of hypothesis, and marks that skip what this machine lacks."""

import importlib.util
import os
import shutil

import pytest
from hypothesis import settings

# One thread a worker (and in every process that a test starts): sums of floats depend on how many threads share them,
# and the threads of two workers would hinder each other. It must be set before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

# Shared machines stall now and then: a slow example is not a wrong one.
settings.register_profile("fewstep", deadline=None)
settings.load_profile("fewstep")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def pytest_runtest_setup(item):
    if item.get_closest_marker("browser") and CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    for mark in item.iter_markers("extra"):
        if importlib.util.find_spec(mark.args[0]) is None:
            pytest.skip(f"{mark.args[0]} is not installed")


@pytest.fixture(scope="session")
def chromium():
    """Path of the browser, for tests marked `browser`."""
    return CHROMIUM
