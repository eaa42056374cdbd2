import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.schedules.tuning import Family
from fewstep.schedules.tuning.family import NAMES
from fewstep.solvers import ddim, grids

PLAN = ddim(RectifiedFlow(), Prediction("velocity"), grids.uniform(RectifiedFlow(), 5))


@pytest.mark.parametrize("name", NAMES)
def test_identity_leaves_the_plan_bit_identical(name):
    family = Family(name, channels=3)
    theta = family.identity(PLAN.steps)
    assert family.apply(PLAN, theta) is PLAN
    assert PLAN.scaled(*family.expand(theta, PLAN.steps)).to_dict()["rows"][2]["output"].keys() == {"2"}
    for row, same in zip(PLAN.rows, PLAN.scaled([1.0] * 5, [1.0] * 5).rows, strict=True):
        assert dict(row.coefficients()) == dict(same.coefficients())


@pytest.mark.parametrize("name", NAMES)
@given(corner=st.tuples(st.floats(0.8, 1.2), st.floats(0.8, 1.2)))
def test_every_family_contains_the_ramp_to_one(name, corner):
    corner = torch.tensor(corner, dtype=torch.float64)
    s, m = Family("ramp-to-one").expand(corner, 5)
    family = Family(name, channels=3)
    wide_s, wide_m = family.expand(family.from_ramp(corner, 5), 5)
    assert torch.allclose(wide_s, s, atol=1e-12)
    assert torch.allclose(wide_m.reshape(5, -1), m[:, None].expand(5, wide_m[0].numel()), atol=1e-12)


def test_ramp_matches_numpy_linspace_of_the_paper():
    s, m = Family("ramp").expand(torch.tensor([1.012, 0.967, 0.955, 1.099]), 4)
    assert torch.allclose(s, torch.linspace(1.012, 0.967, 4))
    assert torch.allclose(m, torch.linspace(0.955, 1.099, 4))


def test_one_step_ramp_is_its_first_number():
    s, m = Family("ramp-to-one").expand(torch.tensor([0.9, 1.1]), 1)
    assert (float(s), float(m)) == (pytest.approx(0.9), pytest.approx(1.1))


def test_boundary_is_noticed():
    family = Family("ramp-to-one", 0.8, 1.2)
    assert family.on_boundary(torch.tensor([0.8, 1.0]))
    assert not family.on_boundary(torch.tensor([0.81, 1.19]))


def test_mistakes_name_the_mend():
    with pytest.raises(FewstepError, match="ramp-to-one"):
        Family("ramp-to-on")
    with pytest.raises(FewstepError, match="contain 1"):
        Family("ramp", 1.1, 1.2)
    for channels in (None, 0):
        with pytest.raises(FewstepError, match="channels="):
            Family("per-channel", channels=channels)
    with pytest.raises(FewstepError, match="takes 4 numbers"):
        Family("ramp").expand(torch.ones(3), 4)
