"""Methods against closed forms, and against round to nearest under the error that each minimises."""

import copy

import pytest
import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.quant import QuantLayer, Scheme, quantize
from fewstep.quant.calibration import calibrate
from fewstep.quant.grids import decode, fit_grid
from fewstep.quant.methods import METHODS, method_of
from fewstep.quant.methods.adaround import learn, rectified_sigmoid, start
from fewstep.quant.methods.clip import at_percentile, least_squares_scale
from fewstep.quant.methods.gptq import compensate
from fewstep.quant.methods.low_rank import output_error, randomised_svd, split
from fewstep.quant.methods.smoothing import divisors
from fewstep.quant.modules import copy_to_quantize

INTEGER = ["w8row", "w4", "w3", "w2", "w4row", "w4-asym", "w2row-asym", "w4tensor"]


def problem(rows: int = 12, columns: int = 80, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the second moments of correlated inputs with a few large channels."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    inputs = torch.randn(400, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    inputs[:, :3] *= 10
    return weight, inputs.T @ inputs / 400


def error(weight: torch.Tensor, scheme: Scheme, found, second: torch.Tensor) -> float:  # type: ignore[no-untyped-def]
    return output_error(weight - decode(found[0], found[1], scheme), second)


@pytest.mark.parametrize("name", [*INTEGER, "nf4", "fp8"])
def test_gptq_beats_rounding_to_nearest_on_the_outputs(name: str) -> None:
    scheme = Scheme.parse(name)
    weight, second = problem()
    nearest = error(weight, scheme, fit_grid(weight, scheme), second)
    assert error(weight, scheme, compensate(weight, scheme, second), second) < 0.7 * nearest


@pytest.mark.parametrize("seed", range(5))
def test_gptq_of_two_weights_is_the_closed_form(seed: int) -> None:
    scheme = Scheme.parse("w4tensor")
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(200, 2, generator=generator)
    second = torch.tensor([[2.0, 1.3], [1.3, 1.1]])
    nearest, grid = fit_grid(weight, scheme)
    scale = float(grid.scale)
    # with the first weight rounded, the least squares answer for the second: w2 - H12 / H22 (q1 - w1)
    first = nearest[:, 0].float()
    best = weight[:, 1] - second[0, 1] / second[1, 1] * (first * scale - weight[:, 0])
    expected = torch.stack([first, (best / scale).round().clamp(-8, 7)], 1)
    codes, _ = compensate(weight, scheme, second, damping=1e-7)
    assert torch.equal(codes.float(), expected)
    assert int((codes != nearest).sum()) > 20  # the case is not trivial


def test_gptq_does_not_depend_on_the_block() -> None:
    weight, second = problem()
    scheme = Scheme.parse("w3g16")
    whole = compensate(weight, scheme, second, block=128)[0]
    assert torch.equal(compensate(weight, scheme, second, block=16)[0], whole)


def test_gptq_with_uncorrelated_inputs_is_rounding_to_nearest() -> None:
    weight, _ = problem()
    scheme = Scheme.parse("w4")
    assert torch.equal(compensate(weight, scheme, torch.eye(80))[0], fit_grid(weight, scheme)[0])


def test_inputs_that_are_never_on_do_no_harm() -> None:
    weight, second = problem()
    second[5] = 0
    second[:, 5] = 0
    for rounder in (compensate, least_squares_scale, learn):
        codes, grid = rounder(weight, Scheme.parse("w4"), second)
        assert bool(decode(codes, grid, Scheme.parse("w4")).isfinite().all())


@pytest.mark.parametrize("name", INTEGER)
def test_adaround_is_never_worse_than_nearest_and_moves_by_one_code_at_most(name: str) -> None:
    scheme = Scheme.parse(name)
    weight, second = problem(rows=6, columns=40)
    nearest = fit_grid(weight, scheme)
    learned = learn(weight, scheme, second, steps=120)
    assert error(weight, scheme, learned, second) < error(weight, scheme, nearest, second)
    assert int((learned[0].int() - nearest[0].int()).abs().max()) <= 1


def test_adaround_comes_near_the_best_of_all_roundings() -> None:
    scheme = Scheme.parse("w4row")
    choices = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 8)
    gaps = []
    for seed in range(5):
        weight, second = problem(rows=1, columns=8, seed=seed)
        nearest = fit_grid(weight, scheme)
        scale = nearest[1].scale.float()
        every = ((weight / scale).floor() + choices).clamp(-8, 7) * scale - weight
        best = float((every @ second * every).sum(1).min())
        start_gap = error(weight, scheme, nearest, second) - best
        end_gap = error(weight, scheme, learn(weight, scheme, second, steps=500), second) - best
        assert end_gap > -1e-3  # the enumeration holds every candidate
        gaps.append((start_gap, end_gap))
    assert sum(end for _, end in gaps) < 0.1 * sum(begin for begin, _ in gaps)


