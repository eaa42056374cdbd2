"""What holds for all tests: one thread, no deadline of hypothesis, and marks that skip what this machine lacks."""

import contextlib
import gc
import importlib.util
import os
import shutil

import pytest
from filelock import FileLock
from hypothesis import settings

# One thread a worker (and in every process that a test starts): sums of floats depend on how many threads share them,
# and the threads of two workers would hinder each other. It must be set before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

# torch.compile imports setuptools, which refuses where another package has imported distutils before it.
with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401

# Shared machines stall now and then: a slow example is not a wrong one.
settings.register_profile("fewstep", deadline=None)
settings.load_profile("fewstep")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def pytest_collection_modifyitems(items):
    """Long tests come first: at the end of a run no worker waits for another one's last minute."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish():
    """What was imported stays: looking through it for garbage again and again takes as long as many tests."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(name, make)`: a folder that `make(folder)` fills once in a run of the tests, whichever worker asks first.

    All workers read it, at any time: a test that writes into it takes a copy.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"
    shared.mkdir(exist_ok=True)

    def folder(name, make):
        place, made = shared / name, shared / f"{name}.made"
        with FileLock(shared / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(place, ignore_errors=True)  # what a failed attempt left
                place.mkdir()
                make(place)
                made.touch()
        return place

    return folder
