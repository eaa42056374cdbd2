"""Design by reward on landscapes small enough to be known whole."""

import csv
import math

import pytest
import torch

from fewstep.cli.design import run
from fewstep.data.sequences import ScoredSequences
from fewstep.discrete import TokenLaws, enumerated_law, reveal_plan
from fewstep.errors import FewstepError, PlanError
from fewstep.jobs.designing import run_design, scorer_of
from fewstep.tasks.design import DesignSettings, best_so_far, design, fit_model, propose, steer_tokens
from fewstep.tasks.design.model import levels_of
from fewstep.tasks.design.search import Proposals
from fewstep.testing.token_chain import TokenChain, total_variation

SPACE = torch.cartesian_prod(*[torch.arange(4)] * 3)
TRUE = (torch.tensor([1, 2, 3]) == SPACE).sum(1).float() + 0.01 * torch.arange(64)
QUICK = DesignSettings(training=60, updates=3, scale=3.0)


@pytest.fixture(scope="module")
def scored():
    """Half of all 64 sequences, the best ones not among them; one measurement failed."""
    rows = TRUE.argsort()[:40][torch.randperm(40, generator=torch.Generator().manual_seed(0))[:32]]
    scores = TRUE[rows].clone()
    scores[3] = math.nan
    return ScoredSequences(SPACE[rows], scores, "ABCD")


@pytest.fixture(scope="module")
def model():
    return fit_model(ScoredSequences(SPACE, TRUE, "ABCD"), levels=3, steps=400, batch=128, width=48, rate=5e-3)


def measure(tokens):
    return TRUE[(tokens * torch.tensor([16, 4, 1])).sum(1)]


def test_levels_halve_and_their_means_rise():
    level, means = levels_of(torch.arange(64.0), 4)
    assert torch.bincount(level).tolist() == [32, 16, 8, 8]
    assert means.tolist() == [15.5, 39.5, 51.5, 59.5]
    assert len(levels_of(torch.arange(12.0), 4)[1]) == 2  # a level of one sequence tells nothing
    with pytest.raises(FewstepError, match="different scores"):
        levels_of(torch.zeros(50), 4)


def test_the_model_knows_the_law_of_letters_and_the_expected_score(model):
    law = enumerated_law(reveal_plan(model.process, 3, order="random"), TokenLaws(model.denoiser(), 3)).flatten()
    assert total_variation(law, torch.full((64,), 1 / 64, dtype=torch.float64)) < 0.15
    assert torch.corrcoef(torch.stack([model.score(SPACE), TRUE]))[0, 1] > 0.8
    blank = torch.full((1, 3), 4)
    assert float(model.score(blank)) == pytest.approx(float(TRUE.mean()), abs=0.15)
    assert float(model.value(blank, 0.0)) == pytest.approx(0, abs=1e-5)
    wanted = (model.shares * (2 * model.means).exp()).sum().log()
    assert float(model.value(blank, 2.0)) == pytest.approx(float(wanted), abs=0.3)


def test_particles_have_the_tilted_law():
    chain, count = TokenChain(length=4), 20_000
    target = chain.law * (1.5 * (chain.sequences == 0).sum(1)).exp()
    reward = lambda x: 1.5 * (x == 0).sum(1)  # noqa: E731
    found = steer_tokens(
        reveal_plan(chain.process, 16), chain.denoiser(), reward, count=count, length=4,
        generator=torch.Generator().manual_seed(0), value=reward,
    )  # fmt: skip
    own = chain.law_of(reveal_plan(chain.process, 16), chain.denoiser())
    target = own * (1.5 * (chain.sequences == 0).sum(1)).exp()
    target = target / target.sum()
    draws = chain.frequencies(chain.sequences[torch.multinomial(target, count, replacement=True)])
    assert total_variation(chain.frequencies(found.samples), target) < 3 * total_variation(draws, target)
    assert total_variation(own, target) > 0.2
    assert torch.equal(found.rewards, reward(found.samples).double())


@pytest.mark.parametrize("way", ["conditioning", "guidance", "smc", "grpo", "evolution", "random"])
def test_proposals_are_new_each_once_and_repeatable(way, scored):
    made = propose(scored, way, 8, QUICK)
    rows = set(map(tuple, made.tokens.tolist()))
    assert len(rows) == 8
    assert not rows & set(map(tuple, scored.tokens.tolist()))
    assert torch.equal(made.tokens, propose(scored, way, 8, QUICK).tokens)
    assert bool(made.expected.isnan().all()) == (way in ("evolution", "random"))
    assert made.expected.nan_to_num().tolist() == sorted(made.expected.nan_to_num().tolist(), reverse=True)
    assert made.nearest.min() >= 1