def test_adaround_starts_at_the_fraction_and_needs_integers() -> None:
    rest = torch.linspace(0, 1, 11)
    assert torch.allclose(rectified_sigmoid(start(rest)), rest, atol=1e-5)
    with pytest.raises(FewstepError, match="integer"):
        learn(torch.randn(2, 70), Scheme.parse("nf4"), torch.eye(70))


@pytest.mark.parametrize("name", INTEGER)
def test_clipping_is_never_worse_than_nearest_under_its_own_error(name: str) -> None:
    scheme = Scheme.parse(name)
    weight, second = problem()
    diagonal = torch.diag(second.diagonal())
    found = [
        error(weight, scheme, one, diagonal)
        for one in (least_squares_scale(weight, scheme, second), fit_grid(weight, scheme, (1.0,)))
    ]
    assert found[0] <= found[1]


def test_percentile_clips_there() -> None:
    weight = torch.arange(1.0, 101.0).view(1, 100)
    codes, grid = at_percentile(weight, Scheme.parse("w8row"), percentile=90)
    values = decode(codes, grid, Scheme.parse("w8row"))
    assert float(values.max()) == pytest.approx(90, rel=1e-3)
    assert torch.allclose(values[0, :90], weight[0, :90], atol=0.5 * 90 / 127 + 1e-3)


def test_randomised_svd_is_the_truncated_svd() -> None:
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(200, 120, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(120, 120, generator=generator))
    values = 0.9 ** torch.arange(120.0)
    matrix = (left * values) @ right.T
    up, down = randomised_svd(matrix, 16)
    best = float(values[16:].square().sum().sqrt())
    assert float((matrix - up @ down).norm()) == pytest.approx(best, rel=1e-3)
    up, down = randomised_svd(matrix, 120)
    assert torch.allclose(up @ down, matrix, atol=1e-5)


def test_branch_of_full_rank_leaves_nothing_to_round() -> None:
    weight, second = problem()
    scheme = Scheme.parse("w2-r12")
    up, down, codes, grid = split(weight, scheme, method_of("rtn").round, second)
    assert torch.allclose(up @ down + decode(codes, grid, scheme), weight, atol=1e-3)


def test_branch_takes_the_outliers() -> None:
    weight, _ = problem(64, 64)
    weight = weight + 30 * torch.outer(torch.randn(64), torch.randn(64))
    scheme = Scheme.parse("w4-r4")
    up, down, codes, grid = split(weight, scheme, method_of("rtn").round)
    plain = float((weight - decode(*fit_grid(weight, scheme), scheme)).norm())
    assert float((weight - up @ down - decode(codes, grid, scheme)).norm()) < 0.2 * plain


def test_smoothing_is_the_formula_up_to_a_common_factor() -> None:
    weight, largest = torch.randn(5, 7, 3), torch.rand(7) + 0.1
    found = divisors(weight, largest, 0.3)
    formula = largest**0.3 / weight.abs().amax((0, 2)) ** 0.7
    ratio = found / formula
    assert torch.allclose(ratio, ratio[0].expand(7))
    assert float(found.log().mean()) == pytest.approx(0, abs=1e-5)
    weight[:, 2] = 0
    assert bool(divisors(weight, largest).isfinite().all())


def model() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(4, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 32, 3, padding=1, groups=2), nn.SiLU(),
        nn.Conv2d(32, 48, 1), nn.SiLU(), nn.Flatten(2), nn.Linear(64, 32),
    )  # fmt: skip
    return network, torch.randn(16, 4, 8, 8) * torch.tensor([1.0, 8.0, 0.2, 1.0]).view(4, 1, 1)


