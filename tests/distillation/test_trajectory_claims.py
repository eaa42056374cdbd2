"""Claims of more than one training: each stage gets its share, its bed and its start; how straight a flow is."""

import dataclasses

import pytest
import torch
from claims import mlcm, yonos
from claims.chain import Chain, Flow, after, straightness
from claims.claim import Arm

from fewstep.distillation.core import Batch, Networks
from fewstep.distillation.method import method
from fewstep.distillation.part import made_by
from fewstep.distillation.parts import previous_grid_point
from fewstep.testing.digits import DigitBed, DigitJudge, DigitNetwork, class_condition
from fewstep.testing.kernel_digits import load_digits


@pytest.fixture(scope="module")
def bed():
    """An untrained one."""
    torch.manual_seed(0)
    teacher, judge = DigitNetwork(16), DigitJudge()
    torch.nn.init.normal_(teacher.last.weight, std=0.1)
    return DigitBed(load_digits(), teacher.eval().requires_grad_(False), judge.eval().requires_grad_(False))


def reflow(process, updates):
    return method("reflow", process)


def instaflow(process, updates):
    return method("instaflow", process)


def stored(bed):
    return bed.stored(count=64, points=2)


class Spy(Arm):
    """Says what it was given instead of training."""

    def _trained(self, bed, method, updates, batch, seed, **settings):
        seen.append((updates, self.bed(bed), settings))
        return bed.model(bed.fresh(8, 1))


class SpyChain(Chain, Spy):
    """The second one."""


seen = []


def test_the_second_training_begins_with_the_first_one_s_student_on_its_trajectories(bed):
    seen.clear()
    chain = SpyChain(instaflow, bed=stored, first=Spy(reflow, bed=stored), part=0.25)
    chain.train(bed, 40, 8, 0, learning_rate=1e-3, momentum=0.5)
    (before, first, _), (rest, second, settings) = seen
    assert (before, rest) == (10, 30)
    assert settings == {"learning_rate": 1e-3, "momentum": 0.5}
    assert first.network is bed.network
    assert second.network.width == 8  # the student of the first
    generator = torch.Generator().manual_seed(99)
    states, times = second.walk(1.0, second.store[2], generator, 8)
    assert torch.equal(second.store[0][:, -1], states[-1])  # its own trajectories, not the teacher's
    assert not torch.allclose(second.store[0][:, -1], first.store[0][:, -1])
    assert times[0] == bed.process.noisiest


def test_a_chain_without_a_store_of_its_own_keeps_the_first_one_s(bed):
    seen.clear()
    chain = SpyChain(reflow, first=Spy(reflow, bed=stored))
    chain.train(bed, 8, 8, 0, learning_rate=1e-3)
    assert seen[1][1].store is seen[0][1].store or torch.equal(seen[1][1].store[0], seen[0][1].store[0])


def test_a_chain_costs_the_mean_of_its_parts(bed):
    """Two-step distillation costs more than reflow: 3 passes a sample each, and the arm's own share between."""
    cheap, dear = Arm(reflow, bed=stored), Arm(lambda p, n: method("mlcm", p, guidance=1.0))
    costs = [arm.passes(bed, 16) for arm in (cheap, dear)]
    assert costs[0] == 3 * 16
    assert costs[1] > 2 * costs[0]
    chain = Chain(dear.make, first=dataclasses.replace(cheap), part=0.25)
    chain = dataclasses.replace(chain, bed=lambda bed: dataclasses.replace(bed, store=None))
    assert chain.passes(bed, 16) == pytest.approx(0.25 * costs[0] + 0.75 * costs[1], rel=0.05)  # random times


class Straight(torch.nn.Module):
    """The velocity of a flow with straight paths (`bend` 0), or of those whose velocity grows linearly in time."""

    def __init__(self, bend):
        super().__init__()
        self.bend = bend

    def forward(self, x, time, class_labels=None):
        return torch.ones_like(x) * (1 + self.bend * (time[:, None] / 1000 - 0.5))


def test_straightness_against_a_closed_form(bed):
    """v = 1 + b (t - 1/2): |v - mean|^2 averages b^2 / 12 over midpoints, and Euler's grid adds its own."""
    assert straightness(bed, bed.model(Straight(0.0))) < 1e-10
    steps = 64
    grid = torch.arange(steps, 0, -1).double() / steps
    for bend in (0.5, 1.0):
        whole = 1 + bend * (float(grid.mean()) - 0.5)
        wanted = bend**2 * float(grid.var(correction=0)) / whole**2
        assert straightness(bed, bed.model(Straight(bend)), steps) == pytest.approx(wanted, rel=1e-4)


def test_a_flow_s_last_draw_says_how_straight_it_is(bed):
    found = Flow(reflow, share=0.0).train(bed, 0, 8, 0)
    assert found[""]["straightness"] == pytest.approx(straightness(bed, bed.teacher()))


