from tests.jobs.conftest import few_pictures_in_reports  # noqa: F401
