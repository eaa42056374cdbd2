"""The model card's numbers are those of the training records."""

import json
import re
import shutil
from pathlib import Path

import pytest

import fewstep.zoo as models
from fewstep.zoo.card import STAGES, write_card

FAMILIES = Path(models.__file__).parent
FOLDER = FAMILIES / "emoji"


@pytest.mark.parametrize("family", STAGES)
def test_the_shipped_card_is_what_the_records_give(family, tmp_path):
    shutil.copytree(FAMILIES / family, tmp_path / family)
    before = (tmp_path / family / "README.md").read_text(encoding="utf-8")
    write_card(tmp_path / family)
    assert (tmp_path / family / "README.md").read_text(encoding="utf-8") == before


@pytest.mark.parametrize("family", STAGES)
def test_cost_of_each_stage_is_in_the_table(family):
    folder = FAMILIES / family
    text = (folder / "README.md").read_text(encoding="utf-8").partition("## Size and cost")[2]
    for stage in STAGES[family]:
        file = folder / "vae.json" if stage == "vae" else folder / stage / "training.json"
        record = json.loads(file.read_text(encoding="utf-8"))
        row = re.search(rf"^\| `{stage}` \|.*\|$", text, re.MULTILINE)
        assert row, stage
        cells = [cell.strip() for cell in row.group().strip("|").split("|")]
        assert cells[2] == f"{record['steps']} x {record['settings']['batch']}"
        assert float(cells[3]) == round(record["seconds"] / 60, 1)


def test_parameter_counts_are_those_of_the_loaded_models():
    from transformers import CLIPModel

    count = sum(p.numel() for p in CLIPModel.from_pretrained(FOLDER / "clip").parameters())
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    row = re.search(r"^\| `clip` \| ([\d.]+) M", text, re.MULTILINE)
    assert row
    assert abs(float(row.group(1)) - count / 1e6) < 0.01
