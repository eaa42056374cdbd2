"""An editor begins as its network, and two unrolled calls are differentiated through both."""

import pytest
import torch

from fewstep.alignment.presets import alignment
from fewstep.denoiser import Backbone, Denoiser
from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Batch, Networks
from fewstep.distillation.engine import assemble
from fewstep.distillation.rollout import two_calls
from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.tasks.editing import Editor, without
from fewstep.testing.digits import DigitNetwork
from tests.pipelines import tiny_pipelines as tiny

FLOW, CHAIN = RectifiedFlow(), Chain((1.0, 0.6))


def test_an_editor_begins_as_the_network_and_learns_to_read_its_source():
    unet = tiny.unet()
    x, source, words = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.randn(2, 3, 32)
    editor = Editor(unet)
    plain = Backbone(unet)(x, torch.tensor(500), encoder_hidden_states=words)
    given = {"encoder_hidden_states": words, "source": source}
    torch.testing.assert_close(Backbone(editor)(x, torch.tensor(500), **given), plain)
    torch.testing.assert_close(without(Backbone(unet))(x, torch.tensor(500), **given), plain)
    Backbone(editor)(x, torch.tensor(500), **given).square().mean().backward()
    assert bool(editor.network.conv_in.weight.grad[:, 4:].any())
    assert unet.conv_in.weight.shape[1] == 4  # the network itself stays
    with pytest.raises(FewstepError, match="no such layer"):
        Editor(unet, "first")
    with pytest.raises(FewstepError, match="cannot read a second picture"):
        Editor(unet, "mid_block")


@pytest.mark.parametrize("fresh", [0.0, 1.0])
def test_two_calls_are_the_formula_and_their_gradient_passes_both(fresh):
    """G(x, t) = c x: clean = c (alpha c e + sigma e') and its derivative 2 c alpha e + sigma e'."""
    c = torch.tensor(0.7, requires_grad=True)
    student = Denoiser(lambda x, time: c * x, FLOW, Prediction("sample"))
    made = two_calls(Chain(CHAIN.times, fresh=fresh))(
        Networks(student, student), Batch(3, (2,)), torch.Generator().manual_seed(5)
    )
    generator = torch.Generator().manual_seed(5)
    e = torch.randn(3, 2, generator=generator)
    assert torch.equal(torch.randint(1, 2, (3,), generator=generator), made.index)
    again = e if fresh == 0 else torch.randn(3, 2, generator=generator)
    torch.testing.assert_close(made.clean, c.detach() * (0.4 * c.detach() * e + 0.6 * again))
    made.clean.sum().backward()
    torch.testing.assert_close(c.grad, (2 * c.detach() * 0.4 * e + 0.6 * again).sum())


def test_the_student_reads_the_source_and_the_score_networks_the_wanted_caption_alone():
    """One step of NP-Edit on a small network: the judge's gradient reaches the student, the critic learns beside."""
    network = DigitNetwork(16, 1, classes=3)
    asked = []

    def teacher(x, time, **condition):
        asked.append(set(condition))
        return network(x, time, **condition)

    def batches(generator):
        kinds, source = torch.zeros(4, dtype=torch.long), torch.randn(4, 64, generator=generator)
        return Batch(4, (64,), None, {"class_labels": kinds, "source": source})

    made = alignment("np_edit", FLOW, CHAIN, ratio=1)
    engine = assemble(
        made, Denoiser(without(teacher), FLOW, Prediction("velocity")), network,
        lambda m: m if isinstance(m, Editor) else without(m), batches, (64,), student=Editor(network, "first"),
        reward=lambda x, batch: -(x - batch.condition["source"]).square().mean(1),
    )  # fmt: skip
    seen = set()
    for names, loss in engine.turns(0, 1, torch.Generator().manual_seed(0)):
        loss()[0].backward()
        seen |= set(names)
    assert seen == {"student", "critic"}
    assert asked
    assert all(names == {"class_labels"} for names in asked)
    with pytest.raises(FewstepError, match="nothing is trained"):
        alignment("np_edit", FLOW, CHAIN, judging=0, matching=0)
    assert alignment("np_edit", FLOW, CHAIN, matching=0).critic is None
    assert "reward" not in alignment("np_edit", FLOW, CHAIN, judging=0).needs
