"""What the candidates are compared with and drawn by: reference pictures, plans, networks in low bits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.jobs.auto.recipe import MIXED, OWN, RESIDENT, AutoRecipe
from fewstep.jobs.context import Items, JobContext, slug, tensor_unit
from fewstep.jobs.low_bit import LowBitPart, low_bit_part
from fewstep.jobs.quantize.job import VAE_RULES
from fewstep.jobs.quantize.measure import timings
from fewstep.jobs.sharing import SharedRows
from fewstep.metrics import FeatureNet, load_features
from fewstep.pipelines import PipelineSampler, plan_of
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.plan import Plan
from fewstep.quant import quantize
from fewstep.quant.bits import CANDIDATES, quantize_to_bits
from fewstep.quant.calls import Call, replay, spread_calls
from fewstep.quant.modules import copy_to_quantize, eligible
from fewstep.quant.report import resident_bytes
from fewstep.quant.split import split_skips
from fewstep.schedules import Trajectory
from fewstep.schedules.gits import gits
from fewstep.solvers import SOLVERS, grids
from fewstep.zoo import placed

GUIDED = ", guidance "
"""In the name of a plan: what follows is the law of its guidance."""
KEPT = 4
"""Networks in low bits that stay in memory at once."""


@dataclass(frozen=True, eq=False)
class AutoContext(JobContext[AutoRecipe]):
    """The pipeline in full precision and everything that is made of it."""

    @cached_property
    def keeps_solver(self) -> bool:
        """Whether the network was distilled for its sampler: a stored plan, or one that draws noise."""
        return isinstance(self.pipe.scheduler, PlanScheduler) or self.plan.stochastic

    @cached_property
    def reference(self) -> Plan:
        """What full precision does with all the steps that it could want."""
        if self.keeps_solver:
            return self.plan
        return self.solved("unipc", self.recipe.search.reference_steps)

    @cached_property
    def searched(self) -> Items:
        """What candidates are compared on."""
        settings = self.recipe.search
        return self.items("search", settings.conditions, settings.items, settings.seed)

    @cached_property
    def held_out(self) -> Items:
        """What the numbers of the front are measured on."""
        settings = self.recipe.evaluation
        return self.items("evaluation", settings.conditions, settings.items, settings.seed)

    # --- plans ------------------------------------------------------------------------------------------------------

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """Every plan that is tried, by name."""
        space, found = self.recipe.space, dict[str, Plan]()
        # a student that was distilled for its sampler is no better in more steps than it was distilled for
        counts = [n for n in space.steps if not self.keeps_solver or n <= self.plan.steps]
        for steps in counts:
            for solver in space.solvers if not self.keeps_solver else [OWN]:
                found |= self._plans(solver, steps)
        if not found:
            hint = "Let space.steps hold the number of steps of the stored plan."
            raise FewstepError("no plan of the space fits this pipeline", value=space.steps, hint=hint)
        return found

    def plan_named(self, name: str) -> Plan:
        """A plan by its name, with guidance that changes from step to step where the name says so."""
        plain, _, law = name.partition(GUIDED)
        return self.plans[plain] if not law else guided(self.plans[plain], self.guidance, law)

    def guided_names(self, name: str) -> list[str]:
        """Names of the same plan with guidance that changes; none where there is no guidance to change."""
        serves = self.guidance > 1 and hasattr(type(self.pipe), "guidance_scale") and self.plans[name].steps > 1
        return [f"{name}{GUIDED}{law}" for law in self.recipe.space.guidance] if serves else []

    def sampler(self, **parts: nn.Module) -> PipelineSampler:
        """As usual; plans that draw noise get the reference's, step by step, so that pictures of one seed compare."""
        plain = super().sampler(**parts)
        return plain.changed(noise_like=self.reference) if self.reference.stochastic else plain

    def _plans(self, solver: str, steps: int) -> dict[str, Plan]:
        """Those of one solver, on its usual and on searched times; nothing where it cannot be built."""
        try:
            if solver == OWN:
                guided = {"guidance_scale": self.recipe.guidance or None}
                return {f"{OWN} {steps}": plan_of(self.pipe, steps, **guided, **self.recipe.call)}
            made = {f"{solver} {steps}": self.solved(solver, steps)}
            if self.recipe.space.searched_times and steps > 1:
                times = [float(self._trajectory.plan.rows[k].time) for k in gits(self._trajectory, [steps])[steps]]
                made[f"{solver} {steps}, searched times"] = SOLVERS[solver](
                    self.process, self.prediction, grids.given(times)
                )
            return made
        except FewstepError as error:
            self.run.say(f"[dim]{solver} in {steps} steps is left out: {error}[/dim]")
            return {}

    @cached_property
    def _trajectory(self) -> Trajectory:
        """Where full precision goes on a few of the items."""
        some = self.searched.pick(range(max(2, self.recipe.search.items // 4)))
        return self.followed("trajectory", self.sampler(), self.reference, some)

    # --- pictures ---------------------------------------------------------------------------------------------------

    @cached_property
    def _network(self) -> FeatureNet:
        return load_features(placed(self.recipe.search.features))

    def features(self, pictures: Tensor) -> Tensor:
        """What pictures (B, 3, H, W), or videos frame by frame, are compared in: (B, d)."""
        if pictures.ndim == 5:
            return self._network(pictures.flatten(0, 1).clamp(0, 1)).unflatten(0, pictures.shape[:2]).flatten(1)
        return self._network(pictures.clamp(0, 1))

    @cached_property
    def search_truth(self) -> tuple[Tensor, float]:
        """The reference's features (N, d) on the items of the search, and how far another seed's picture is."""
        return self._truth("search", self.searched)

    @cached_property
    def held_out_truth(self) -> tuple[Tensor, float]:
        """The same on the held-out items."""
        return self._truth("held-out", self.held_out)

    def _truth(self, name: str, items: Items) -> tuple[Tensor, float]:
        other = Items(items.conditions, [seed + 500_009 for seed in items.seeds])
        numbers, rows = range(len(items.seeds)), [self.rows(some, "none", "none") for some in (items, other)]

        def compute() -> dict[str, Tensor]:
            first, second = (one(self.reference, numbers) for one in rows)
            return {"features": first, "other": second}

        unit = f"reference-{name}"
        if not self.run.done(unit):
            for one in rows:
                one.ahead([(self.reference, numbers)])
        found = tensor_unit(self.run, unit, compute)
        away = float((found["features"] - found["other"]).norm(dim=1).mean())
        if not away > 0:
            hint = "Look at the pictures, or choose other search.features."
            raise FewstepError("all seeds give one picture, so that no distance has a unit", value=away, hint=hint)
        return found["features"], away

    def rows(self, items: Items, scheme: str, parts: str, models: Mapping[str, nn.Module] | None = None) -> SharedRows:
        """Features (n, d) of these items, drawn with networks in these bits, or with these networks."""
        scheme = scheme.removesuffix(RESIDENT)  # where codes lie in memory changes no picture
        name = f"features-{slug(scheme)}-{slug(parts)}" + "-refined" * (models is not None)

        def compute(plan: Plan, numbers: Sequence[int]) -> Tensor:
            made = self.low(scheme, parts) if models is None else models
            return self.features(items.pick(numbers).draw(self.sampler(**made), plan))

        return SharedRows(self.run, name, items.pairs, compute, self.recipe.piece)

    def distances(self, truth: tuple[Tensor, float], rows: SharedRows, plan: Plan, count: int) -> Tensor:
        """How far pictures are from the reference's, (count,): 0 is the same, 1 another seed's picture.

        Args:
            truth: `search_truth` or `held_out_truth`.
            rows: of its items.
            plan: what draws them.
            count: so many of the items.
        """
        features, unit = truth
        return (rows(plan, range(count)) - features[:count]).norm(dim=1) / unit

    # --- networks in low bits ---------------------------------------------------------------------------------------

    @cached_property
    def calls(self) -> dict[str, list[Call]]:
        """The first call of every network while one item is drawn."""
        return self.calls_of(self.searched.pick([0]), limit=1)

    def low(self, scheme: str, parts: str) -> dict[str, nn.Module]:
        """The components that change at this setting."""
        wanted = [(name, scheme) for name in self.backbones if scheme != "none"]
        wanted += [(name, parts) for name in self.others if parts != "none"]
        for name, told in wanted:
            known = self._kept.pop((name, told)) if (name, told) in self._kept else self._low(name, told).model
            self._kept[name, told] = known
        for old in list(self._kept)[: -max(KEPT, len(wanted))]:
            del self._kept[old]
        return {name: self._kept[name, told] for name, told in wanted}

    @cached_property
    def _kept(self) -> dict[tuple[str, str], nn.Module]:
        """The last networks in low bits, the oldest first: the others lie in the run directory."""
        return {}

    @cached_property
    def others(self) -> list[str]:
        """Text encoders and autoencoder, as far as the pipeline has them."""
        parts = self.pipe.components.items()
        return [n for n, part in parts if isinstance(part, nn.Module) and self.part_kind(n) in ("text", "vae")]

    def _low(self, name: str, scheme: str) -> LowBitPart:
        source = self.pipe.components[name]
        make = partial(self._quantized, name, source, scheme)
        key = f"{name}-{slug(scheme)}"
        return low_bit_part(self, source, make, unit=f"low-{key}", artifact=f"low/{key}")

    def _quantized(self, name: str, source: nn.Module, scheme: str) -> LowBitPart:
        model, calls = copy_to_quantize(source), self.calls.get(name, [])
        if name in self.backbones:
            split_skips(model)
            if scheme.startswith(MIXED):
                return LowBitPart(model, quantize_to_bits(model, calls, float(scheme.removeprefix(MIXED))).to_dict())
            backend = "int8" if scheme.endswith(RESIDENT) else "auto"
            report = quantize(model, scheme.removesuffix(RESIDENT), example=spread_calls(calls), backend=backend)
            return LowBitPart(model, report.to_dict())
        rules = VAE_RULES if self.part_kind(name) == "vae" else ()
        return LowBitPart(model, quantize(model, scheme, rules=rules).to_dict())

    def seconds_per_layer(self) -> float:
        """What it would take to measure every layer at every scheme of `mixed`."""
        took = 0.0
        for name, model in self.backbones.items():
            begun = time.perf_counter()
            replay(model, self.calls.get(name, []))
            took += (time.perf_counter() - begun) * len(eligible(model)) * len(CANDIDATES)
        return took

    # --- costs ------------------------------------------------------------------------------------------------------

    def size(self, models: Mapping[str, nn.Module]) -> int:
        """Bytes of all weights in memory with some components exchanged."""
        parts = {**self.pipe.components, **models}
        return sum(resident_bytes(part) for part in parts.values() if isinstance(part, nn.Module))

    def timed(self, models: Mapping[str, nn.Module], plan: Plan) -> list[float]:
        """Milliseconds of whole pictures, one at a time, prompts encoded anew."""
        one = self.searched.pick([0])
        return timings({"": lambda: one.draw(self.sampler(**models), plan)}, self.recipe.search.rounds)[""]


def guided(plan: Plan, scale: float, law: str) -> Plan:
    """The plan with guidance that falls from 1 + 1.5 (g - 1) to 1 + 0.5 (g - 1) in equal steps, or rises."""
    last = plan.steps - 1
    shares = [1.5 - k / last for k in range(plan.steps)]
    if law == "rising":
        shares.reverse()
    rows = [replace(row, guidance=1 + w * (scale - 1)) for row, w in zip(plan.rows, shares, strict=True)]
    return plan.replace(rows=tuple(rows))


def timing_spread(milliseconds: list[float]) -> float:
    """How far timings of one thing are apart: the range of the middle half over the median."""
    quarters = statistics.quantiles(milliseconds, n=4)
    return (quarters[2] - quarters[0]) / statistics.median(milliseconds)
