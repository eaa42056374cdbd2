"""What reports show is made smaller in the tests of jobs, which say the same of them then."""

import pytest


def fewer_pictures(patch: pytest.MonkeyPatch) -> None:
    """A Q-Sched run draws a landscape of 49 corners and times ten images; `inspect` looks at eight noise levels."""
    from fewstep.jobs.inspect import job as inspect
    from fewstep.jobs.q_sched import coefficients, measure

    patch.setattr(coefficients, "CORNERS", 3)
    patch.setattr(measure, "ROUNDS", 1)
    patch.setattr(inspect, "LEVELS", 3)
