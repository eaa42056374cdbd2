"""Prompt lists by name: shipped splits, text files, or lists written out in a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fewstep.data.emoji import emoji_prompts
from fewstep.errors import FewstepError
from fewstep.files import read_text

GENERAL = Path(__file__).with_name("general.txt")


def load_prompts(source: str | Sequence[str], limit: int | None = None) -> list[str]:
    """The prompts of a source, at most `limit` of them, evenly spread over the list.

    Args:
        source: `emoji:SPLIT`, `general:calibration`, `general:evaluation`, a text file with one prompt per line (lines
            that start with # are left out), or the prompts themselves.

    Raises:
        FewstepError: the file cannot be read, or no prompt is left.
    """
    prompts = _named(source) if isinstance(source, str) else [str(p) for p in source]
    if not prompts:
        raise FewstepError("the prompt list is empty", value=source, hint="Give at least one prompt.")
    if limit is None or limit >= len(prompts):
        return prompts
    if limit < 1:
        raise FewstepError("at least one prompt is needed", value=limit)
    return [prompts[i * len(prompts) // limit] for i in range(limit)]


def _named(source: str) -> list[str]:
    kind, _, split = source.partition(":")
    if kind == "emoji":
        return emoji_prompts(split or "evaluation")
    if kind == "general":
        lines = _lines(GENERAL)
        halves = {"calibration": lines[: len(lines) // 2], "evaluation": lines[len(lines) // 2 :]}
        if split not in halves:
            raise FewstepError(
                "unknown prompt split", value=source, hint="Use general:calibration or general:evaluation."
            )
        return halves[split]
    return _lines(Path(source))


def _lines(file: Path) -> list[str]:
    try:
        text = read_text(file)
    except FewstepError as error:
        hint = "Give a text file, emoji:SPLIT, general:calibration, or a list."
        raise FewstepError(f"cannot read prompts: {error.what}", hint=hint) from error
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
