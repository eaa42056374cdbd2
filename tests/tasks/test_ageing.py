"""Ageing: the start by need, what keeps the person, and who has an age."""

import pytest
import torch
from torch.nn import functional as F

import fewstep as fs
from fewstep.data.emoji import emoji_prompts
from fewstep.data.instructions import aged_caption
from fewstep.errors import FewstepError
from fewstep.tasks.editing import aged, first_row, reweighted_singular_values, rotated_embedding, strength_by_need
from tests.pipelines import tiny_pipelines as tiny


def test_the_start_by_need_is_the_plans_row(tmp_path):
    """The level that the further the ages are apart, the noisier is: the last, second or third last of four rows."""
    plan = fs.plan_of(tiny.stable_diffusion(tmp_path), 4)
    rows = {apart: first_row(plan, strength_by_need(40, 40 + apart)) for apart in (0, 5, -5, 6, 20, -20, 21, 60)}
    assert rows == {0: 3, 5: 3, -5: 3, 6: 2, 20: 2, -20: 2, 21: 1, 60: 1}
    assert strength_by_need(40, 65, (5, 30)) == 0.5
    levels = [float(plan.rows[row].sigma) for row in (3, 2, 1)]
    assert levels == sorted(levels)
    with pytest.raises(FewstepError, match="rising"):
        strength_by_need(1, 2, (20, 5))


def test_reweighting_brings_out_what_the_columns_share():
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(50, 1, dtype=torch.float64, generator=generator)
    features = shared + 0.5 * torch.randn(50, 4, dtype=torch.float64, generator=generator)
    before = torch.linalg.svdvals(features)
    done = reweighted_singular_values(features, alpha=0.3, beta=1.2)
    torch.testing.assert_close(torch.linalg.svdvals(done), 1.2 * before * (0.3 * before).exp())
    cosine = [float(F.cosine_similarity(x[:, 0], shared[:, 0], dim=0)) for x in (features, done)]
    assert cosine[1] > cosine[0] + 0.05
    torch.testing.assert_close(reweighted_singular_values(features, 0.0, 1.0), features)


def test_an_embedding_moves_halfway_along_the_arc_of_the_texts():
    i, now, wanted = F.normalize(torch.randn(3, 5, 8, dtype=torch.float64), dim=-1)
    omega = (now * wanted).sum(-1, keepdim=True).arccos()
    middle = ((omega / 2).sin() * now + (omega / 2).sin() * wanted) / omega.sin()
    found = rotated_embedding(i, now, wanted)
    torch.testing.assert_close(found, F.normalize(i + middle - now, dim=-1))
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(rotated_embedding(i, now, now), i)
    torch.testing.assert_close(rotated_embedding(i, i, wanted, "vector"), wanted)
    with pytest.raises(FewstepError, match="unknown mode"):
        rotated_embedding(i, now, wanted, "angel")


def test_ages_of_captions():
    known = set(emoji_prompts("all"))
    assert aged_caption("woman with dark skin tone", 60, known) == (35, "older woman with dark skin tone")
    assert aged_caption("boy", 30, known) == (10, "man")
    assert aged_caption("older adult", 2, known) == (75, "baby")
    assert aged_caption("baby with light skin tone", 9, known) == (1, "child with light skin tone")
    assert aged_caption("red apple", 60, known) is None
    assert aged_caption("woman and rocket", 60, known) is None


def test_another_model_is_told_the_age_and_gets_the_published_prompt(tmp_path):
    pipe, picture = tiny.stable_diffusion(tmp_path), torch.rand(3, 16, 16)
    how = aged(pipe, picture, 60, now=30, who="woman")
    assert (how.prompt, how.strength) == ("a face image of a 60 years old woman", 0.75)
    torch.testing.assert_close(
        fs.age(pipe, [picture], 60, now=30, who="woman")[0], fs.edit(pipe, [picture], how.prompt)[0]
    )
    for years, now, says in ((60, None, "not known"), (101, 30, "no such age"), (-1, 30, "no such age")):
        with pytest.raises(FewstepError, match=says):
            aged(pipe, picture, years, now=now)
