"""What reports show is made smaller in the tests of jobs, which say the same of them then."""

import pytest


def fewer_pictures(patch: pytest.MonkeyPatch) -> None:
    """A Q-Sched run draws a landscape of 49 corners, compares with 60 pictures and times ten; `inspect` looks at eight
    noise levels.

    Figures of a report are laid out and written in half a second each: here they get their data, and tests/report
    draws them.
    """
    from matplotlib.figure import Figure

    from fewstep.jobs.inspect import job as inspect
    from fewstep.jobs.q_sched import coefficients, measure, objective

    patch.setattr(coefficients, "CORNERS", 3)
    patch.setattr(measure, "ROUNDS", 1)
    patch.setattr(objective, "REFERENCE", 16)
    patch.setattr(inspect, "LEVELS", 3)
    patch.setattr(Figure, "savefig", lambda figure, file, **settings: file.write("<svg></svg>"))