def test_a_search_finds_better_sequences_and_counts_every_query(scored):
    grown = design(scored, measure, "conditioning", rounds=2, count=8, settings=QUICK)
    assert len(grown) == 32 + 16
    assert torch.equal(grown.tokens[:32], scored.tokens)
    curve = best_so_far(grown.scores)
    assert curve[-1] > curve[31]
    assert best_so_far(torch.tensor([1.0, math.nan, 3.0])).tolist() == [1, 1, 3]


def test_far_proposals_are_said_to_be_far(scored):
    near = Proposals(SPACE[:2], torch.tensor([1.0, 1.0]), torch.ones(2), 1.0, 0)
    assert near.warnings(scored) == []
    far = Proposals(SPACE[:2], torch.tensor([50.0, 50.0]), 3 * torch.ones(2), 3.0, 1)
    assert [w.split()[0] for w in far.warnings(scored)] == ["off", "the", "1"]
    close = ScoredSequences(SPACE[:8], TRUE[:8], "ABCD")  # neighbours of each other; random ones are not
    assert propose(close, "random", 20, QUICK).off_support > 1.25


def test_the_command_writes_proposals_and_asks_a_scorer(tmp_path, scored, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"{w},{s}" for w, s in zip(scored.words(), scored.scores.tolist(), strict=True)]
    (tmp_path / "m.csv").write_text("\n".join(["sequence,score", *lines]))
    (tmp_path / "assay.py").write_text(
        "def score(words):\n    return [float('nan') if w[0] == 'A' else float(w.count('D')) for w in words]\n"
    )
    run("m.csv", way="evolution", count=6, out=tmp_path / "first", scorer="")
    rows = list(csv.DictReader((tmp_path / "first" / "proposals.csv").open()))
    assert len(rows) == 6
    assert {row["measured"] for row in rows} == {""}
    with pytest.raises(FewstepError, match="exists already"):
        run("m.csv", way="evolution", count=6, out=tmp_path / "first", scorer="")
    found = run_design(
        "m.csv", "random", tmp_path / "second", count=6, rounds=2, settings=QUICK, scorer="assay.py:score"
    )
    rows = list(csv.DictReader((tmp_path / "second" / "proposals.csv").open()))
    assert [row["round"] for row in rows] == ["0"] * 6 + ["1"] * 6
    assert found["failed"] == sum(row["measured"] == "" for row in rows) > 0
    for row in rows:
        assert row["measured"] == ("" if row["sequence"][0] == "A" else str(row["sequence"].count("D")))
    page = (tmp_path / "second" / "report.html").read_text()
    assert rows[0]["sequence"] in page


def test_mistakes_are_named(tmp_path, scored):
    with pytest.raises(FewstepError, match="unknown way"):
        propose(scored, "guidence", 1, QUICK)
    with pytest.raises(FewstepError, match="fewer sequences"):
        propose(scored, "random", 60, QUICK)
    with pytest.raises(FewstepError, match="at least one"):
        propose(scored, "random", 0, QUICK)
    none = ScoredSequences(SPACE, torch.full((64,), math.nan), "ABCD")
    with pytest.raises(FewstepError, match="no sequence has a finite score"):
        fit_model(none)
    with pytest.raises(FewstepError, match="no such scorer"):
        scorer_of("absent.py:score", "AB")
    (tmp_path / "s.py").write_text("def score(words):\n    return 1.0\n")
    with pytest.raises(FewstepError, match="list of one number"):
        scorer_of(f"{tmp_path}/s.py:score", "ABCD")(SPACE[:2])
    with pytest.raises(FewstepError, match="no function"):
        scorer_of(f"{tmp_path}/s.py:other", "ABCD")
    chain = TokenChain()
    plan, g = reveal_plan(chain.process, 2), torch.Generator()
    with pytest.raises(FewstepError, match="several particles"):
        steer_tokens(plan, chain.denoiser(), lambda x: x.sum(1), count=1, length=6, generator=g)
    with pytest.raises(FewstepError, match="does not fit"):
        steer_tokens(plan, chain.denoiser(), lambda x: x.sum(1) * math.nan, count=4, length=6, generator=g)
    other = reveal_plan(chain.process, 2, order="random")
    with pytest.raises(PlanError, match="ancestral"):
        steer_tokens(other, chain.denoiser(), lambda x: x.sum(1), count=4, length=6, generator=g)