def test_mid_training_gives_way_at_its_share(bed):
    """The stored regression acts first, alone; then MeanFlow, alone."""
    made = after(method("cmt", bed.process), method("mean_flow", bed.process, teacher=True), 0.5)
    assert made.needs == {"store", "data"}
    assert made.two_times
    batch = stored(bed).batches(8)(torch.Generator().manual_seed(0))
    student = bed.model(bed.start(), two_times=True)
    networks, (term,) = Networks(student, bed.teacher()), made.terms.values()
    for step, stage in ((0, 0.0), (49, 0.0), (50, 1.0)):
        given: Batch = dataclasses.replace(batch, step=step, steps=100)
        _, numbers = term(networks, given, None, torch.Generator().manual_seed(0))
        assert float(numbers["stage"]) == stage
    assert class_condition(torch.tensor([1]))["class_labels"].tolist() == [1]


def test_options_of_presets_that_the_claims_compare(bed):
    """MLCM within segments alone, on data or without; SlimFlow's one step from pairs alone."""
    process = bed.process
    alone = method("mlcm", process, guidance=1.0, first_stage=1.0)
    other = method("mlcm", process, guidance=1.0, first_stage=0.0)
    whole = method("mlcm", process, guidance=1.0).terms["consistency"].stages
    assert alone.terms["consistency"].stages == ((1.0, whole[0][1]),)
    assert other.terms["consistency"].stages == whole[1:]
    assert alone.needs == frozenset()
    assert method("mlcm", process, guidance=1.0, data=True).needs == {"data"}
    batch = dataclasses.replace(stored(bed).batches(8)(torch.Generator().manual_seed(0)), step=9, steps=10)
    networks = Networks(bed.model(bed.start()), bed.teacher(), target=bed.teacher())
    for two_steps in (0.0, 1.0, 2.0):
        made = method("slim_flow", process, reflow_steps=5, distil_steps=5, two_steps=two_steps)
        loss, numbers = made.terms["slim_flow"](networks, batch, None, torch.Generator().manual_seed(0))
        second = numbers.get("two_steps", torch.tensor(0.0))
        assert (float(second) > 0) is (two_steps > 0)
        assert float(loss.detach() - second) == pytest.approx(float(numbers["distance"]))
    start = dataclasses.replace(batch, step=0)
    for anneal, fresh in ((0.0, False), (0.5, True)):
        made = method("slim_flow", process, reflow_steps=5, distil_steps=5, anneal=anneal)
        found = made.terms["slim_flow"].stages[0][1].source.anneal
        assert ((found if isinstance(found, float) else found(start.step, start.steps)) > 0) is fresh


def test_a_student_of_segments_alone_is_never_asked_to_jump_to_the_data_and_back(bed):
    """Fresh noise between calls needs a clean prediction, which consistency within segments does not teach."""
    for name, arm in mlcm.CLAIM.arms.items():
        if not arm.share:
            continue
        made = arm.make(bed.process, 400)
        alone = [until for until, _ in made.terms["consistency"].stages] == [1.0] if name != "LCM" else False
        within = alone and made_by(made.terms["consistency"].stages[0][1].times.end, previous_grid_point)
        assert {made.steps.fresh, *(steps.fresh for steps in arm.draws(bed.process).values())} == {float(not within)}
        assert within is name.startswith("segments")


def test_the_easier_task_s_teacher_sees_what_the_student_cannot(bed, monkeypatch):
    """Blurring twice is blurring once at the larger factor, so the targets' mean is right; both see the same state."""
    digits = bed.data.test[:5]
    assert torch.allclose(yonos.blurred(yonos.blurred(digits, yonos.EASY), yonos.HARD), yonos.blurred(digits, 4))
    assert len(yonos.blurred(digits, yonos.HARD)[0].unique()) <= 4
    monkeypatch.setattr(yonos, "TEACHER", 3)
    yonos.scaled.cache_clear()
    hard = yonos.scaled(bed)
    batch = hard.batches(16)(torch.Generator().manual_seed(0))
    assert torch.equal(batch.condition["teacher.low"], yonos.blurred(batch.clean, yonos.EASY))
    assert torch.equal(batch.condition["low"], yonos.blurred(batch.clean, yonos.HARD))
    arm = yonos.CLAIM.arms["scale distilled"]
    assert arm.passes(bed, 16) == 4 * 16  # the teacher is counted
    assert yonos.CLAIM.arms["direct"].passes(bed, 16) == 3 * 16
    truth = bed.data.test.repeat(yonos.GROUPS, 1)
    assert hard.measures(truth, bed.asked())["error"] == 0
    assert hard.measures(truth + 0.5, bed.asked())["error"] == pytest.approx(0.5)
