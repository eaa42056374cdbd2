"""Streaming video on moving digits: what a cache policy does to 16, 64 and 256 frames, and what training adds.

    fewstep train video --set part=judge --out runs/train-video/judge       # and motion, teacher, causal, consistency,
    python benchmarks/video.py --folder runs/train-video                    # and the students of `ARMS` below

One student serves all policies: they differ in drawing alone. Its judge was not seen by any training; the reward of the
`reward` arm is another network. Premise first: does the static sink bring the first frame back, and does motion stop?
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.cache import CachePolicy, append, drop, ema_sink, static_sink
from fewstep.executor import Noise
from fewstep.files import write_json
from fewstep.jobs.zoo.video import load_weights
from fewstep.metrics.distances import frechet_draws
from fewstep.metrics.intervals import centred_interval, difference_interval, mean_interval, resample_counts
from fewstep.process import RectifiedFlow
from fewstep.runs import environment
from fewstep.tasks.video import digits, measures
from fewstep.tasks.video.drawing import draw_clips
from fewstep.tasks.video.network import VideoConfig, VideoTransformer
from fewstep.tasks.video.presets import shifted_chain
from fewstep.tasks.video.student import VideoStudent, chunk_plan, video_denoiser
from fewstep.transition import ddim_path

WINDOW, SINK, CHUNK = 6, 2, 2
POLICIES: dict[str, CachePolicy] = {
    "drop": drop(WINDOW),
    "static sink": static_sink(WINDOW, SINK),
    "EMA sink 0.99": ema_sink(WINDOW, SINK, 0.99),
    "EMA sink 0.9": ema_sink(WINDOW, SINK, 0.9),
    "append": append(),
}
ARMS = {
    "self-forcing": ("student", 2),
    "self-forcing, seed 1": ("student-seed1", 2),
    "self-forcing without sink": ("student-drop", 2),
    "Re-DMD": ("student-reward", 2),
    "Re-DMD, seed 1": ("student-reward-seed1", 2),
    "CausVid": ("student-causvid", 2),
    "consistency": ("consistency", 2),
    "causal teacher": ("causal", 32),
}
BASE = "self-forcing"
WHOLE_FRAMES = 24
WHOLE = {
    "teacher, 50 steps": ("teacher", 50, 2.0),
    "teacher, 5 steps": ("teacher", 5, 2.0),
    "AccVideo, 5 steps": ("accvideo", 5, 1.0),
}
"""Bidirectional networks on clips as long as those of training: folder, steps, guidance."""
LENGTHS = (16, 64, 256)
SEEDS, CLIPS = (0, 1, 2), 32
SHIFT = 3.0
MOST_APPENDED = 64
"""Frames up to which `append` is drawn: its cost grows with the square."""


def student_of(folder: Path, steps: int, policy: CachePolicy) -> VideoStudent:
    network = VideoTransformer(VideoConfig())
    load_weights(network, folder)
    chain = shifted_chain(RectifiedFlow(), steps, SHIFT)
    return VideoStudent(network.eval().requires_grad_(False), chunk_plan(chain, CHUNK), policy)


def clips_of(student: VideoStudent, frames: int, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Clips (B, frames, 16, 16), and their prompts, the same for every student."""
    _, prompts = digits.moving_digits(CLIPS, 1, torch.Generator().manual_seed(1000 + seed), held_out=True)
    chunks = frames // (CHUNK * digits.COMPRESSION)
    seeds = [10_000 * seed + k for k in range(CLIPS)]
    found = draw_clips(student, prompts.to(device), chunks, seeds)
    return digits.decoded(found).clamp(-1, 1).cpu(), prompts


