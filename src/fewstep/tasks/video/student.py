"""A streaming video student: its network, its plan of plans and its cache, as one folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fewstep.cache import CachePolicy, ema_sink
from fewstep.denoiser import Denoiser
from fewstep.distillation.chain import Chain
from fewstep.errors import FewstepError
from fewstep.files import read_json, read_tensors, user_path, write_folder, write_json, write_tensors
from fewstep.plan import NestedPlan, PlanEntry
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.tasks.video.network import VideoConfig, VideoTransformer
from fewstep.zoo import SHIPPED, shipped

WEIGHTS, PLAN, CONFIG = "weights.safetensors", "plan.json", "config.json"


@dataclass(frozen=True, eq=False)
class VideoStudent:
    """What a stream needs.

    Attributes:
        network: the causal network.
        plan: of the chunks; its entries say how many latent frames each has.
        policy: of the cache.
    """

    network: VideoTransformer
    plan: NestedPlan
    policy: CachePolicy = dataclasses.field(default_factory=lambda: ema_sink(6, 2))

    @property
    def denoiser(self) -> Denoiser:
        """The network with its process."""
        return video_denoiser(self.network)

    def replace(self, **changes: object) -> VideoStudent:
        """A copy with another cache, plan or network."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def save(self, folder: str | Path) -> None:
        """Write the folder, whole or not at all: weights in half precision, sizes, plan, cache."""

        def fill(draft: Path) -> None:
            write_tensors(draft / WEIGHTS, {name: value.half() for name, value in self.network.state_dict().items()})
            sizes = {"network": dataclasses.asdict(self.network.config), "cache": dataclasses.asdict(self.policy)}
            write_json(draft / CONFIG, sizes)
            self.plan.save(draft / PLAN)

        write_folder(user_path(folder), fill)


def video_denoiser(network: nn.Module) -> Denoiser:
    """The denoiser of a video network: a rectified flow and its velocity."""
    return Denoiser(network, RectifiedFlow(), Prediction("velocity"))


def chunk_plan(chain: Chain, chunk: int, first: Chain | None = None) -> NestedPlan:
    """The plan of plans of a student's chain: `chunk` latent frames in each part, which is shown the part before.

    first: another chain for the first chunk, which has no motion to go on from (more steps pay there most).
    """
    plans = [c.plan(RectifiedFlow(), Prediction("velocity")) for c in (first, chain) if c is not None]
    return NestedPlan(tuple(plans), tuple(PlanEntry(number, length=chunk) for number in range(len(plans))))


def load_student(source: str | Path) -> VideoStudent:
    """A student from a folder, or one that ships with the package (`video-student`).

    Raises:
        FewstepError: no such folder, or files that are not those of a video student.
    """
    folder = shipped(str(source)) if str(source) in SHIPPED else user_path(source)
    if not (folder / CONFIG).is_file() or not (folder / PLAN).is_file():
        hint = "Use video-student, or a folder that VideoStudent.save wrote."
        raise FewstepError("this is no folder of a video student", value=str(source), hint=hint)
    found = read_json(folder / CONFIG)
    try:
        labels = tuple(found["network"].pop("labels"))
        network = VideoTransformer(VideoConfig(**found["network"], labels=labels))
        policy = CachePolicy(**found["cache"])
        network.load_state_dict({name: value.float() for name, value in read_tensors(folder / WEIGHTS).items()})
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise FewstepError(
            f"the files of this video student do not fit each other: {error}", value=str(folder)
        ) from error
    return VideoStudent(network.eval().requires_grad_(False), NestedPlan.load(folder / PLAN), policy)
