"""First, last and conditioning layers of networks with names of their own, found in one call."""

import pytest
import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.quant import quantize
from fewstep.quant.roles import roles_of
from tests.pipelines import tiny_pipelines as tiny


class Guided(nn.Module):
    """A small network with names as in guided-diffusion, a skip connection, and values written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))
        self.entry, self.middle = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.shift, self.late = nn.Linear(16, 8), nn.Linear(16, 8)
        self.merge, self.out = nn.Conv2d(11, 8, 3, padding=1), nn.Sequential(nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, x, t):
        e = self.emb(torch.cos(t[:, None] * torch.arange(8)))
        h = self.entry(x)
        h = h + self.middle(torch.relu(h) + self.shift(e)[:, :, None, None])
        held = torch.zeros(len(x), 11, *x.shape[2:])
        held[:, :8] = h * self.late(e)[:, :, None, None]
        held[:, 8:] = x
        return self.out(self.merge(held))


CALL = ((torch.randn(2, 3, 8, 8), torch.tensor([1.0, 2.0])), {})


def test_roles_are_those_of_the_data_flow():
    found = roles_of(Guided(), CALL)
    assert found == {"first": ("entry",), "last": ("out.1",), "conditioning": ("emb.0", "emb.2")}
    args, (x, t) = {}, CALL[0]
    assert roles_of(Guided(), ((), {"t": t, "x": x, **args})) == found


def test_names_of_diffusers_say_the_same():
    call = ((torch.ones(1, 4, 8, 8), 10, torch.ones(1, 5, 32)), {})
    assert roles_of(tiny.unet(), call) == {
        "first": ("conv_in",),
        "last": ("conv_out",),
        "conditioning": ("time_embedding.linear_1", "time_embedding.linear_2"),
    }


def test_a_network_with_other_names_gets_the_bits_or_is_told():
    report = quantize(Guided(), "w4a8")
    assert report.unmatched == ("first", "last", "conditioning")
    assert "No first and last and conditioning layer was found" in report.summary()
    told = quantize(Guided(), "w4a8", example=CALL)
    bits = {row.name: row.bits for row in told.rows}
    assert bits["entry"] == bits["out.1"] == "w8a8"
    assert bits["emb.0"] == bits["emb.2"] == "w8a16"
    assert bits["middle"] == bits["shift"] == bits["merge"] == "w4a8"
    assert told.unmatched == ()
    assert "example=" not in told.summary()
    assert quantize(tiny.unet(), "w4a8").unmatched == ()


def test_no_hook_stays_and_a_call_without_a_state_is_refused():
    model = Guided()
    roles_of(model, CALL)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(FewstepError, match="no state"):
        roles_of(model, ((), {"t": CALL[0][1]}))
