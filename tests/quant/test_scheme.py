import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import FewstepError
from fewstep.quant import Scheme
from fewstep.quant.scheme import BLOCKS, CALIBRATED


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


@pytest.mark.parametrize("name", ["w5a8", "w4a5", "int8", "", "w4a8g", "w4a8g1", "w4a8x", None, 8])
def test_a_bad_name_is_refused_with_a_hint(name: object) -> None:
    with pytest.raises(FewstepError) as caught:
        Scheme.parse(name)  # type: ignore[arg-type]
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("w4g64", Scheme(4, 16, 64)),
        ("w8a8-static", Scheme(8, 8, None, activation_format="static")),
        ("w4a16-asym", Scheme(4, 16, 32, "asym")),
        ("nf4", Scheme(4, 16, 64, "nf4")),
        ("fp8", Scheme(8, 16, None, "fp8")),
        ("fp8afp8", Scheme(8, 8, None, "fp8", "fp8")),
        ("w8a8tensor", Scheme(8, 8, None, per_tensor=True)),
        ("w4a8-r16-smooth", Scheme(4, 8, 32, smooth=True, rank=16)),
        ("w8a8-affine", Scheme(8, 8, None, activation_format="affine")),
        ("w4a4", Scheme(4, 4, 32)),
        ("w4a4g64-ag64", Scheme(4, 4, 64, activation_group=64)),
        ("mxfp4", Scheme(4, 16, 32, "mxfp4")),
        ("mxfp4a8", Scheme(4, 8, 32, "mxfp4")),
        ("nvfp4a4", Scheme(4, 4, 16, "nvfp4")),
        ("w8a8-hadamard", Scheme(8, 8, hadamard=True)),
        ("w4a8-r8-hadamard-smooth", Scheme(4, 8, 32, smooth=True, rank=8, hadamard=True)),
    ],
)
def test_names_of_formats_and_options(name: str, expected: Scheme) -> None:
    assert Scheme.parse(name) == expected


@given(
    weight=st.sampled_from(
        [(2, "int"), (3, "asym"), (4, "asym"), (8, "int"), (8, "fp8"), (4, "nf4"), (4, "mxfp4"), (4, "nvfp4")]
    ),
    activation=st.sampled_from(
        [(16, "dynamic"), (8, "dynamic"), (4, "dynamic"), (8, "static"), (8, "affine"), (8, "fp8")]
    ),
    inputs=st.none() | st.integers(2, 128),
    group=st.none() | st.integers(2, 512),
    smooth=st.booleans(),
    rank=st.sampled_from([0, 1, 32]),
    tensor=st.booleans(),
    hadamard=st.booleans(),
)
def test_every_combination_has_a_name_that_reads_back(
    weight: tuple[int, str], activation: tuple[int, str], inputs: int | None, group: int | None, smooth: bool,
    rank: int, tensor: bool, hadamard: bool,
) -> None:  # fmt: skip
    bits, kind = weight
    wide, how = activation
    group, tensor = (BLOCKS[kind], False) if kind in BLOCKS else (None if tensor else group, tensor)
    inputs = inputs if how == "dynamic" and wide < 16 else None
    hadamard = hadamard and how not in CALIBRATED
    scheme = Scheme(bits, wide, group, kind, how, tensor, smooth, rank, inputs, hadamard)
    assert Scheme.parse(str(scheme)) == scheme


@pytest.mark.parametrize(
    "name",
    [
        "w8-static", "nf4-asym", "fp8-asym", "w4a8-r0", "w4a8-what", "w4a8-asym-asym", "nf8", "w4a8-", "w4aint8",
        "w4a4-static", "w8-affine", "w8a8-static-affine", "mxfp4g16", "nvfp4row", "mxfp4-asym", "w4-ag32",
        "w8a8-static-ag32", "w4a8-ag1", "mxfp8", "w8a8-static-hadamard",
    ],
)  # fmt: skip
def test_a_combination_that_means_nothing_is_refused(name: str) -> None:
    with pytest.raises(FewstepError) as caught:
        Scheme.parse(name)
    assert caught.value.hint


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight_bits": 8, "weight_format": "nf4"},
        {"weight_bits": 4, "weight_format": "fp8"},
        {"weight_bits": 4, "weight_format": "int7"},
        {"weight_bits": 4, "activation_format": "static"},
        {"weight_bits": 4, "group_size": 32, "per_tensor": True},
        {"weight_bits": 4, "rank": -1},
        {"weight_bits": 4, "weight_format": "mxfp4", "group_size": 16},
        {"weight_bits": 8, "activation_bits": 4, "activation_format": "fp8"},
    ],
)
def test_a_value_that_means_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(FewstepError):
        Scheme(**wrong)  # type: ignore[arg-type]
