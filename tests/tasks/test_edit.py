"""Editing from any row of any plan: against diffusers' image-to-image and the picture given, and what is refused."""

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import fewstep as fs
from fewstep.cli import app
from fewstep.data.emoji import emoji_prompts, load_emoji
from fewstep.data.instructions import edit_pairs, edited_caption, instructions_for, is_instruction
from fewstep.errors import FewstepError
from fewstep.pipelines import PipelineSampler
from fewstep.pipelines.from_pictures import encode_pictures, run_from
from fewstep.report.images import to_pil
from fewstep.tasks.editing import Edit, caption_of, edit_picture, first_row, prompt_of, working_size
from tests.pipelines import tiny_pipelines as tiny


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return tiny.stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def picture():
    return torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_the_start_is_a_row_of_the_plan_for_every_strength(pipe):
    plan = fs.plan_of(pipe, 4)
    assert [first_row(plan, s) for s in (0, 0.25, 0.4, 0.5, 0.75, 0.99, 1)] == [None, 3, 3, 2, 1, 1, 0]
    assert [first_row(fs.plan_of(pipe, 10), k / 10) for k in range(1, 11)] == list(range(9, -1, -1))
    for strength, says in ((0.2, "less than one"), (-0.1, "between 0 and 1"), (1.1, "between"), (float("nan"), "betw")):
        with pytest.raises(FewstepError, match=says):
            first_row(plan, strength)


@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("strength", [0.25, 0.75])
def test_an_edit_is_that_of_diffusers_image_to_image(kind, strength, pipe):
    """The same noise, level and steps, for a noise-preserving scheduler, one in sigma space and one with a memory."""
    import diffusers

    scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
    other = diffusers.StableDiffusionImg2ImgPipeline(**{**pipe.components, "scheduler": scheduler})
    other.set_progress_bar_config(disable=True)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    wanted = other("a cat", image=z, strength=strength, num_inference_steps=4, guidance_scale=1.0, output_type="latent",
                   generator=[torch.Generator().manual_seed(7)]).images  # fmt: skip
    plan = fs.plan_of(_with(pipe, scheduler), 4)
    first = first_row(plan, strength)
    found = run_from(PipelineSampler(pipe), plan, z, ["a cat"], [7], first=first, output="latent")
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)


def _with(pipe, scheduler):
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(**{**pipe.components, "scheduler": scheduler}, requires_safety_checker=False)


def test_at_zero_strength_the_picture_comes_back_exactly(pipe, picture):
    assert torch.equal(fs.edit(pipe, [picture], "b dog", strength=0)[0][0], picture)


@pytest.mark.parametrize("solver", ["", "dpm_solver_pp_2m", "lcm"])
def test_what_the_mask_does_not_free_comes_back_exactly(solver, pipe, picture):
    mask = torch.zeros(16, 16)
    mask[4:10, 6:12] = 1
    plan = fs.plan_of(pipe, 4, solver=solver)
    found = edit_picture(PipelineSampler(pipe), plan, picture, Edit("b dog"), seeds=[0, 1], mask=mask)
    assert torch.equal(found[:, :, mask == 0], picture[:, mask == 0].expand(2, -1, -1))
    assert float((found[0] - found[1])[:, mask == 1].abs().mean()) > 1e-3
    z = encode_pictures(pipe, picture[None])
    known = torch.zeros(1, 8, 8)
    known[:, :4] = 1
    kept = run_from(PipelineSampler(pipe), plan, z, ["b dog"], [0], first=1, known=known, output="latent")
    torch.testing.assert_close(kept[:, :, :4], z[:, :, :4], atol=1e-4, rtol=1e-4)
    free = run_from(PipelineSampler(pipe), plan, z, ["b dog"], [0], first=1, output="latent")
    assert float((free - z)[:, :, :4].abs().mean()) > 1e-2  # the test could see it


def test_a_seed_is_one_edit_and_pictures_keep_their_size(pipe):
    pictures = [torch.rand(3, 20, 33), torch.rand(1, 16, 16)]
    both = fs.edit(pipe, pictures, "b dog", seeds=[4, 5], strength=0.5)
    assert [tuple(x.shape) for x in both] == [(2, 3, 20, 33), (2, 3, 16, 16)]
    alone = fs.edit(pipe, pictures[:1], "b dog", seeds=[5], strength=0.5)[0]
    torch.testing.assert_close(alone[0], both[0][1], atol=1e-5, rtol=1e-5)
    assert working_size(512, 512, 64, 16) == (64, 64)
    assert working_size(300, 1200, 64, 16) == (32, 128)
    assert min(working_size(1, 10_000, 64, 16)) == 16


