"""Speed and memory of an endless stream from the shipped video student, one process, one thread.

    python benchmarks/streaming.py --frames 10000

First-frame latency, frames per second, the decoder's share, and resident memory every tenth of the way. A machine that
others use too makes the seconds worse, not the memory: the load is noted.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch

from fewstep.files import write_json
from fewstep.runs import environment
from fewstep.tasks.video import stream


def resident() -> float:
    """Megabytes that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--output", type=Path, default=Path("results/streaming.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    frames = stream("video-student", "3 7 fast")
    decoding = [0.0]
    plain = frames.decode

    def timed(latents: torch.Tensor) -> torch.Tensor:
        began = time.perf_counter()
        found = plain(latents)
        decoding[0] += time.perf_counter() - began
        return found

    frames.decode = timed
    began, cpu = time.perf_counter(), time.process_time()
    next(frames)
    first = time.perf_counter() - began
    memory, load = [resident()], os.getloadavg()[0]
    for number in range(1, given.frames):
        next(frames)
        if number % (given.frames // 10) == 0:
            memory.append(resident())
    seconds, used = time.perf_counter() - began, time.process_time() - cpu
    frames.close()
    found = {
        "frames": given.frames,
        "first_frame_seconds": first,
        "frames_per_second": given.frames / seconds,
        "frames_per_cpu_second": given.frames / used,
        "decoder_share": decoding[0] / seconds,
        "memory_megabytes": memory,
        "load": load,
    }
    write_json(given.output, {"environment": environment(), "seconds": seconds, **found})
    print(found)


if __name__ == "__main__":
    main()
