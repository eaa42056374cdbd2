import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import FewstepError
from fewstep.quant import Scheme


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("w8a8", Scheme(8, 8, None)),
        ("w8", Scheme(8, 16, None)),
        ("w4a8", Scheme(4, 8, 32)),
        ("w4a16", Scheme(4, 16, 32)),
        ("w4a8g64", Scheme(4, 8, 64)),
        ("W4A8row", Scheme(4, 8, None)),
        (" w2 ", Scheme(2, 16, 32)),
    ],
)
def test_names_mean_what_they_say(name: str, expected: Scheme) -> None:
    assert Scheme.parse(name) == expected


@given(bits=st.sampled_from([2, 3, 4, 8]), activation=st.sampled_from([8, 16]), group=st.none() | st.integers(2, 512))
def test_every_scheme_has_a_name_that_reads_back(bits: int, activation: int, group: int | None) -> None:
    scheme = Scheme(bits, activation, group)
    assert Scheme.parse(str(scheme)) == scheme


@pytest.mark.parametrize("name", ["w5a8", "w4a4", "int8", "", "w4a8g", "w4a8g1", "w4a8x", None, 8])
def test_a_bad_name_is_refused_with_a_mend(name: object) -> None:
    with pytest.raises(FewstepError) as caught:
        Scheme.parse(name)  # type: ignore[arg-type]
    assert caught.value.mend
