"""Bits for every layer under a budget: sensitivities, a sweep of allocations, and images that judge among them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.jobs.quantize.recipe import QuantizeRecipe, parse_size
from fewstep.jobs.sharing import digest
from fewstep.quant import sensitivity
from fewstep.quant.allocation import Allocation, LayerOption, allocate, check_budget, sweep
from fewstep.quant.calls import Call, multiply_adds, replay
from fewstep.quant.fidelity import mean_ssim, sqnr
from fewstep.quant.mixed import FLOAT, quantize_mixed
from fewstep.quant.modules import copy_to_quantize, eligible, lookups
from fewstep.quant.report import disk_bytes, own_bytes
from fewstep.quant.rules import LOOKUP
from fewstep.quant.sensitivity import LayerCost, ModelMetric, Table
from fewstep.quant.split import HIDDEN
from fewstep.runs import Run, processes


@dataclass
class BitAllocator:
    """Chooses the schemes of a backbone.

    model: the full-precision backbone, first tokens apart; measured in place and left as it was.
    draw: (backbone) -> images (B, 3, H, W) of the calibration items.
    calls: recorded calls of the backbone.
    options: of `quantize`: the method, and calibration of this very model where it or a candidate needs it.
    share: of the budget in bytes, where a pipeline has two backbones; `tag` tells their measurements apart.
    """

    recipe: QuantizeRecipe
    run: Run
    model: nn.Module
    draw: Callable[[nn.Module], Tensor]
    calls: Sequence[Call]
    options: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0
    tag: str = ""

    @cached_property
    def names(self) -> list[str]:
        """Layers that can be quantized."""
        return eligible(self.model)

    @cached_property
    def groups(self) -> dict[str, str]:
        """`content` or `quality` for each layer."""
        given = self.recipe.allocation.content
        return sensitivity.grouped(self.names, given or sensitivity.CONTENT)

    @cached_property
    def fitted(self) -> dict[str, dict[str, str]]:
        """The scheme of each layer that stands for each candidate: with what the method adds and the layer carries."""
        method, seen = self.options.get("method", "rtn"), self.options.get("calibration")
        return {
            name: {
                candidate: sensitivity.fitted_scheme(
                    self._layer(name), candidate, method, None if seen is None else seen.get(name)
                )
                for candidate in self.recipe.allocation.candidates
            }
            for name in self.names
        }

    @cached_property
    def schemes(self) -> dict[str, list[str]]:
        """What each layer may get, the candidates' order, each once."""
        return {name: list(dict.fromkeys(row.values())) for name, row in self.fitted.items()}

    @cached_property
    def costs(self) -> dict[str, dict[str, LayerCost]]:
        """Bytes and widths of each layer at each of its schemes, smoothing and float branch included."""
        return sensitivity.costs(self.model, self.names, self.schemes)

    @cached_property
    def weights(self) -> dict[str, int]:
        """Number of weights of each layer."""
        return {name: self._layer(name).weight.numel() for name in self.names}

    @cached_property
    def multiply_adds(self) -> dict[str, int]:
        """Of each layer in one call."""
        return multiply_adds(self.model, self.calls[0], self.names)

    @cached_property
    def budget(self) -> int:
        """Bytes that the layers may take: what the aim leaves after everything that is not quantized.

        Raises:
            FewstepError: the budget is below the smallest possible; the message names that.
        """
        recipe = self.recipe
        others = lookups(self.model)  # they are no part of the choice, and get fewer bits as well
        fixed = sensitivity.costs(self.model, others, [str(LOOKUP[0])])
        rest = disk_bytes(self.model) - sum(own_bytes(self._layer(name)) for name in [*self.names, *others])
        rest += sum(cost.bytes for row in fixed.values() for cost in row.values())
        smallest = sum(min(cost.bytes for cost in row.values()) for row in self.costs.values())
        if recipe.effective_bits:
            whole = sum(self.weights.values())
            biases = sum(p.nbytes for n in self.names if (p := self._layer(n).bias) is not None)
            check_budget("bits per weight", recipe.effective_bits, -(-80 * (smallest - biases) // whole) / 10)
            return int(recipe.effective_bits * whole / 8) + biases
        rest += _header(self.model, {**self.costs, **fixed})
        given = int(self.share * parse_size(recipe.budget))
        check_budget("bytes", given, smallest + rest)
        return given - rest

    def measure(self, groups: Mapping[str, str] | None = None, name: str = "sensitivity") -> Table:
        """The metric of every layer (of `groups`) at every candidate; an interrupted measurement goes on."""
        groups = self.groups if groups is None else groups
        log = self.run.scratch(name + self.tag) / "values.jsonl"
        known: Table = {}
        if log.exists():
            for line in log.read_text(encoding="utf-8").splitlines():
                layer, scheme, value = _entry(line)
                known.setdefault(layer, {})[scheme] = value
        window = self.recipe.allocation.window
        probes: dict[str, ModelMetric] = {
            "content": (lambda: self.draw(self.model), lambda a, b: mean_ssim(a, b, window)),
            "quality": (lambda: replay(self.model, self.calls), sqnr),
        }
        make = sensitivity.maker(self.options.get("method", "rtn"), self.options.get("calibration"))
        with (
            self.run.progress(name, total=sum(len(self.schemes[n]) for n in groups)) as advance,
            log.open("a", encoding="utf-8") as file,
        ):
            advance(sum(len(row) for row in known.values()))

            def watch(layer: str, scheme: str, value: float) -> None:
                file.write(json.dumps([layer, scheme, value]) + "\n")
                file.flush()
                advance(1, note=layer)

            share = partial(self._shared, name + self.tag) if processes.count() > 1 else None
            return sensitivity.layer_metrics(
                self.model, probes, groups, self.schemes, make=make, known=known, watch=watch, share=share
            )

    def _shared(self, name: str, work: Mapping[tuple[str, str], Callable[[], float]]) -> list[float]:
        """Values of layers at schemes, measured by whichever process is free."""
        named = {digest(*pair): partial(_tensor, compute) for pair, compute in work.items()}
        return [float(value) for value in self.run.each(name, named)]

    def measure_ratios(self) -> Table:
        """SQNR of the content layers too: with one metric for all layers a joint programme has no groups to trade."""
        content = {name: "quality" for name, group in self.groups.items() if group == "content"}
        return self.measure(content, "sensitivity-sqnr")

    def choices(self, table: Table, groups: Mapping[str, str]) -> dict[str, list[LayerOption]]:
        """What each layer can choose from."""
        found: dict[str, list[LayerOption]] = {}
        for name in self.names:
            count, group = self.multiply_adds[name], groups[name]
            found[name] = [
                LayerOption(
                    scheme, cost.bytes, sensitivity.damage_of(table[name][scheme], group),
                    int(count * cost.weight_bits * cost.activation_bits),
                )
                for scheme, cost in self.costs[name].items()
            ]  # fmt: skip
            # a file in which no first half is quantized would be read as if nothing had been split
            if self.recipe.allocation.keep_float and not name.endswith(f".{HIDDEN}"):
                layer = self._layer(name)
                found[name].append(LayerOption(FLOAT, own_bytes(layer), 0.0, count * 256))
        return found

    def candidates(self, table: Table, ratios: Table) -> list[tuple[str, dict[str, str], Allocation]]:
        """Name, schemes and allocation of every solution within the budgets, uniform ones among them."""
        options, settings = self.choices(table, self.groups), self.recipe.allocation
        bops = int(settings.bops * 256 * sum(self.multiply_adds.values())) if settings.bops else None
        found = [
            (f"ratio {k:g}", allocation.schemes, allocation)
            for k, allocation in sweep(options, self.groups, self.weights, self.budget, settings.ratios, bops)
        ]
        if ratios:
            one = self.choices({**table, **ratios}, dict.fromkeys(self.names, "quality"))
            joint = allocate(one, self.budget, bops)
            found.append(("SQNR alone", joint.schemes, joint))
        for scheme in settings.candidates:
            fitted = {n: self.fitted[n][scheme] for n in self.names}
            same = Allocation({n: next(o for o in options[n] if o.scheme == fitted[n]) for n in self.names})
            if same.bytes <= self.budget and (bops is None or same.bops <= bops):
                found.append((f"uniform {scheme}", same.schemes, same))
        return found

    def choose(self, table: Table, ratios: Table) -> dict[str, Any]:
        """The schemes whose images are nearest to full precision, as JSON values.

        The repository of arXiv 2405.17873 judges on one image and subtracts bytes that wrap around; here it is the
        mean square of floats over all calibration items. Calibrated roundings (gptq, adaround) are left for the choice.
        """
        plain = {**self.options, "method": sensitivity.rounding_to_nearest(self.options.get("method", "rtn"))}
        reference = self.draw(self.model)
        found = self.candidates(table, ratios)
        with self.run.progress("choice among allocations", total=len(found)) as advance:

            def error(name: str, schemes: Mapping[str, str]) -> float:
                low = copy_to_quantize(self.model)
                quantize_mixed(low, schemes, **plain)
                value = float((self.draw(low) - reference).square().mean())
                advance(1, note=f"{name}: {value:.2e}")
                return value

            work = {
                digest(name, json.dumps(schemes)): partial(_tensor, partial(error, name, schemes))
                for name, schemes, _ in found
            }
            errors = self.run.each(f"choose{self.tag}", work)
        tried: list[dict[str, Any]] = [
            {
                "name": name, "bytes": allocation.bytes, "bops": allocation.bops, "damage": allocation.damage,
                "proven": allocation.proven, "error": float(error),
            }
            for (name, _, allocation), error in zip(found, errors, strict=True)
        ]  # fmt: skip
        best = min(range(len(found)), key=lambda k: float(tried[k]["error"]))
        return {"chosen": tried[best]["name"], "schemes": found[best][1], "budget": self.budget, "tried": tried}

    def reasons(self, table: Table, schemes: Mapping[str, str]) -> dict[str, str]:
        """Why each layer got what it got."""
        found = {}
        for name, scheme in schemes.items():
            unit = "SSIM" if self.groups[name] == "content" else "dB"
            here = f"{table[name][scheme]:.4g} {unit}" if scheme in table[name] else "no loss"
            smaller = [s for s, c in self.costs[name].items() if c.bytes < self._size(name, scheme)]
            below = max(smaller, key=lambda s: self.costs[name][s].bytes, default=None)
            step = "the smallest there is" if below is None else f"{below} would give {table[name][below]:.4g}"
            found[name] = f"{self.groups[name]}: {here}; {step}"
        return found

    def _size(self, name: str, scheme: str) -> int:
        return own_bytes(self._layer(name)) if scheme == FLOAT else self.costs[name][scheme].bytes

    def _layer(self, name: str) -> Any:
        return self.model.get_submodule(name)


def _tensor(compute: Callable[[], float]) -> Tensor:
    return torch.tensor(compute(), dtype=torch.float64)


def _header(model: nn.Module, costs: Mapping[str, Mapping[str, LayerCost]]) -> int:
    """At least what the header of the weight file takes: names, types, shapes and offsets of every tensor."""
    parts = {
        name: {part for cost in row.values() for part in cost.parts if part != "packed"} for name, row in costs.items()
    }
    entries = [*model.state_dict(), *(f"{name}.{part}" for name, own in parts.items() for part in own)]
    return 256 + sum(len(name) + 100 for name in entries)


def _entry(line: str) -> tuple[str, str, float]:
    try:
        name, scheme, value = json.loads(line)
        return name, scheme, float(value)
    except (ValueError, TypeError):
        hint = "Delete the file: the measurement begins anew."
        raise FewstepError("a stored sensitivity cannot be read", value=line, hint=hint) from None
