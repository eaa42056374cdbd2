"""A paper of distillation in words; its page adds what the code and the results say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """What cannot be read off the code.

    name: of the page, docs/systems/NAME.md. presets: those that make it. idea: what the paper does, a paragraph. here:
    how the parts make it and where they differ from the paper. missing: what was not reproduced. claims: modules of
    benchmarks/claims that ask it something. options: of the recipe that its page shows.
    """

    name: str
    title: str
    arxiv: str
    presets: tuple[str, ...]
    idea: str
    here: str
    missing: str
    claims: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
