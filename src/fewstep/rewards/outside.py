"""Scorers of other packages, each in an environment of its own: pictures go as files, prompts and numbers as JSON."""

from __future__ import annotations

import contextlib
import json
import math
import re
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError, NonFiniteError
from fewstep.registry import need_argument
from fewstep.rewards.base import REWARDS, Reward, RewardFunction
from fewstep.rewards.environments import ScorerEnvironment, find_environment

WORKER = Path(__file__).with_name("worker.py")
_PACKAGE = re.compile(r"[A-Za-z0-9._-]+")
BESIDE = ("torch", "transformers", "numpy", "pillow")
"""Packages whose versions are stored beside those of the scorer."""


Scorer = Callable[[Sequence[str], Sequence[str]], list[float]]
"""(picture files, prompts) -> a number each; FewstepError where the scorer fails, or gives something else."""


def start_scorer(environment: ScorerEnvironment) -> tuple[Scorer, dict[str, Any]]:
    """Start the scorer of an environment, which takes as long as its package takes to load.

    Returns:
        The scorer, which ends with the last reference to it, and the versions of Python and packages that it runs on.

    Raises:
        FewstepError: it does not start; the message holds what its package says.
    """
    named = [match[0] for package in environment.packages if (match := _PACKAGE.match(package))]
    command = [environment.python, "-I", str(WORKER), environment.scorer, *dict.fromkeys([*named, *BESIDE])]
    errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115, lives with the worker
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
        )
    except OSError as error:
        hint = f"Delete {environment.place} and make it again."
        raise FewstepError(
            f"the environment is broken: {error.strerror}", value=environment.place, hint=hint
        ) from error
    versions = _exchange(process, errors)["versions"]

    def scorer(paths: Sequence[str], prompts: Sequence[str]) -> list[float]:
        scores = _exchange(process, errors, {"images": list(paths), "prompts": list(prompts)}).get("scores")
        if not isinstance(scores, list) or len(scores) != len(paths):
            raise FewstepError("the scorer must give one number per picture", value=scores)
        if not all(math.isfinite(score) for score in scores):
            raise NonFiniteError("the scorer gave NaN or infinity", hint="Look at the pictures, and at its package.")
        return scores

    weakref.finalize(scorer, _end, process)
    return scorer, versions


@REWARDS.register("outside")
def outside(argument: str) -> Reward:
    """`outside:NAME`, the scorer of an environment that `fewstep score ... --in-env NAME` made; no gradients."""
    environment = find_environment(need_argument("outside", argument, "NAME"))
    scorer, versions = start_scorer(environment)
    facts = {**asdict(environment), "versions": versions, "resize": "the package's own, of 8-bit PNG files"}
    return RewardFunction(f"outside-{argument}", partial(score_files, scorer), facts=facts)


def score_files(scorer: Scorer, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Scores (B,) of images (B, 3, H, W) in [0, 1], which are rounded to 8 bits."""
    from PIL import Image

    pixels = (255 * images.detach().clamp(0, 1)).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    with tempfile.TemporaryDirectory(prefix="fewstep-score-") as folder:
        paths = [str(Path(folder, f"{number}.png")) for number in range(len(pixels))]
        for path, picture in zip(paths, pixels, strict=True):
            Image.fromarray(picture).save(path)
        return torch.tensor(scorer(paths, prompts), dtype=torch.float32, device=images.device)


def _exchange(process: subprocess.Popen[str], errors: IO[str], asked: Any = None) -> dict[str, Any]:
    """Send a question, if there is one, and read an answer."""
    line = ""
    with contextlib.suppress(BrokenPipeError):  # told below
        if asked is not None:
            assert process.stdin is not None
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
        assert process.stdout is not None
        line = process.stdout.readline()
    answer = json.loads(line) if line else {"error": _last_words(process, errors)}
    if "error" in answer:
        raise FewstepError(f"the outside scorer failed: {answer['error']}", hint="Its package is in its environment.")
    return dict(answer)


def _last_words(process: subprocess.Popen[str], errors: IO[str]) -> str:
    """Why a process ended."""
    process.wait()
    errors.seek(0)
    lines = [line for line in errors.read().splitlines() if line.strip()]
    return f"it ended with {process.returncode}" + (f": {lines[-1]}" if lines else "")


def _end(process: subprocess.Popen[str]) -> None:
    """Close its questions, upon which it ends by itself."""
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
