import pytest


@pytest.fixture(scope="package", autouse=True)
def few_pictures_in_reports():
    """A Q-Sched run draws a landscape of 49 corners and times ten images, `inspect` looks at eight noise levels: fewer
    say the same of the job.
    """
    from fewstep.jobs.inspect import job as inspect
    from fewstep.jobs.q_sched import coefficients, measure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coefficients, "CORNERS", 3)
        patch.setattr(measure, "ROUNDS", 1)
        patch.setattr(inspect, "LEVELS", 3)
        yield
