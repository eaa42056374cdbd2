"""Streams: frames without end from a few-step student, in constant memory, with prompts that change on the way."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from fewstep.cache import Cache
from fewstep.errors import FewstepError
from fewstep.files import read_json, read_tensors, user_path, write_folder, write_json, write_tensors
from fewstep.tasks.video import digits
from fewstep.tasks.video.drawing import drawn_chunks
from fewstep.tasks.video.student import VideoStudent, load_student

Item = TypeVar("Item")

CACHE, LAST, PLACE = "cache.safetensors", "last.safetensors", "stream.json"


class VideoStream:
    """An iterator of frames (H, W) in [-1, 1]; `stream` makes one.

    Chunk k + 1 is denoised in a thread of its own while chunk k is decoded and read; it never runs further ahead, so
    that a reader who stops costs nothing.

    Args:
        student: what draws.
        prompt: what it draws, such as "3 7 fast".
        seed: of the noise.
        decode: latent frames (1, F, C, H, W) to frames (1, frames, H, W).
        prompt_of: words to the network's prompt (1, parts).

    Raises:
        FewstepError: an unknown prompt.
    """

    def __init__(
        self,
        student: VideoStudent,
        prompt: str,
        seed: int = 0,
        decode: Callable[[Tensor], Tensor] = digits.decoded,
        prompt_of: Callable[[str], Tensor] = digits.prompt_of,
    ) -> None:
        self.student, self.seed, self.decode, self.prompt_of = student, seed, decode, prompt_of
        prompt_of(prompt)
        self._asked = {0: prompt}
        self._cache = student.network.empty_cache(student.policy, 1)
        self._last: Tensor | None = None
        self._done = 0
        self._chunks: Iterator[tuple[Tensor, Cache]] | None = None
        self._kept: tuple[Tensor, Cache] | None = None
        self._frames: list[Tensor] = []

    @property
    def chunks(self) -> int:
        """Chunks of which frames were read."""
        return self._done

    @property
    def cache(self) -> Cache:
        """What the chunk that was read last has seen."""
        return self._cache if self._kept is None else self._kept[1]

    @property
    def prompt(self) -> str:
        """What is drawn. Another one holds from the chunk after the next on, which may be begun."""
        return self._asked[max(self._asked)]

    @prompt.setter
    def prompt(self, words: str) -> None:
        if not self._done:
            hint = "Begin a new stream with it, or read the first chunk first."
            raise FewstepError("the prompt cannot change before the first chunk is there", value=words, hint=hint)
        self.prompt_of(words)
        past = max(k for k in self._asked if k < self._done)
        self._asked = {k: w for k, w in self._asked.items() if k >= past} | {self._done + 1: words}

    def __iter__(self) -> VideoStream:
        return self

    def __next__(self) -> Tensor:
        if not self._frames:
            if self._chunks is None:
                drawn = drawn_chunks(
                    self.student, self._prompt_at, [self.seed], first=self._done, last=self._last, cache=self._cache
                )
                self._chunks = ahead(drawn)
            self._kept = next(self._chunks)
            self._done += 1
            self._frames = list(self.decode(self._kept[0])[0])
        return self._frames.pop(0)

    def close(self) -> None:
        """End the thread; the stream can still be saved."""
        if self._chunks is not None:
            self._chunks.close()  # type: ignore[attr-defined]

    def _prompt_at(self, k: int) -> Tensor:
        asked = self._asked
        return self.prompt_of(asked[max(n for n in asked if n <= k)])

    def save(self, folder: str | Path) -> None:
        """Write where the stream stands after the chunk that was read last, whole or not at all.

        Raises:
            FewstepError: nothing was read, or the cache is not finite.
        """
        if self._kept is None:
            raise FewstepError("there is nothing to save before the first chunk was read", hint="Read a frame first.")
        last, cache = self._kept
        cache.check()
        asked = {str(k): words for k, words in self._asked.items()}

        def fill(draft: Path) -> None:
            cache.save(draft / CACHE)
            write_tensors(draft / LAST, {"last": last})
            write_json(draft / PLACE, {"fewstep_stream": 1, "chunks": self._done, "asked": asked, "seed": self.seed})

        write_folder(user_path(folder), fill)

    @classmethod
    def resumed(cls, student: VideoStudent, folder: str | Path, prompt: str | None = None) -> VideoStream:
        """The stream that goes on after the chunk that was read last when `save` was called, bit for bit.

        Args:
            student: the same.
            folder: what `save` wrote.
            prompt: another one, from the chunk after the next on.

        Raises:
            FewstepError: no such folder, another student's cache, or one that is not finite.
        """
        place = user_path(folder)
        found = read_json(place / PLACE)
        try:
            asked = {int(k): str(words) for k, words in found["asked"].items()}
            made = cls(student, asked[min(asked)], found["seed"])
            made._asked, made._done, made._last = asked, int(found["chunks"]), read_tensors(place / LAST)["last"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FewstepError(f"this folder holds no stream ({error})", value=str(folder)) from error
        made._cache = Cache.load(place / CACHE)
        empty = student.network.empty_cache(student.policy, 1).keys.shape
        own = made._cache.keys.shape
        if made._cache.policy != student.policy or own[:3] != empty[:3] or own[4:] != empty[4:]:
            hint = "Resume with the student and the cache policy that the stream was made with."
            raise FewstepError("the saved cache belongs to another student", value=str(made._cache.policy), hint=hint)
        if prompt is not None:
            made.prompt = prompt
        return made


def stream(student: VideoStudent | str | Path, prompt: str, *, seed: int = 0) -> VideoStream:
    """An endless iterator of frames (16, 16) in [-1, 1].

        frames = stream("video-student", "3 7 fast")
        for frame in itertools.islice(frames, 100): ...
        frames.prompt = "3 7 slow"          # from the chunk after the next on
        frames.save("here")                 # VideoStream.resumed(student, "here") goes on

    Args:
        student: what draws: a student, a shipped name or a folder.
        prompt: two digits and a speed.
        seed: of the noise.

    Raises:
        FewstepError: no such student, or an unknown prompt.
    """
    found = student if isinstance(student, VideoStudent) else load_student(student)
    return VideoStream(found, prompt, seed)


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The items of an iterator that runs in a thread, one item ahead of its reader; errors are passed on.

    An item is begun when the one before it is taken: a reader who stops leaves one item waiting, and a thread asleep.
    """
    made: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    wanted, stopped = threading.Semaphore(1), threading.Event()

    def work() -> None:
        try:
            while wanted.acquire() and not stopped.is_set():
                made.put(("item", next(items)))
        except StopIteration:
            made.put(("end", None))
        except BaseException as error:  # whatever it is belongs to the reader
            made.put(("error", error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            wanted.release()
            yield value
    finally:
        stopped.set()
        wanted.release()
        thread.join()
