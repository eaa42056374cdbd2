"""The other end of an outside scorer: runs in an environment that has the scorer's package and nothing of fewstep.

    python -I worker.py SCORER PACKAGE ...

Knows the standard library alone. Reads a line of JSON with `images` (paths of PNG files) and `prompts`, and answers a
line with `scores`, or with `error`. The first line, before any question, holds `versions` of the packages. SCORER is
`imagereward`, `hpsv2`, or `FILE.py:FUNCTION` of (paths, prompts) -> numbers.
"""

import importlib
import json
import os
import platform
import runpy
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata

Scorer = Callable[[Sequence[str], Sequence[str]], Iterable[float]]
"""(paths, prompts) -> a number each."""


def main() -> None:
    """Answer until the questions end; what a package prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        score = open_scorer(sys.argv[1])
        say({"versions": versions(sys.argv[2:])})
    except BaseException as error:  # a package may even call sys.exit
        say({"error": f"{type(error).__name__}: {error}"})
        return
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            say({"scores": [float(number) for number in score(asked["images"], asked["prompts"])]})
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})


def open_scorer(scorer: str) -> Scorer:
    """The scorer, loaded."""
    file, colon, name = scorer.rpartition(":")
    if colon:
        found: Scorer = runpy.run_path(file)[name]
        return found
    return {"imagereward": imagereward, "hpsv2": hpsv2}[scorer]()


def imagereward() -> Scorer:
    """ImageReward-v1.0 (arXiv 2304.05977): a standardised number, about -2 to 2."""
    model = importlib.import_module("ImageReward").load("ImageReward-v1.0")
    return lambda paths, prompts: [model.score(prompt, path) for path, prompt in zip(paths, prompts, strict=True)]


def hpsv2() -> Scorer:
    """HPS v2.1 (arXiv 2306.09341): about 0.2 to 0.35."""
    score = importlib.import_module("hpsv2").score
    return lambda paths, prompts: [
        score(path, prompt, hps_version="v2.1")[0] for path, prompt in zip(paths, prompts, strict=True)
    ]


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Of Python and the packages; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


if __name__ == "__main__":
    main()