def whole_clips(folder: Path, steps: int, guidance: float, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Clips of a bidirectional network by Euler steps, and their prompts."""
    network = VideoTransformer(VideoConfig())
    load_weights(network, folder)
    denoiser = video_denoiser(network.eval().to(device))
    _, prompts = digits.moving_digits(CLIPS, 1, torch.Generator().manual_seed(1000 + seed), held_out=True)
    noise = Noise([10_000 * seed + k for k in range(CLIPS)]).draw((WHOLE_FRAMES // 2, 2, 16, 16)).to(device)
    asked = {"prompt": prompts.to(device)}
    nothing = {"prompt": torch.tensor([network.config.any_prompt]).expand_as(prompts).to(device)}

    def clean(x: Tensor, t: Tensor) -> Tensor:
        if guidance == 1:
            return denoiser(x, t, asked)
        within, free = denoiser.both(x, t, asked, nothing)
        return free + guidance * (within - free)

    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    *_, last = ddim_path(denoiser.process, clean, noise, times)
    return digits.decoded(last).clamp(-1, 1).cpu(), prompts


def real_clips(frames: int, seed: int) -> tuple[Tensor, Tensor]:
    return digits.moving_digits(CLIPS, frames, torch.Generator().manual_seed(1000 + seed), held_out=True)


def measured(judge: Any, clips: Tensor, prompts: Tensor) -> dict[str, Tensor]:
    """Numbers of each clip; `end` is the last segment alone, where drift and freezing show."""
    parts = measures.segments(clips, measures.SEGMENT)
    scores = torch.stack([measures.agreement(judge, part, prompts) for part in parts.unbind(1)], 1)
    end = parts[:, -1]
    return {
        "dynamic": measures.dynamic_degree(clips),
        "dynamic_end": measures.dynamic_degree(end),
        "flicker": measures.flicker(clips),
        "seam": measures.seam_jump(clips, CHUNK * digits.COMPRESSION),
        "copying": measures.first_frame_copying(clips, min(8, clips.shape[1] - 1)),
        "agreement": scores.mean(1),
        "agreement_end": scores[:, -1],
        "drift": measures.drift(scores),
        "features": judge.features(end),
    }


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def summary(found: dict[str, Tensor], reference: Tensor) -> dict[str, Any]:
    """Mean with its interval over clips, and the Frechet distance of the last segments."""
    features = found["features"]
    numbers = {name: vars(mean_interval(values)) for name, values in found.items() if name != "features"}
    count = len(features)
    distance, draws = frechet_draws(features, reference, resample_counts(count))
    return {**numbers, "frechet_end": vars(centred_interval(distance, draws, count))}


def differences(found: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Any]:
    """Paired over clips of equal prompt and noise."""
    return {name: vars(difference_interval(found[name], other[name])) for name in found if name != "features"}


def rows(folder: Path) -> Iterator[tuple[str, str, tuple[str, int]]]:
    order = ["static sink", *(name for name in POLICIES if name != "static sink")]
    for policy in order:
        yield BASE, policy, ARMS[BASE]
    for arm, place in ARMS.items():
        if arm != BASE and (folder / place[0]).is_dir():
            yield arm, "EMA sink 0.99" if "causal teacher" not in arm and arm != "consistency" else "drop", place


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/train-video"))
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("results/video.json"))
    given = parser.parse_args()
    if given.device == "cpu":
        torch.set_num_threads(1)
    judge = measures.ClipNetwork(measures.OUTPUTS)
    load_weights(judge, given.folder / "judge")
    pool, _ = digits.moving_digits(1500, measures.SEGMENT, torch.Generator().manual_seed(5), held_out=True)
    reference = judge.features(pool)
    began, found, kept = time.monotonic(), dict[str, Any](), dict[tuple[str, int], dict[str, Tensor]]()

    def note(name: str, frames: int, parts: list[dict[str, Tensor]], base: str = "") -> None:
        all_clips = kept[name, frames] = joined(parts)
        entry = found.setdefault(name, {})[str(frames)] = summary(all_clips, reference)
        if base and (base, frames) in kept:
            entry["less"] = {"than": base, **differences(all_clips, kept[base, frames])}
        print(name, frames, {k: round(v["mean"], 3) for k, v in entry.items() if "mean" in v}, flush=True)
        settings = {
            "window": WINDOW,
            "sink": SINK,
            "chunk": CHUNK,
            "clips": CLIPS,
            "seeds": list(SEEDS),
            "shift": SHIFT,
        }
        document = {"environment": environment(), "seconds": time.monotonic() - began, "settings": settings}
        write_json(given.output, {**document, "measured": found})

    for frames in sorted({*given.lengths, WHOLE_FRAMES}):
        note("real", frames, [measured(judge, *real_clips(frames, seed)) for seed in SEEDS])
    for arm, policy, (name, steps) in rows(given.folder):
        student = student_of(given.folder / name, steps, POLICIES[policy])
        student.network.to(given.device)
        base = f"{BASE} | static sink" if arm == BASE else f"{BASE} | {policy}"
        for frames in given.lengths:
            if (policy == "append" or steps > 4) and frames > MOST_APPENDED:
                continue
            parts = [measured(judge, *clips_of(student, frames, seed, given.device)) for seed in SEEDS]
            note(f"{arm} | {policy}", frames, parts, base)
    for name, (place, steps, guidance) in WHOLE.items():
        if (given.folder / place).is_dir():
            made = [whole_clips(given.folder / place, steps, guidance, seed, given.device) for seed in SEEDS]
            note(name, WHOLE_FRAMES, [measured(judge, *each) for each in made], next(iter(WHOLE)))


if __name__ == "__main__":
    main()
