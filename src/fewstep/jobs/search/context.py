"""What schedules are measured against: the teacher's fine plan, where it goes on the search's items, the objective."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fewstep.jobs.context import Items, JobContext
from fewstep.jobs.search.recipe import ScheduleRecipe
from fewstep.jobs.sharing import Rows, SharedRows
from fewstep.metrics import load_features
from fewstep.pipelines import PipelineSampler, backbone_of
from fewstep.plan import Plan
from fewstep.schedules import DistributionMatch, ModelInfo, TeacherMatch, Trajectory
from fewstep.variants import prunable
from fewstep.zoo import placed


@dataclass(frozen=True, eq=False)
class SearchContext(JobContext[ScheduleRecipe]):
    """The pipeline and its teacher."""

    @cached_property
    def main(self) -> PipelineSampler:
        """The sampler that all plans run in."""
        return self.sampler()

    @cached_property
    def model(self) -> ModelInfo:
        """What schedules need to know of the network."""
        return ModelInfo(self.process, self.prediction, blocks=len(prunable(backbone_of(self.pipe))))

    @cached_property
    def teacher(self) -> Plan:
        """The fine plan."""
        settings = self.recipe.teacher
        return self.solved(settings.solver, settings.steps)

    @cached_property
    def searched(self) -> Items:
        """What the search draws."""
        settings = self.recipe.search
        return self.items("search", settings.conditions, settings.items, settings.seed)

    @cached_property
    def trajectory(self) -> Trajectory:
        """Where the teacher goes on the search's items."""
        return self.followed("teacher", self.main, self.teacher, self.searched, "teacher-trajectory.safetensors")

    @cached_property
    def objective(self) -> TeacherMatch | DistributionMatch:
        """What the search maximises."""
        settings = self.recipe.search
        if settings.objective == "teacher":
            return TeacherMatch(self._rows(self.searched.drawing(self.main, "latent")), self.trajectory.final)
        features = load_features(placed(settings.features))
        draw = self.searched.drawing(self.main)
        rows = self._rows(lambda plan, numbers: features(draw(plan, numbers)))
        return DistributionMatch(rows, lambda found: found, rows(self.teacher, range(settings.items)), settings.items)

    def _rows(self, compute: Rows) -> SharedRows:
        return SharedRows(self.run, "searched", self.searched.pairs, compute, self.recipe.piece)
