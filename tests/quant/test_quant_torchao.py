import pytest
import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.quant import kernels, native, quantize
from tests.quant import load_float


def pair(**options: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 16, bias=False))
    second = nn.Sequential(nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 16, bias=False))
    second.load_state_dict(first.state_dict())
    quantize(first, "w8a8", backend="fewstep")
    quantize(second, "w8a8", **options)
    return first, second


def sqnr(reference: torch.Tensor, other: torch.Tensor) -> float:
    return float(10 * torch.log10(reference.square().sum() / (reference - other).square().sum()))


needs_exact = pytest.mark.skipif(not kernels.int8_product_exact(), reason="this CPU's int8 product saturates")


@needs_exact
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchao_and_our_kernel_agree(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pair(backend="torchao")
    calls = []
    real = kernels.torchao_weight
    monkeypatch.setattr("fewstep.quant.layer.torchao_weight", lambda *a: calls.append(1) or real(*a))
    x = torch.randn(3, 5, 48)
    with torch.no_grad():
        expected = ours(x)
        assert not calls
        output = theirs(x.to(dtype))
    assert len(calls) == 2
    assert output.dtype == dtype
    assert sqnr(expected, output.float()) > 35  # its activation step is 127.5 codes to the maximum, ours 127


def test_torchao_stores_what_we_store_and_shares_memory() -> None:
    ours, theirs = pair(backend="torchao")
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))


@needs_exact
def test_torchao_follows_replaced_weights() -> None:
    ours, theirs = pair(backend="torchao")
    x = torch.randn(4, 48)
    with torch.no_grad():
        theirs(x)
        for layer in (theirs[0], ours[0]):
            load_float(layer, torch.ones(32, 48))
        assert sqnr(ours(x), theirs(x)) > 35


def test_gradient_search_falls_back_to_the_kernel_that_has_a_gradient() -> None:
    ours, theirs = pair(backend="torchao")
    gradients = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        x = torch.randn(4, 48, requires_grad=True)
        model.requires_grad_(False)(x).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_reports_name_the_kernel_and_its_reason() -> None:
    model = nn.Sequential(nn.Linear(128, 256))
    auto = quantize(model, "w8a8").rows[0]
    if native.available():
        assert (auto.kernel, auto.reason) == ("oneDNN int8", "")
    if kernels.int8_product_exact():
        forced = quantize(nn.Sequential(nn.Linear(16, 16)), "w8a8", backend="torchao").rows[0]
        assert forced.kernel == "torchao int8 dynamic"
    assert kernels.use_torchao("auto", quantized := kernels.Scheme(8, 8), linear=True, on_cuda=True)
    assert not kernels.use_torchao("auto", quantized, linear=False, on_cuda=True)
    assert not kernels.use_torchao("torchao", kernels.Scheme(4, 8, 32), linear=True, on_cuda=True)


def test_an_inexact_int8_product_is_never_used_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "int8_product_exact", lambda: False)
    ours, theirs = pair(backend="torchao")
    x = torch.randn(3, 48)
    with torch.no_grad():
        assert torch.equal(theirs(x), ours(x))
    row = quantize(nn.Sequential(nn.Linear(16, 16)), "w8a8", backend="torchao").rows[0]
    assert row.kernel != "torchao int8 dynamic"
    assert "saturates" in row.reason


def test_the_probe_notices_a_product_that_saturates(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Pairs of products clipped to 16 bit, as instructions before VNNI do after shifting one side to unsigned."""
        products = (left.long() + 128)[:, :, None] * right.long()[None]
        pairs = products.view(left.shape[0], -1, 2, right.shape[1]).sum(2).clamp(-(2**15), 2**15 - 1)
        return (pairs.sum(1) - 128 * right.long().sum(0)).int()

    kernels.int8_product_exact.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "_int_mm", saturating)
        assert not kernels.int8_product_exact()
        kernels.int8_product_exact.cache_clear()
        patch.setattr(torch, "_int_mm", lambda a, b: (a.long() @ b.long()).int())
        assert kernels.int8_product_exact()
    kernels.int8_product_exact.cache_clear()


def test_asking_for_torchao_without_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "torchao_installed", lambda: False)
    with pytest.raises(FewstepError, match="pip install"):
        quantize(nn.Sequential(nn.Linear(4, 4)), "w8a8", backend="torchao")
    assert quantize(nn.Sequential(nn.Linear(4, 4)), "w8a8").rows[0].quantized