@pytest.mark.parametrize(
    ("given", "options", "says"),
    [
        (torch.rand(4, 8, 8), {}, "a picture is"),
        (torch.full((3, 8, 8), float("nan")), {}, "NaN"),
        (torch.rand(3, 8, 8), {"mask": torch.ones(4, 4)}, "another size"),
        (torch.rand(3, 8, 8), {"mask": torch.zeros(8, 8)}, "nothing change"),
        (torch.rand(3, 8, 8), {"strength": 2.0}, "between 0 and 1"),
        (torch.rand(3, 8, 8), {"instruction": " "}, "nothing is asked"),
    ],
)
def test_what_does_not_fit_is_refused(given, options, says, pipe):
    asked = {"instruction": "b dog", **options}
    with pytest.raises(FewstepError, match=says):
        fs.edit(pipe, [given], asked.pop("instruction"), **asked)


def test_a_pipeline_that_draws_from_nothing_edits_nothing(tmp_path):
    with pytest.raises(FewstepError, match="does not edit"):
        fs.edit(tiny.unconditional(tmp_path), [torch.rand(3, 8, 8)], "a cat", steps=2)


@pytest.fixture(scope="module")
def captions():
    return emoji_prompts("all")


@pytest.mark.parametrize(
    ("caption", "instruction", "after"),
    [
        ("woman", "Make the skin tone dark.", "woman with dark skin tone"),
        ("man and rocket with light skin tone", "make her skin medium", "man and rocket with medium skin tone"),
        ("woman and rocket with dark skin tone", "make it a man", "man and rocket with dark skin tone"),
        ("boy with dark skin tone", "make him older", "man with dark skin tone"),
        ("older woman", "make it younger", "woman"),
        ("baby with light skin tone", "make it older", "child with light skin tone"),
        ("older man with light skin tone", "make it a woman", "older woman with light skin tone"),
        ("man with red hair", "make it bald", "man with bald"),
        ("woman", "give her red hair", "woman with red hair"),
        ("woman and rocket", "remove the rocket", "woman"),
        ("woman", "add a rocket", "woman and rocket"),
        ("red apple", "make the skin tone dark", None),
        ("older woman", "make it older", None),
        ("woman and rocket", "remove the hat", None),
        ("woman with dark skin tone", "make the skin tone dark", None),
        ("woman with dark skin tone and handshake and man with light skin tone", "make the skin tone dark", None),
    ],
)  # fmt: skip
def test_an_instruction_changes_a_caption(caption, instruction, after, captions):
    assert is_instruction(instruction)
    assert edited_caption(caption, instruction, set(captions)) == after


def test_pairs_are_pictures_that_an_instruction_leads_to(captions):
    pairs = edit_pairs(captions)
    assert len(pairs) > 5000
    for source, instruction, target in pairs[::97]:
        assert source != target
        assert edited_caption(captions[source], instruction, set(captions)) == captions[target]
    assert not instructions_for("red apple", set(captions))
    assert not is_instruction("woman with red hair")


def test_an_emoji_is_read_its_instruction_answered_and_its_age_changed(tmp_path):
    """The shipped model, as a newcomer has it: pictures as saved elsewhere, and a folder in which one has no age."""
    images, captions = load_emoji("evaluation")
    boy, fist = (captions.index(f"{who} skin tone") for who in ("boy with medium-light", "fisted hand sign with light"))
    larger = torch.nn.functional.interpolate(images[[0, 5, 120, boy, fist]].float() / 255, (96, 96), mode="bicubic")
    for k, i in enumerate((0, 5, 120, boy, fist)):
        assert caption_of(larger[k] + 0.03 * torch.randn(3, 96, 96)) == captions[i]
    with pytest.raises(FewstepError, match="like no emoji"):
        caption_of(torch.rand(3, 64, 64))
    pipe = fs.load("emoji-student")
    assert prompt_of(pipe, larger[3], "make him older") == "man with medium-light skin tone"
    assert prompt_of(pipe, larger[3], "green apple") == "green apple"
    with pytest.raises(FewstepError, match="changes nothing in this picture, which reads as 'fisted hand sign"):
        prompt_of(pipe, larger[4], "make it a woman")
    with pytest.raises(FewstepError, match="no caption of an emoji has this word"):
        prompt_of(pipe, larger[4], "green wombat")

    (tmp_path / "emoji").mkdir()
    for name, k in (("boy", 3), ("fist", 4)):
        to_pil(larger[k].clamp(0, 1)).save(tmp_path / "emoji" / f"{name}.png")
    asked = ["age", str(tmp_path / "emoji"), "60", "--model", "emoji-student", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, asked)
    said = " ".join(done.output.split())
    assert done.exit_code == 1, said
    assert "asking for 'older man with medium-light skin tone' at strength 0.75" in said
    assert "1 of 2" in said
    assert "fist.png: nobody here whose age can change" in said
    assert Image.open(tmp_path / "out" / "boy.png").size == (96, 96)
    assert CliRunner().invoke(app, [*asked[:2], "101", *asked[3:]]).exit_code == 2
