"""Sequences with scores, and text in parts."""

import math

import pytest
import torch

from fewstep.data.sequences import AMINO_ACIDS, ScoredSequences, gb1_landscape, read_scored
from fewstep.data.texts import PARTS, load_text
from fewstep.errors import FewstepError


def test_the_landscape_is_that_of_gb1():
    """The wild type VDGV has fitness 1; the best variant is FWAA with 8.76 (Wu et al. 2016)."""
    fitness = gb1_landscape()
    at = lambda word: float(fitness[tuple(AMINO_ACIDS.index(letter) for letter in word)])  # noqa: E731
    assert at("VDGV") == 1
    assert at("FWAA") == pytest.approx(8.76, abs=0.01)
    assert float(fitness.nan_to_num(nan=0).max()) == at("FWAA")
    assert int(fitness.isfinite().sum()) == 149_361


def test_a_table_is_read_and_says_what_is_wrong(tmp_path):
    file = tmp_path / "scores.csv"
    file.write_text("sequence,score\nABBA,1.5\nBABA,nan\nAAAA,-2\n")
    found = read_scored(file)
    assert found.alphabet == "AB"
    assert found.words() == ["ABBA", "BABA", "AAAA"]
    assert found.scores[0] == 1.5
    assert math.isnan(found.scores[1])
    for text, message in (
        ("name,score\nA,1\n", "no columns"),
        ("sequence,score\n", "no columns"),
        ("sequence,score\nAB,1\nABC,2\n", "one length"),
        ("sequence,score\nAB,high\n", "no number"),
        ("sequence,score\nAB,nan\n", "no finite score"),
    ):
        file.write_text(text)
        with pytest.raises(FewstepError, match=message):
            read_scored(file)
    file.write_text("sequence,score\nAB,1\nAZ,2\n")
    with pytest.raises(FewstepError, match="sequence 2 has unknown letters"):
        read_scored(file, "AB")
    with pytest.raises(FewstepError, match="one score each"):
        ScoredSequences(torch.zeros(2, 3).long(), torch.zeros(3), "A")
    with pytest.raises(FewstepError, match="from 0 to 0"):
        ScoredSequences(torch.ones(2, 3).long(), torch.zeros(2), "A")


def test_parts_of_a_text_lie_apart_and_are_all_of_it(tmp_path):
    assert "".join(load_text(part=part) for part in PARTS) == load_text(part="all")
    assert load_text(part="judge").startswith(tuple("\nABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"))
    short = tmp_path / "short.txt"
    short.write_text("so short\n")
    with pytest.raises(FewstepError, match="too short"):
        load_text(short)
    with pytest.raises(FewstepError, match="unknown part"):
        load_text(part="trian")
