"""Text by masked language models: prompts, order of reveals, what is refused, and the job that trains them."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from fewstep.cli.write import run
from fewstep.discrete import MaskedDiffusion, RevealPlan, reveal_plan
from fewstep.errors import FewstepError, PlanError
from fewstep.jobs import writing, zoo
from fewstep.jobs.zoo.text import masked_loss
from fewstep.metrics.ngrams import distinct, fit_ngrams, unigram_entropy
from fewstep.tasks.text import TextModel, open_text_model, write
from fewstep.zoo.tokens import masked_language_model, train_bpe

TEXT = "to be or not to be, that is the question:\nwhether tis nobler in the mind to suffer\n" * 40
TINY = ("vocabulary=64", "width=16", "layers=1", "heads=2", "length=12", "batch=4", "steps=2", "device=cpu")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    place = tmp_path_factory.mktemp("text") / "play.txt"
    place.write_text(TEXT)
    return place


@pytest.fixture(scope="module")
def folder(file):
    return zoo.run("text", [*TINY, f"data={file}"], file.parent / "teacher")


@pytest.fixture(scope="module")
def model(folder):
    return open_text_model(folder)


def test_prompt_and_ending_stay_and_every_token_is_revealed_once(model):
    found = write(model, "to be", ending="mind", steps=3, seeds=[4, 5])
    assert all(text.startswith("to be") and text.endswith("mind") for text in found.texts)
    given = len(model.encoded("to be")), len(model.encoded("mind"))
    assert found.tokens.shape == (2, 12)
    assert not bool(found.revealed[:, : given[0]].any() | found.revealed[:, -given[1] :].any())
    assert set(found.revealed[:, given[0] : -given[1]].flatten().tolist()) <= {1, 2, 3}
    assert ["".join(pieces) for pieces in found.pieces] == found.texts
    again = write(model, "to be", ending="mind", steps=3, seeds=[5])
    assert again.texts == found.texts[1:]


def test_a_token_masked_again_counts_when_it_stays(model):
    found = write(model, steps=6, remask=0.9, seeds=range(8))
    once = write(model, steps=6, seeds=range(8))
    assert float(found.revealed.double().mean()) > float(once.revealed.double().mean())


def test_a_plan_file_is_run_and_another_process_is_refused(model, tmp_path):
    plan = reveal_plan(model.process, 2, order="confidence")
    plan.save(tmp_path / "plan.json")
    assert write(model, plan=RevealPlan.load(tmp_path / "plan.json")).plan.name == "confidence"
    with pytest.raises(PlanError, match="another process"):
        write(model, plan=reveal_plan(MaskedDiffusion(5, 4), 2))


def test_mistakes_are_named(model, tmp_path):
    with pytest.raises(FewstepError, match="unknown characters.*Ω"):
        write(model, "to Ω")
    with pytest.raises(FewstepError, match="does not fit.*12 positions"):
        write(model, "to be or not to be, that is the question: whether tis nobler in the mind" * 3)
    with pytest.raises(FewstepError, match="does not fit"):
        write(model, tokens=13)
    with pytest.raises(FewstepError, match="no masked language model"):
        open_text_model(tmp_path / "absent")


def test_an_end_of_text_that_dominates_is_said(model):
    """A network that says nothing but the end; a padding symbol it is as sure of is never written."""
    tokenizer = train_bpe(TEXT, 64)
    tokenizer.add_special_tokens({"eos_token": "[END]", "pad_token": "[PAD]"})
    network = masked_language_model(len(tokenizer), 16, 1, 2, 12)
    network.decoder.bias.data[[tokenizer.eos_token_id, tokenizer.pad_token_id]] = 30.0
    found = write(TextModel(network.eval(), tokenizer), steps=2)
    assert found.ended == 1
    assert "end of text takes 100 %" in found.warnings()[0]
    assert tokenizer.pad_token_id not in found.tokens


def test_the_page_shows_samples_and_the_order_of_reveals(model, tmp_path):
    found, more = (write(model, "to", steps=n, seeds=[0, 1]) for n in (2, 8))
    page = writing.report(found, more, [0, 1], tmp_path / "page.html", "tiny").read_text()
    assert "2 steps" in page
    assert "8 steps" in page
    assert 'class="given">to<' in page
    assert "--at: 80%" in page


def test_the_command_writes_text_and_a_page(folder, tmp_path, capsys):
    run("to be", model=str(folder), steps=2, seed=[3, 4], report=tmp_path / "page.html")
    out = capsys.readouterr().out
    assert out.count("to be") >= 2
    assert "8 steps" in (tmp_path / "page.html").read_text()
    with pytest.raises(FewstepError, match="exists already"):
        run("to be", model=str(folder), report=tmp_path / "page.html")


def test_students_begin_as_their_teacher_and_are_ordinary_models(folder, file):
    for method in ("didi", "sdtt"):
        options = [f"data={file}", f"teacher={folder}", f"method={method}", "group=2", "length=12", "batch=4"]
        options += ["steps=3", "device=cpu", "learning_rate=1e-5"]
        made = open_text_model(zoo.run("text", options, file.parent / method))
        one, other = (m.denoiser()(torch.full((1, 12), m.process.mask)).exp() for m in (made, open_text_model(folder)))
        assert 0 < float((one - other).abs().max()) < 0.01


def test_an_autoregressive_model_is_trained_beside_it(file):
    made = zoo.run("text", [*TINY, f"data={file}", "kind=causal"], file.parent / "causal")
    assert AutoModelForCausalLM.from_pretrained(made).config.model_type == "llama"


def test_the_loss_is_the_evidence_bound_per_token():
    """Of a uniform law: log of the number of symbols, whatever is masked."""
    process, g = MaskedDiffusion(9, 8), torch.Generator().manual_seed(0)
    x = torch.randint(8, (512, 16), generator=g)
    found = masked_loss(lambda z: torch.zeros(*z.shape, 9), process, x, g)
    assert float(found) == pytest.approx(math.log(8), rel=0.05)


def test_the_judge_is_interpolated_as_witten_and_bell_did():
    """By hand: of abab, a follows b once, b follows a twice; P(a) = P(b) = (2 + 2/3) / (4 + 2)."""
    judge = fit_ngrams("abab", order=2)
    unigram = (2 + 2 / 3) / 6
    assert judge._probability("a", "b") == pytest.approx((2 + 1 * unigram) / 3)
    assert judge._probability("", "a") == pytest.approx(unigram)
    assert judge._probability("", "c") == pytest.approx((2 / 3) / 6)
    total = sum(judge._probability("b", c) for c in "abc")  # c stands for all others
    assert total == pytest.approx(1)
    assert fit_ngrams(TEXT).nats("to be or not") < fit_ngrams(TEXT).nats("eb ot ron to")
    assert distinct(["a b c", "a b c"]) == 0.5
    assert unigram_entropy([[1, 1], [1, 2]]) == pytest.approx(math.log(2) / 2)
    with pytest.raises(FewstepError, match="empty"):
        judge.nats("")
