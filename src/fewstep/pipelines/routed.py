"""Several students in the place of one network: each sample goes to the one that owns its condition (2410.23274)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.registration import component


@component
class Routed(ModelMixin, ConfigMixin):
    """Students of one class behind one `forward`; a sample costs one network, the file holds all.

    base, settings: class name and configuration of each student.
    argument: keyword argument that decides; whole numbers (B,) are looked up in `owners`, embeddings (B, tokens, C) go
        to the nearest of the centres.
    owners: the student of every class label; other labels go to the first.
    """

    @register_to_config
    def __init__(
        self,
        base: str = "",
        settings: dict[str, Any] | None = None,
        count: int = 1,
        argument: str = "class_labels",
        owners: Sequence[int] = (),
        width: int = 0,
    ) -> None:
        super().__init__()
        import diffusers

        kind = getattr(diffusers, base, None)
        if kind is None:
            raise FewstepError("unknown network of diffusers", value=base)
        self.students = nn.ModuleList(kind.from_config(settings or {}) for _ in range(count))
        self.centres: Tensor
        self.register_buffer("centres", torch.zeros(count, width))

    @classmethod
    def of(cls, students: Sequence[Any], argument: str, owners: Sequence[int] = (), centres: Tensor | None = None):  # type: ignore[no-untyped-def]
        """One network out of trained students of the same architecture."""
        first = students[0]
        settings = {k: v for k, v in first.config.items() if not k.startswith("_")}
        width = 0 if centres is None else centres.shape[1]
        made = cls(type(first).__name__, settings, len(students), argument, list(owners), width)
        for own, trained in zip(made.students, students, strict=True):
            own.load_state_dict(trained.state_dict())
        if centres is not None:
            made.centres.copy_(centres)
        return made.to(next(first.parameters())).eval()

    @property
    def inner(self) -> Any:
        """A student, which is called the same way."""
        return self.students[0]

    @property
    def config(self) -> Any:
        """The own configuration, and that of a student, where pipelines read sizes and channels."""
        students = getattr(self, "students", None)
        known = {} if not students else {k: v for k, v in students[0].config.items() if not k.startswith("_")}
        return FrozenDict({**known, **self._internal_dict})

    def owners(self, condition: Tensor) -> Tensor:
        """Which student owns each sample's condition, (B,)."""
        if not condition.is_floating_point():
            table = torch.tensor(self.config.owners, device=condition.device)
            known = condition < len(table)
            return torch.where(known, table[condition.clamp(max=len(table) - 1)], 0)
        return nearest_centre(pooled(condition), self.centres)

    def forward(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        """As a student; each sample by its owner."""
        owners = self.owners(kwargs[self.config.argument])
        present = owners.unique().tolist()
        if len(present) == 1:
            return self.students[present[0]](*args, return_dict=return_dict, **kwargs)
        size, whole = len(owners), None
        for k in present:
            mine = (owners == k).nonzero().flatten()
            some = [_rows(value, mine, size) for value in args]
            named = {name: _rows(value, mine, size) for name, value in kwargs.items()}
            output = self.students[k](*some, return_dict=False, **named)[0]
            whole = output.new_empty(size, *output.shape[1:]) if whole is None else whole
            whole[mine] = output
        if not return_dict:
            return (whole,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=whole)


def pooled(embedding: Tensor) -> Tensor:
    """The mean over tokens of text embeddings (B, tokens, C), float32 (B, C)."""
    return embedding.float().flatten(1, -2).mean(1)


def nearest_centre(points: Tensor, centres: Tensor) -> Tensor:
    """Number of the nearest centre (B,)."""
    return torch.cdist(points.float(), centres.float()).argmin(1)


def partition(condition: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
    """Owners (N,) of conditions in `count` parts that belong together, and the centres for embeddings.

    Class labels: consecutive ones, equally many. Embeddings: equal slices along their first principal axis, then each
    to the nearest mean, which is how they will be routed.

    Raises:
        FewstepError: fewer conditions than parts.
    """
    if len(condition.unique(dim=0)) < count:
        raise FewstepError(f"{count} students need as many conditions", value=len(condition), hint="Take fewer.")
    if not condition.is_floating_point():
        order = condition.unique()
        rank = torch.searchsorted(order, condition)
        return rank * count // len(order), None
    points = pooled(condition)
    away = points - points.mean(0)
    axis = torch.linalg.svd(away, full_matrices=False).Vh[0]
    rank = (away @ axis).argsort().argsort()
    first = rank * count // len(points)
    centres = torch.stack([points[first == k].mean(0) for k in range(count)])
    return nearest_centre(points, centres), centres


def deciding(tensors: Mapping[str, Tensor]) -> str:
    """The argument that tells conditions apart: class labels, else the text embeddings.

    Raises:
        FewstepError: neither is there.
    """
    for name in ("class_labels", "encoder_hidden_states"):
        if name in tensors:
            return name
    raise FewstepError("students need conditions to share out", value=list(tensors), hint="Train one student.")


def _rows(value: Any, rows: Tensor, size: int) -> Any:
    if isinstance(value, Tensor) and value.ndim and len(value) == size:
        return value[rows]
    if isinstance(value, Mapping):
        return {name: _rows(part, rows, size) for name, part in value.items()}
    return value


__all__ = ["ModelMixin", "Routed"]  # diffusers looks up ModelMixin here to learn how to load
