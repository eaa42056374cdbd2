"""`fewstep fold` and `fs.fold`: a sequence, a file of them, a structure, and what cannot be folded."""

import pytest
import torch
from typer.testing import CliRunner

import fewstep as fs
from fewstep.cli import app
from fewstep.data.proteins import Structure
from fewstep.errors import FewstepError
from fewstep.files import write_json, write_tensors
from fewstep.tasks.proteins import NetworkSize, StructureNetwork, read_structure, structure_plan, write_pdb


def call(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    size = NetworkSize(single=16, pair=8, trunk_blocks=1, width=16, heads=2, blocks=1)
    torch.manual_seed(0)
    write_tensors(folder / "weights.safetensors", StructureNetwork(size).state_dict())
    write_json(folder / "config.json", vars(size))
    return folder


def test_a_sequence_is_folded_in_few_steps_and_in_many(model, tmp_path):
    out = tmp_path / "out"
    done = call("fold", "MKVLAAGLLK", "--model", model, "--beside", 6, "--samples", 2, "--out", out)
    assert done.exit_code == 0, done.output
    structure, notes = read_structure(out / "sequence.pdb")
    assert structure.sequence == "MKVLAAGLLK"
    assert notes[0] == "2 models: the one of number 1 was read."
    page = (out / "sequence.html").read_text(encoding="utf-8")
    for said in ("protenix-mini, 2 steps", "protenix, 6 steps", "<polyline", "trunk", "sampling_by", "no structure"):
        assert said in page
    again = ("fold", "MKVLAAGLLK", "--model", model, "--beside", 0, "--samples", 1, "--out", out)
    refused = call(*again)
    assert refused.exit_code == 2
    assert "exists already" in " ".join(refused.output.split())
    assert call(*again, "--overwrite").exit_code == 0


def test_a_structure_is_folded_and_compared_with_itself(model, tmp_path):
    torch.manual_seed(1)
    steps = torch.nn.functional.normalize(torch.randn(8, 3) + torch.tensor([1.0, 0, 0]), dim=1)
    given = tmp_path / "given.pdb"
    write_pdb(given, [Structure("MKVLAAGL", (3.8 * steps).cumsum(0))] * 2)
    plan = tmp_path / "mine.json"
    structure_plan(levels=[2560, 100, 0]).save(plan)
    options = ("--plan", plan, "--restrain", 0.5, "--beside", 0, "--samples", 1, "--out", tmp_path / "out")
    done = call("fold", given, "--model", model, *options)
    assert done.exit_code == 0, done.output
    assert "2 models" in done.output
    page = (tmp_path / "out" / "given.html").read_text(encoding="utf-8")
    for said in ("LDDT of the best", "the file", "mine"):
        assert said in page


def test_several_sequences_go_on_where_one_fails(model, tmp_path):
    file = tmp_path / "some.fasta"
    file.write_text(">good\nMKVLAA\n>bad\nMK1LAA\n>fine\nMKVLAAGG\n")
    done = call("fold", file, "--model", model, "--beside", 0, "--samples", 1, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "no amino acid" in done.output
    assert {f.name for f in (tmp_path / "out").glob("*.pdb")} == {"good.pdb", "fine.pdb"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("no.pdb",), "cannot read"), (("picture.png",), "neither a structure"), (("123",), "neither a file"),
     (("MKVLAAGG", "--restrain", "0.2"), "only a structure"), (("MKVLAAGG", "--sampler", "boltz"), "boltz-"),
     (("MKVLAAGG", "--model", "nowhere"), "cannot read")],
)  # fmt: skip
def test_what_cannot_be_folded_is_said(arguments, said, model, tmp_path):
    more = () if "--model" in arguments else ("--model", model)
    done = call("fold", *arguments, *more, "--beside", 0, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


def test_the_verb_folds_by_any_plan(model):
    folding = fs.fold("MKVLAAGL", steps=3, samples=2)  # by fragments of known chains
    assert folding.coordinates.shape == (2, 8, 3)
    assert folding.plan.steps == 3
    assert fs.fold("MKVLAAGL", plan=structure_plan("boltz-2", 4), samples=1, model=model).plan.steps == 4
    write_json(model / "other" / "config.json", {"depth": 3})
    with pytest.raises(FewstepError, match="no structure network"):
        fs.fold("MKVLAAGL", model=model / "other")
