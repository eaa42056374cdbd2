"""Scorers of others: published models by their classes, packages in environments of their own, what is stored."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.errors import FewstepError, NonFiniteError
from fewstep.files import read_json
from fewstep.metrics import evaluate, load_features
from fewstep.rewards import environments, load_reward
from fewstep.rewards.environments import find_environment, make_environment
from tests.rewards.test_clip_alignment import PROMPTS, bytes_images, folder  # noqa: F401, a fixture

SCORER = """
import struct, sys
print("packages print things")
def score(paths, prompts):
    print("so do scorers")
    found = []
    for path, prompt in zip(paths, prompts):
        with open(path, "rb") as file:
            width, height = struct.unpack(">II", file.read(24)[16:])
        if prompt == "fail":
            raise ValueError("no such word")
        if prompt == "die":
            import os
            os._exit(3)
        found.append(float("nan") if prompt == "nan" else 100 * width + height + len(prompt) / 1000)
    return found[1:] if prompts[0] == "few" else found
"""


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def said(*words):
    """Its message, whatever the width of the terminal."""
    return " ".join(call(*words).output.split())


@pytest.fixture
def scorer(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_ENVIRONMENTS", str(tmp_path / "environments"))
    (tmp_path / "scorer.py").write_text(SCORER)
    return f"{tmp_path / 'scorer.py'}:score"


@pytest.fixture
def pictures(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    rows = []
    for number, (size, prompt) in enumerate([((9, 7), "a cat"), ((9, 7), "a dog"), ((5, 6), "a cat")]):
        array = bytes_images(1, size[1], size[0], seed=number)[0].permute(1, 2, 0).numpy()
        Image.fromarray(array).save(place / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": prompt, "seed": 70 + number})
    (place / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place


def test_pickscore_is_the_logit_of_transformers(folder):  # noqa: F811
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from fewstep.zoo.text import tokens_of

    images = bytes_images(3, 16, 16)
    model = CLIPModel.from_pretrained(folder).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(list(images.numpy()), return_tensors="pt").pixel_values
    with torch.no_grad():
        tokens = tokens_of(AutoTokenizer.from_pretrained(folder), PROMPTS)
        expected = model(input_ids=tokens, pixel_values=pixels).logits_per_image.diagonal()
    reward = load_reward(f"pickscore:{folder}")
    torch.testing.assert_close(reward.score(images.float() / 255, PROMPTS), expected, rtol=1e-4, atol=1e-4)
    assert reward.facts["scale"] == pytest.approx(float(model.logit_scale.detach().exp()))
    assert reward.facts["preprocessing"]["height"] == 16


def test_the_aesthetic_head_is_a_stack_of_linear_layers_on_the_unit_embedding(folder, tmp_path):  # noqa: F811
    from transformers import CLIPVisionModelWithProjection

    model = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    place = tmp_path / "aesthetic"
    model.save_pretrained(place)
    shutil.copy(folder / "preprocessor_config.json", place)
    torch.manual_seed(1)
    parts = [torch.nn.Linear(16, 12), torch.nn.Dropout(0.2), torch.nn.Linear(12, 5), torch.nn.Linear(5, 1)]
    head = torch.nn.Sequential(*parts).eval()
    stored = load_file(place / "model.safetensors")
    layers = {f"layers.{name}": value for name, value in head.state_dict().items()}
    save_file({**stored, **layers}, place / "model.safetensors", metadata={"format": "pt"})
    images = bytes_images(3, 16, 16).float() / 255
    mean, std = torch.tensor([0.5] * 3).view(3, 1, 1), torch.tensor([0.25, 0.5, 0.5]).view(3, 1, 1)
    with torch.no_grad():
        embedded = model((images - mean) / std).image_embeds
        expected = head(embedded / embedded.norm(dim=-1, keepdim=True)).squeeze(1)
    reward = load_reward(f"aesthetic:{place}")
    torch.testing.assert_close(reward.score(images, [""] * 3), expected, rtol=1e-4, atol=1e-5)
    assert float(expected.std()) > 1e-4
    save_file({**stored, "layers.0.weight": layers["layers.0.weight"]}, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(FewstepError, match="no head"):
        load_reward(f"aesthetic:{place}")


def test_a_scorer_of_another_environment_is_a_reward_and_a_judge(scorer):
    made = make_environment("mine", scorer)
    assert make_environment("mine", scorer) == made == find_environment("mine")
    reward = load_reward("outside:mine")
    images = torch.rand(2, 3, 7, 9)
    assert reward.score(images, ["a cat", "kitten"]).tolist() == pytest.approx([907.005, 907.006])
    assert reward.facts["versions"]["python"]
    assert reward.facts["versions"]["torch"] is None  # nothing of ours is there
    assert not reward.differentiable
    sets = {"ours": torch.rand(2, 20, 3, 7, 9)}
    prompts = ["x" * k for k in range(20)]
    found = evaluate(sets, torch.rand(45, 3, 7, 9), prompts, [load_features("pixels:2")], reward, resamples=20)
    assert found["systems"]["ours"]["judge:outside-mine"]["mean"] == pytest.approx(907 + 9.5 / 1000, abs=1e-4)


def test_a_scorer_that_fails_says_why_and_answers_again(scorer):
    make_environment("mine", scorer)
    reward = load_reward("outside:mine")
    images = torch.rand(2, 3, 4, 4)
    with pytest.raises(FewstepError, match="ValueError: no such word"):
        reward.score(images, ["a", "fail"])
    with pytest.raises(NonFiniteError):
        reward.score(images, ["nan", "a"])
    with pytest.raises(FewstepError, match="one number per picture"):
        reward.score(images, ["few", "a"])
    assert reward.score(images, ["", "a"]).tolist() == pytest.approx([404, 404.001])
    for _ in range(2):  # a dead one stays dead, and says so
        with pytest.raises(FewstepError, match="ended with 3"):
            reward.score(images, ["die", "a"])


def test_an_environment_belongs_to_one_scorer_and_its_file(scorer, tmp_path):
    make_environment("mine", scorer)
    other = tmp_path / "other.py"
    other.write_text("raise SystemExit('no licence')")
    with pytest.raises(FewstepError, match="holds another scorer"):
        make_environment("mine", f"{other}:score")
    make_environment("other", f"{other}:score")
    with pytest.raises(FewstepError, match="SystemExit: no licence"):
        load_reward("outside:other")
    (tmp_path / "scorer.py").write_text(SCORER + "\n")
    with pytest.raises(FewstepError, match="another one than when"):
        load_reward("outside:mine")
    with pytest.raises(FewstepError, match="no such environment"):
        load_reward("outside:nothing")
    with pytest.raises(FewstepError, match="unfit name"):
        make_environment("../x", scorer)


def test_a_killed_making_is_made_anew(scorer, tmp_path, monkeypatch):
    place = tmp_path / "environments" / "mine"

    def killed(command, made):
        place.mkdir(parents=True)
        (place / "pyvenv.cfg").write_text("")  # what venv writes before all else
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(environments, "_run", killed)
        with pytest.raises(KeyboardInterrupt):
            make_environment("mine", scorer)
    assert place.exists()
    make_environment("mine", scorer)
    assert load_reward("outside:mine").score(torch.rand(1, 3, 4, 4), ["a"]).tolist() == pytest.approx([404.001])
    theirs = tmp_path / "environments" / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    for sign in ("thesis.txt", "pyvenv.cfg"):  # an environment that somebody made for himself, too
        (theirs / sign).touch()
        with pytest.raises(FewstepError, match="files of others"):
            make_environment("theirs", scorer)
    assert (theirs / "thesis.txt").read_text() == "years of work"
    assert (theirs / "thesis.txt").exists()


def test_pins_that_cannot_be_met_are_told(scorer, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for name in ("PIP_FIND_LINKS", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(FewstepError) as told:
        make_environment("mine", scorer, ["no-such-package-of-anyone==1.2.3"])
    assert "no-such-package-of-anyone==1.2.3" in str(told.value)
    assert "No matching distribution" in str(told.value)
    assert not (tmp_path / "environments" / "mine").exists()


def test_the_command_stores_what_every_number_depends_on(pictures, scorer, tmp_path):
    out = tmp_path / "scores.json"
    words = ("score", pictures, "--with", scorer, "--in-env", "mine", "--reference", pictures, "--out", out)
    assert (done := call(*words, "--features", "pixels:1,pixels:2")).exit_code == 0, done.output
    found = read_json(out)
    [row] = found["scores"].values()
    assert row["values"] == pytest.approx([907.005, 907.005, 506.005])
    assert (row["n"], row["mean"]) == (2, pytest.approx((907.005 + 506.005) / 4 + 907.005 / 2))  # prompts, not pictures
    assert row["facts"]["digest"]
    assert [p["seed"] for p in found["pictures"]] == [70, 71, 72]
    assert [p["prompt"] for p in found["pictures"]] == ["a cat", "a dog", "a cat"]
    assert len({p["sha256"] for p in found["pictures"]}) == 3
    assert {"torch", "commit", "command"} <= set(found["environment"])
    distances = found["distances"]["pixels:2"]
    assert distances["frechet"] == pytest.approx(0, abs=1e-6)
    assert "Lanczos to 299 x 299" in distances["resize"]
    assert len(distances["reference_sha256"]) == 64


def test_the_command_refuses_what_it_cannot_do(pictures, scorer):
    assert "--in-env imagereward" in said("score", pictures, "--with", "imagereward")
    assert "--in-env NAME" in said("score", pictures, "--with", "sharpness", "--package", "x")
    assert "nothing to measure" in said("score", pictures)
    assert "no scorer that an environment" in said("score", pictures, "--with", "clip", "--in-env", "x")
    assert "one scorer" in said("score", pictures, "--with", "a", "--with", "b", "--in-env", "x")
    (pictures / "0.png").write_text("no picture")
    done = call("score", pictures, "--with", "sharpness")
    assert (done.exit_code, "0.png" in done.output) == (2, True)
