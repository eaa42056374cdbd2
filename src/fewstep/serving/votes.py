"""The comparisons shown last, and the file of votes that `fewstep align --pairs` reads."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.files import system_error
from fewstep.report.images import save_image

KEPT = 64
"""Comparisons that can still be voted on."""


class Votes:
    """Keeps what was shown, and writes votes: a line per pair, with the pictures in the folder `votes` beside the file.

    Args:
        file: JSON lines; votes are added at its end.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._shown: OrderedDict[str, tuple[str, int, dict[str, Tensor]]] = OrderedDict()
        self._lock = threading.Lock()

    def shown(self, prompt: str, seed: int, pictures: dict[str, Tensor]) -> str:
        """Remember the pictures (3, H, W) by column; the name of the comparison."""
        name = uuid.uuid4().hex
        with self._lock:
            self._shown[name] = (prompt, seed, pictures)
            while len(self._shown) > KEPT:
                self._shown.popitem(last=False)
        return name

    def vote(self, comparison: str, chosen: str) -> int:
        """Write that a picture was liked more than each other one; the pairs written: equal pictures make none.

        Raises:
            FewstepError: the comparison was not shown or too long ago, it was voted on, there is no such column, or the
                disk refuses.
        """
        with self._lock:
            if comparison not in self._shown:
                hint = f"The last {KEPT} can be voted on, once each."
                raise FewstepError("there is no such comparison", value=comparison, hint=hint)
            prompt, seed, pictures = self._shown[comparison]
            if chosen not in pictures:
                raise FewstepError("there is no such column", value=chosen, hint=f"Columns: {', '.join(pictures)}.")
            best = pictures[chosen]
            others = {name: picture for name, picture in pictures.items() if not picture.equal(best)}
            try:
                pairs = self._write(comparison, prompt, seed, (chosen, best), others)
            except OSError as error:
                raise FewstepError(system_error(error) or str(error), value=str(self.file)) from error
            del self._shown[comparison]
        return pairs

    def _write(
        self, comparison: str, prompt: str, seed: int, best: tuple[str, Tensor], others: dict[str, Tensor]
    ) -> int:
        if not others:
            return 0
        folder = self.file.parent / "votes"
        folder.mkdir(parents=True, exist_ok=True)
        named = {name: f"votes/{comparison}-{k}.png" for k, name in enumerate([best[0], *others])}
        for name, picture in {best[0]: best[1], **others}.items():
            save_image(picture, self.file.parent / named[name])
        common: dict[str, Any] = {"prompt": prompt, "chosen": named[best[0]], "seed": seed}
        lines = [
            json.dumps({**common, "rejected": named[other], "columns": [best[0], other]}, ensure_ascii=False) + "\n"
            for other in others
        ]
        # one write: a killed server leaves whole lines; what somebody edited may end without a line break
        with self.file.open("a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            broken = size > 0 and file.read(1) != b"\n"
            file.write(("\n" * broken + "".join(lines)).encode())
            os.fsync(file.fileno())
        return len(lines)
