import pytest

from tests.jobs.fewer import fewer_pictures


@pytest.fixture(scope="package", autouse=True)
def few_pictures_in_reports():
    """In this process; those that a test starts call `fewer_pictures` themselves."""
    with pytest.MonkeyPatch.context() as patch:
        fewer_pictures(patch)
        yield
