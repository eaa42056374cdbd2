"""Drawing, timing and showing a stream: what `fewstep stream` does."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewstep.cache import CachePolicy, append, drop, ema_sink, static_sink
from fewstep.errors import FewstepError, nearest
from fewstep.report.blocks import FactList, ImageGrid
from fewstep.report.images import save_video, to_pil
from fewstep.report.page import Page, save_page
from fewstep.tasks.video import measures
from fewstep.tasks.video.streams import VideoStream
from fewstep.tasks.video.student import VideoStudent

EVERY = 8
"""Chunks between two savings of where the stream stands."""


@dataclass(frozen=True)
class StreamTimes:
    """Seconds of a stream.

    Attributes:
        first: until the first frame.
        rate: frames per second after the first chunk.
        decoding: share of the decoder in the time of network and decoder.
    """

    first: float
    rate: float
    decoding: float


@dataclass(frozen=True, eq=False)
class Streamed:
    """What was drawn.

    Attributes:
        frames: (T, H, W) in [-1, 1].
        student: that drew them.
        prompt: the first one.
        times: see `StreamTimes`.
    """

    frames: Tensor
    student: VideoStudent
    prompt: str
    times: StreamTimes

    @property
    def evaluations(self) -> int:
        """Of the network in a chunk after the first: its steps, and one for the cache."""
        return self.student.plan.steps(len(self.student.plan)) + 1

    @property
    def chunk(self) -> int:
        """Frames of a chunk."""
        config = self.student.network.config
        return (self.student.plan.entry(0).length or 1) * config.channels


def policy_of(text: str, like: CachePolicy) -> CachePolicy:
    """A policy from a word, with the window and sink of another.

    Raises:
        FewstepError: another word.
    """
    name, colon, number = text.partition(":")
    window, sink = like.window or 6, like.sink or 2
    if name == "ema":
        try:
            return ema_sink(window, sink, float(number) if colon else 0.99)
        except ValueError as error:
            raise FewstepError("ema takes a share", value=text, hint="For example ema:0.9.") from error
    known = {"drop": drop(window), "static": static_sink(window, sink), "append": append()}
    if name not in known or colon:
        raise FewstepError("unknown treatment of old frames", value=text, hint=nearest(name, [*known, "ema"]))
    return known[name]


def draw(
    student: VideoStudent,
    prompt: str,
    count: int,
    switches: Mapping[int, str] | None = None,
    *,
    seed: int = 0,
    keep: Path | None = None,
) -> Streamed:
    """The next `count` frames of a stream, with the seconds that they took.

    Args:
        student: what draws.
        prompt: what it draws.
        count: of frames.
        switches: other prompts, asked for at these frames; each holds from the chunk after the next on.
        seed: of the noise.
        keep: folder in which it is noted where the stream stands, every few chunks; where it exists, the stream goes on
            there with its own prompt and seed.
    """
    going = keep is not None and keep.exists()
    stream = VideoStream.resumed(student, keep) if going and keep is not None else VideoStream(student, prompt, seed)
    decoding = [0.0]
    plain = stream.decode

    def timed(latents: Tensor) -> Tensor:
        began = time.perf_counter()
        found = plain(latents)
        decoding[0] += time.perf_counter() - began
        return found

    stream.decode = timed
    began, ready, frames, saved = time.perf_counter(), [0.0], list[Tensor](), stream.chunks
    try:
        for number in range(count):
            if number in (switches or {}):
                stream.prompt = (switches or {})[number]
            frame = next(stream, None)
            if frame is None:
                break
            frames.append(frame)
            ready.append(time.perf_counter() - began)
            if keep is not None and stream.chunks - saved >= EVERY:
                stream.save(keep)
                saved = stream.chunks
        if keep is not None:
            stream.save(keep)
    finally:
        stream.close()
    drawn = torch.stack(frames)
    per_chunk = (student.plan.entry(0).length or 1) * student.network.config.channels
    rest = ready[-1] - ready[1]
    rate = (len(frames) - per_chunk) / rest if rest > 0 and len(frames) > per_chunk else len(frames) / ready[-1]
    return Streamed(drawn, student, stream.prompt, StreamTimes(ready[1], rate, decoding[0] / ready[-1]))


def write(drawn: Streamed, out: Path, rate: float, zoom: int, overwrite: bool = False) -> None:
    """The frames as a file that moves."""
    save_video(_pictures(drawn.frames, zoom), out, rate, over="ours" if overwrite else "nothing")


def report(drawn: Streamed, page: Path, rate: float) -> None:
    """A page with the loop, a contact sheet and the measures that need no judge."""
    clip = drawn.frames[None]
    facts = {
        "first frame after": f"{1000 * drawn.times.first:.0f} ms",
        "then": f"{drawn.times.rate:.0f} frames per second",
        "decoder's share": f"{drawn.times.decoding:.1%}",
        "network evaluations per chunk": str(drawn.evaluations),
        "cache": str(drawn.student.policy),
        "dynamic degree": f"{float(measures.dynamic_degree(clip)):.3f}",
        "flicker": f"{float(measures.flicker(clip)):.3f}",
    }
    if len(drawn.frames) > drawn.chunk > 1:
        facts["seam jump"] = f"{float(measures.seam_jump(clip, drawn.chunk)):.2f}"
    sheet = _pictures(drawn.frames[:: max(1, len(drawn.frames) // 32)][:32], 1)
    blocks = (
        ImageGrid("The stream", [[_loop(drawn.frames, rate)]], [""], [drawn.prompt], size=256),
        ImageGrid("Contact sheet", [list(part) for part in sheet.split(8) if len(part) == 8], *_labels(len(sheet))),
        FactList("Numbers", facts),
    )
    save_page(Page(f"A stream: {drawn.prompt}", f"{len(drawn.frames)} frames.", blocks), page)


def _labels(count: int) -> tuple[list[str], list[str]]:
    return [""] * (count // 8), [""] * 8


def _pictures(frames: Tensor, zoom: int) -> Tensor:
    """Frames (T, H, W) in [-1, 1] to pictures (T, 3, zoom H, zoom W) in [0, 1]."""
    large = (frames + 1).div(2).clamp(0, 1).repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    return large[:, None].expand(-1, 3, -1, -1)


def _loop(frames: Tensor, rate: float) -> str:
    """The frames as a GIF in a data URI."""
    first, *others = [to_pil(picture) for picture in _pictures(frames, 4)]
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=round(1000 / rate), loop=0)
    return "data:image/gif;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
