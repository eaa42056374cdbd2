"""Every alignment method trains in the engine of the distillations, alone and jointly."""

import dataclasses
import pickle

import pytest
import torch

from fewstep.alignment.presets import ALIGNMENTS, alignment
from fewstep.distillation.chain import Chain, evenly
from fewstep.distillation.engine import assemble
from fewstep.distillation.part import replaced
from fewstep.errors import FewstepError, NonFiniteError
from fewstep.testing.toy import PointNetwork, Toy

TOY = Toy()
CHAIN = evenly(TOY.process, 3)


def batches(size):
    draw = TOY.batches(size)
    return lambda generator: dataclasses.replace(b := draw(generator), rejected=b.clean.flip(0))


def engine_of(name, reward=lambda x, _: x[:, 0], chain=CHAIN, size=64, **options):
    torch.manual_seed(0)
    made = alignment(name, TOY.process, chain, **{**({"blur": True} if name == "nft" else {}), **options})
    return assemble(made, TOY.teacher(), PointNetwork(), lambda m: m, batches(size), TOY.shape, reward=reward)


def trained(engine, steps, rate=1e-3):
    """Mean of the first coordinate of the student's samples before and after."""
    optimizers = {name: torch.optim.Adam(m.parameters(), rate) for name, m in engine.modules.items()}

    def drawn():
        with torch.no_grad():
            noise = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
            return engine.method.steps.sample(engine.networks.student, noise, None, torch.Generator().manual_seed(2))

    before = drawn()
    for step in range(steps):
        for names, loss in engine.turns(step, steps, torch.Generator().manual_seed(step)):
            loss()[0].backward()
            for name in names:
                optimizers[name].step()
                optimizers[name].zero_grad()
        engine.after(step + 1)
    return float(drawn()[:, 0].mean() - before[:, 0].mean())


@pytest.mark.parametrize("name", ["pso", "step_dpo", "grpo", "refl", "draft", "nft"])
def test_a_reward_rises(name):
    assert trained(engine_of(name), 25, 2e-3) > 0.03


@pytest.mark.parametrize("policy", ["pso", "grpo", "refl", "pso_offline"])
def test_any_of_them_runs_by_turns_with_a_distillation(policy):
    engine = engine_of("joint", policy=policy, ratio=2)
    seen = []
    for step in range(3):
        turns = [(names, loss()) for names, loss in engine.turns(step, 3, torch.Generator().manual_seed(step))]
        student = turns[0][1]
        seen.append([name for name, value in student[1].items() if "/" not in name and float(value) != 0])
        student[0].backward()
        assert {names[0] for names, _ in turns} == {"student", "critic"}
        assert any(p.grad is not None and bool(p.grad.any()) for p in engine.modules["student"].parameters())
        engine.modules["student"].zero_grad()
    assert all("score" not in names for names in seen[:2])
    assert "score" in seen[2]
    assert not any(policy in name for name in seen[2])


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_methods_can_be_written_out_and_pickled(name):
    made = engine_of(name).method
    assert " at 0x" not in made.written()
    assert pickle.loads(pickle.dumps(made)) == made
    assert set(ALIGNMENTS[name].options) >= {"beta"} or name in ("grpo", "refl", "draft", "joint", "np_edit")


def test_pictures_against_own_draws_are_pairs_or_as_published_plain_fine_tuning():
    assert engine_of("pso_dreambooth").method.terms == engine_of("pso_offline").method.terms
    published = engine_of("pso_dreambooth", published=True)
    assert published.networks.reference is None
    assert published.method.terms["pairs"].beta == 5.0


def test_the_reference_stays_where_the_student_began():
    engine = engine_of("pso")
    start = [p.clone() for p in engine.modules["student"].parameters()]
    trained(engine, 3)
    kept = list(engine.networks.reference.network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(start, kept, strict=True))
    assert not torch.equal(start[0], next(engine.modules["student"].parameters()))


def test_draft_reaches_back_so_many_calls():
    """The gradient of the reward through one, two and all calls differs; a chain of K calls has no more."""
    found = []
    for calls in (1, 2, 3, 9):
        engine = engine_of("draft", calls=calls)
        _, loss = next(engine.turns(0, 1, torch.Generator().manual_seed(0)))
        loss()[0].backward()
        found.append(
            torch.cat([p.grad.flatten() for p in engine.modules["student"].parameters() if p.grad is not None])
        )
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[1], found[2])
    assert torch.equal(found[2], found[3])


def test_mistakes_are_named():
    deterministic = replaced_chain = Chain(CHAIN.times, fresh=0.0)
    with pytest.raises(FewstepError, match=r"deterministic(.|\n)*eta=0.5"):
        engine_of("grpo", chain=deterministic)
    engine_of("grpo", chain=replaced_chain, eta=0.5)
    with pytest.raises(FewstepError, match=r"refl or draft"):
        engine_of("pso", chain=Chain((1.0,)))
    with pytest.raises(FewstepError, match="blurs a few-step student"):
        alignment("nft", TOY.process, CHAIN)
    with pytest.raises(FewstepError, match="unknown alignment method"):
        alignment("pos", TOY.process, CHAIN)
    with pytest.raises(FewstepError, match="no option"):
        alignment("pso", TOY.process, CHAIN, bta=3)
    with pytest.raises(FewstepError, match=r"needs reward(.|\n)*a function of pictures"):
        engine_of("pso", reward=None)
    with pytest.raises(FewstepError, match="needs a critic|cannot be the policy"):
        engine_of("joint", policy="re_dmd")
    with pytest.raises(NonFiniteError, match="reward is NaN"):
        trained(engine_of("pso", reward=lambda x, _: x[:, 0] / 0 * 0), 1)
    with pytest.raises(FewstepError, match="gives no gradient"):
        trained(engine_of("refl", reward=lambda x, _: x[:, 0].detach()), 1)
    assert replaced(engine_of("pso").method.terms["pairs"], beta=1.0).beta == 1.0
