"""Stage `video`: the streaming video student on moving digits, and the networks that it is made and judged with.

Its parts in order: `judge` and `motion` (need nothing), `teacher` (bidirectional), `causal` (on real frames),
`consistency` (few steps of `causal`), `student` (its own roll-out, matched by `teacher`). Beside them `accvideo`: a
bidirectional student in few steps from stored trajectories of `teacher`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fewstep.denoiser import Denoiser
from fewstep.distillation.core import Batch
from fewstep.distillation.engine import assemble
from fewstep.distillation.method import Method, method
from fewstep.errors import FewstepError
from fewstep.files import read_tensors, write_tensors
from fewstep.process import RectifiedFlow
from fewstep.tasks.video import digits, measures
from fewstep.tasks.video.network import VideoConfig, VideoTransformer
from fewstep.tasks.video.presets import forced_diffusion, shifted_chain, video_method
from fewstep.tasks.video.student import video_denoiser
from fewstep.train.distillation import stage_of
from fewstep.train.stage import Count, NotNegative, Positive, Stage, StageConfig
from fewstep.transition import coarse_path

WEIGHTS = "weights.safetensors"
BEFORE = {"causal": "teacher", "consistency": "causal", "student": "consistency", "accvideo": "teacher"}
LEG = 10
"""Steps of the teacher between two stored states."""


class VideoStageConfig(StageConfig):
    """Settings of the parts; those of other parts are ignored."""

    data: str = Field("video", description="moving digits, which are drawn by code")
    part: Literal["judge", "motion", "teacher", "causal", "consistency", "student", "accvideo"] = "teacher"
    folder: str = Field("runs/train-video", description="where the earlier parts lie, each in a folder of its name")
    start: str = Field("", description="part that `consistency` and `student` begin as; the one before unless given")
    method: str = Field("self_forcing", description="of `student`: self_forcing, causvid, longlive, reward_forcing")
    options: dict[str, Any] = Field(default_factory=dict, description="of the method")
    clips: Count = Field(20000, description="training clips that are drawn once")
    frames: Count = Field(24, description="of a clip, in pixels")
    width: Count = 128
    layers: Count = 4
    chunk: Count = Field(2, description="latent frames, of two frames each, that are made together")
    window: Count = Field(6, description="latent frames before a chunk that are seen")
    few: Count = Field(2, description="steps of the student")
    guidance: Positive = 2.0
    shift: Positive = 3.0
    prompt_dropout: NotNegative = 0.1
    batch: Count = 128
    steps: Count = 4000
    learning_rate: Positive = 1e-3
    precision: Literal["auto", "float32", "bfloat16"] = "float32"


def build(config: VideoStageConfig) -> Stage:
    """The stage of one part."""
    torch.manual_seed(config.seed)
    if config.part in ("judge", "motion"):
        return _looker(config)
    return _generator(config)


def _looker(config: VideoStageConfig) -> Stage:
    """Judge or motion network: they look at segments of the data."""
    judge = config.part == "judge"
    network = measures.ClipNetwork(measures.OUTPUTS) if judge else measures.ClipNetwork(1, 16)
    clips, prompts = _data(config)
    pixels = torch.tensor(list(digits.SPEEDS.values()))

    def batch(generator: torch.Generator) -> dict[str, Any]:
        rows = torch.randint(len(clips), (config.batch,), generator=generator)
        first = int(torch.randint(clips.shape[1] - measures.SEGMENT + 1, (1,), generator=generator))
        return {"clips": clips[rows, first : first + measures.SEGMENT], "prompts": prompts[rows]}

    def loss(given: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        device = next(network.parameters()).device
        seen, said = given["clips"].to(device), given["prompts"].to(device)
        if judge:
            return measures.judge_loss(network, seen, said), {}
        return measures.motion_loss(network, seen, pixels.to(device)[said[:, 2]]), {}

    return Stage({"network": network}, batch, loss, lambda out: _save(network, out))


def _generator(config: VideoStageConfig) -> Stage:
    sizes = VideoConfig(width=config.width, layers=config.layers)
    folder = Path(config.folder)
    latent = config.frames // digits.COMPRESSION
    before = BEFORE.get(config.part, "")
    network = VideoTransformer(sizes)
    if before:
        load_weights(network, folder / (config.start or before))
    teacher = VideoTransformer(sizes)
    if config.part in ("consistency", "student", "accvideo"):
        load_weights(teacher, folder / ("causal" if config.part == "consistency" else "teacher"))
    teacher.requires_grad_(False)
    denoiser = video_denoiser(teacher)
    shape = (latent, sizes.channels, sizes.side, sizes.side)
    batches = _batches(config, sizes, shape)
    if config.part == "accvideo":
        batches = _stored(config, denoiser, batches)
    reward = _reward(folder, config) if config.options.get("beta") or config.method == "reward_forcing" else None
    start = copy.deepcopy(teacher).requires_grad_(True)
    engine = assemble(
        _method(config, latent), denoiser, start, lambda m: m, batches, shape, student=network, reward=reward
    )
    modules: Mapping[str, nn.Module] = {"teacher": teacher}
    return stage_of(engine, config, lambda out: _save(network, out), modules)


def _method(config: VideoStageConfig, latent: int) -> Method:
    process = RectifiedFlow()
    if config.part in ("teacher", "causal"):
        chunk = latent if config.part == "teacher" else config.chunk
        term = forced_diffusion(chunk, config.window, config.shift)
        return Method({"diffusion": term}, shifted_chain(process, 1, config.shift), needs=frozenset({"data"}))
    shared = {"steps": config.few, "chunk": config.chunk, "window": config.window, "shift": config.shift}
    if config.part == "accvideo":
        return method("accvideo", process, steps=config.few, adversarial=0.0, **config.options)
    name = "causal_consistency" if config.part == "consistency" else config.method
    return video_method(name, process, **{**shared, "guidance": config.guidance, **config.options})


def load_weights(network: nn.Module, folder: Path) -> None:
    """Weights that a part wrote.

    Raises:
        FewstepError: they are not there.
    """
    file = folder / WEIGHTS
    if not file.is_file():
        hint = f"Run: fewstep train video --set part={folder.name} --out {folder}"
        raise FewstepError("an earlier part of the video stage is missing", value=str(file), hint=hint)
    network.load_state_dict({name: value.float() for name, value in read_tensors(file).items()})


def _save(network: nn.Module, out: Path) -> None:
    write_tensors(out / WEIGHTS, {name: value.half() for name, value in network.state_dict().items()})


def _data(config: VideoStageConfig) -> tuple[Tensor, Tensor]:
    """The clips (N, frames, 16, 16) and prompts of the training, drawn once."""
    generator = torch.Generator().manual_seed(config.seed + 1)
    parts = [
        digits.moving_digits(min(1000, config.clips - first), config.frames, generator)
        for first in range(0, config.clips, 1000)
    ]
    clips, prompts = (torch.cat(each) for each in zip(*parts, strict=True))
    return clips, prompts


def _batches(
    config: VideoStageConfig, sizes: VideoConfig, shape: tuple[int, ...]
) -> Callable[[torch.Generator], Batch]:
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    clips, prompts = (x.to(device) for x in _data(config))
    latents = digits.encoded(clips)
    nothing = torch.tensor([sizes.any_prompt], device=device)
    dropping = config.prompt_dropout if config.part in ("teacher", "causal") else 0.0

    def batch(generator: torch.Generator) -> Batch:
        rows = torch.randint(len(latents), (config.batch,), generator=generator)
        gone = (torch.rand(config.batch, generator=generator) < dropping).to(device)
        rows = rows.to(device)
        asked = torch.where(gone[:, None], nothing, prompts[rows])
        return Batch(config.batch, shape, latents[rows], {"prompt": asked}, {"prompt": nothing.expand_as(asked)})

    return batch


@torch.no_grad()
def _stored(
    config: VideoStageConfig, teacher: Denoiser, batches: Callable[[torch.Generator], Batch]
) -> Callable[[torch.Generator], Batch]:
    """Batches of stored trajectories of the guided teacher: its states at the times of the student's calls."""
    network, generator = teacher.network, torch.Generator().manual_seed(config.seed + 2)
    times = torch.empty(0)
    kept: list[tuple[Tensor, Tensor]] = []
    for _ in range(-(-config.clips // config.batch)):
        given = batches(generator)
        assert given.clean is not None
        assert isinstance(network, nn.Module)
        network.to(given.clean.device)
        clean = partial(_guided, teacher, given, config.guidance)
        noise = torch.randn(given.clean.shape, generator=generator).to(given.clean)
        states, times = coarse_path(teacher.process, clean, noise, config.few, LEG)
        kept.append((states, (given.condition or {})["prompt"]))
    paths, prompts = (torch.cat(parts) for parts in zip(*kept, strict=True))

    def batch(generator: torch.Generator) -> Batch:
        given = batches(generator)
        rows = torch.randint(len(paths), (config.batch,), generator=generator).to(paths.device)
        path = paths[rows]
        return replace(given, clean=path[:, -1], path=path, times=times, condition={"prompt": prompts[rows]})

    return batch


def _guided(teacher: Denoiser, batch: Batch, guidance: float, x: Tensor, t: Tensor) -> Tensor:
    time = t.expand(len(x))
    within, free = teacher.both(x, time, batch.condition, batch.negative)
    return free + guidance * (within - free)


def _reward(folder: Path, config: VideoStageConfig) -> Callable[[Tensor, Batch], Tensor]:
    """Motion in pixels per frame by the motion network, in deviations over real clips."""
    network = measures.ClipNetwork(1, 16).requires_grad_(False)
    load_weights(network, folder / "motion")
    pixels = torch.tensor(list(digits.SPEEDS.values()))

    def reward(latents: Tensor, batch: Batch) -> Tensor:
        network.to(latents.device)
        parts = measures.segments(digits.decoded(latents), measures.SEGMENT)
        moved = network(parts.flatten(0, 1))[:, 0].view(parts.shape[:2]).mean(1)
        return (moved - float(pixels.mean())) / float(pixels.std())

    return reward
