import warnings

import pytest
import torch

from fewstep.clip import load_clip
from fewstep.errors import FewstepError
from fewstep.tokens import lost_words
from fewstep.zoo import shipped
from fewstep.zoo.text import tokens_of

LONG = "cat " * 40 + "and a very red heart"


@pytest.fixture(scope="module")
def clip():
    return load_clip(str(shipped("emoji-clip")))


def cut_by(action):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        action()
    return [str(w.message) for w in seen if "cut off" in str(w.message)]


def test_captions_and_judged_prompts_that_are_cut_are_told(clip):
    assert "red heart" in lost_words(clip.tokenizer, LONG, clip.model.config.text_config.max_position_embeddings)
    for action in (lambda: clip.text_features([LONG, "cat"]), lambda: tokens_of(clip.tokenizer, [LONG, LONG, "cat"])):
        told = cut_by(action)
        assert len(told) == 1
        assert told[0].startswith("1 of the texts is longer")
        assert "red heart" in told[0]
    assert cut_by(lambda: tokens_of(clip.tokenizer, ["cat face"])) == []


def test_a_clip_folder_that_holds_pickles_only_is_refused(clip, tmp_path):
    clip.model.save_pretrained(tmp_path)
    clip.tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    torch.save(clip.model.state_dict(), tmp_path / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(FewstepError, match="cannot load a CLIP model"):
        load_clip(str(tmp_path))


def test_a_clip_folder_in_the_home_folder_opens(clip, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    clip.model.save_pretrained(tmp_path / "judge")
    clip.tokenizer.save_pretrained(tmp_path / "judge")
    torch.testing.assert_close(load_clip("~/judge").text_features(["cat"]), clip.text_features(["cat"]))