@pytest.mark.parametrize("method", ["rtn", "clip", "clip:99.9", "smoothquant", "gptq", "adaround:50", "svdquant:8"])
@pytest.mark.parametrize("scheme", ["w4a8", "w4a16-asym", "nf4", "fp8afp8", "w8a8-static", "nvfp4", "w8a8-affine"])
def test_every_method_with_every_kind_of_scheme(method: str, scheme: str) -> None:
    network, x = model()
    with torch.no_grad():
        wanted = network(x)
    calibration = calibrate(network, lambda c, s: network(x), [0], [0])
    original = {name: value.clone() for name, value in network.state_dict().items()}
    low = copy_to_quantize(network)  # over the same weights, which no method may touch
    quantize(low, scheme, rules=(), method=method, calibration=calibration)
    with torch.no_grad():
        error = float((low(x) - wanted).square().mean() / wanted.square().mean())
    assert error < 0.05
    assert all(torch.equal(value, original[name]) for name, value in network.state_dict().items())
    assert sum(isinstance(m, QuantLayer) for m in low.modules()) == 4


def test_calibrated_methods_pay_on_a_whole_network() -> None:
    network, x = model()
    calibration = calibrate(network, lambda c, s: network(x), [0], [0])
    errors = {}
    with torch.no_grad():
        for method in ("rtn", "gptq", "adaround", "svdquant:8"):
            low = copy.deepcopy(network)
            quantize(low, "w3a16", rules=(), method=method, calibration=calibration)
            errors[method] = float((low(x) - network(x)).square().mean())
    assert max(errors["gptq"], errors["adaround"], errors["svdquant:8"]) < 0.75 * errors["rtn"]


def test_smoothing_pays_where_static_scales_meet_large_channels() -> None:
    network, x = model()
    calibration = calibrate(network, lambda c, s: network(x), [0], [0])
    errors = []
    with torch.no_grad():
        for scheme in ("w8a8tensor-static", "w8a8tensor-static-smooth"):
            low = copy.deepcopy(network)
            quantize(low, scheme, rules=(), calibration=calibration)
            errors.append(float((low(x) - network(x)).square().mean()))
    assert errors[1] < errors[0]


def test_a_layer_that_cannot_carry_it_says_why() -> None:
    network, x = model()
    calibration = calibrate(network, lambda c, s: network(x), [0], [0])
    report = quantize(network, "w4a8", rules=(), method="svdquant:32", calibration=calibration)
    rows = {row.name: row for row in report.rows}
    assert "grouped" in rows["2"].reason
    assert rows["2"].bits == "w4a8"
    assert "small" in rows["7"].reason
    assert rows["7"].bits == "w4a8-smooth-r5"


@pytest.mark.parametrize("spec", ["magic", "gptq:-1", "clip:3", "smoothquant:2", "svdquant:x", "adaround:0", "rtn:1"])
def test_a_bad_method_is_refused_with_a_hint(spec: str) -> None:
    with pytest.raises(FewstepError) as caught:
        method_of(spec)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("spec", "facts"),
    [
        ("rtn", set()), ("clip", set()), ("clip:99", set()), ("brecq:7", {"reconstruct"}), ("gptq:0.1", {"calibrated"}),
        ("adaround:7", {"calibrated", "uniform"}), ("smoothquant:0.3", {"calibrated", "smooth"}),
        ("svdquant:5", {"smooth", "rank"}),
    ],
)  # fmt: skip
def test_a_method_states_the_same_facts_for_any_argument(spec: str, facts: set[str]) -> None:
    names = ("smooth", "rank", "calibrated", "uniform", "reconstruct")
    for text in {spec, spec.partition(":")[0]}:
        assert {name for name in names if getattr(method_of(text), name)} == facts


def test_block_reconstruction_says_what_it_needs() -> None:
    network, _ = model()
    with pytest.raises(FewstepError, match="runs of the whole model"):
        quantize(network, "w4a8", method="brecq:50")
    assert not any(isinstance(m, QuantLayer) for m in network.modules())


def test_calibrated_methods_ask_for_calibration() -> None:
    assert METHODS.kinds() == ["adaround", "brecq", "clip", "gptq", "rtn", "smoothquant", "svdquant"]
    for method in ("gptq", "adaround", "smoothquant"):
        with pytest.raises(FewstepError, match="calibration"):
            quantize(model()[0], "w4a8", method=method)
