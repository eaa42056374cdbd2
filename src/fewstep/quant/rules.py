"""Which layer gets what: rules for few-step networks, and the decision for every module that they lead to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape

from torch import nn

from fewstep.errors import FewstepError, nearest
from fewstep.quant.calls import Call
from fewstep.quant.modules import kept_reason, layer_names, lookups, shared_parameters
from fewstep.quant.roles import roles_of
from fewstep.quant.scheme import Scheme


@dataclass(frozen=True)
class Rule:
    """Layers that are treated otherwise than the scheme says.

    Attributes:
        patterns: Names or globs of whole dotted module names; a name also covers everything below it.
        scheme: What these layers get (with more bits, never fewer, than the model's scheme), or None to keep them in
            float.
        role: `first`, `last` or `conditioning` (`fewstep.quant.roles`): what the patterns mean. Where they find
            nothing, the layers of this role are looked for in an example call.
    """

    patterns: tuple[str, ...]
    scheme: Scheme | None
    reason: str
    role: str = ""

    def covers(self, name: str) -> bool:
        """Whether a module of this name falls under the rule."""
        return any(_matches(name, pattern) for pattern in self.patterns)

    def adapt(self, scheme: Scheme) -> Scheme | None:
        """The scheme of a covered layer in a model quantized with `scheme`."""
        if self.scheme is None:
            return None
        weight = scheme if scheme.weight_bits >= self.scheme.weight_bits else self.scheme
        activation = scheme if scheme.activation_bits >= self.scheme.activation_bits else self.scheme
        return dataclasses.replace(
            weight,
            activation_bits=activation.activation_bits,
            activation_format=activation.activation_format,
            activation_group=activation.activation_group,
            smooth=scheme.smooth,
            rank=scheme.rank,
            hadamard=scheme.hadamard,
        )


# What a few-step model cannot afford: with four network calls no later step repairs what the first layers lose.
_END = "first or last layer: its error reaches every pixel, and it is small"
FEW_STEP_RULES = (
    Rule(("conv_in", "x_embedder", "pos_embed.proj", "img_in"), Scheme(8, 8), _END, "first"),
    Rule(("conv_out", "proj_out"), Scheme(8, 8), _END, "last"),
    Rule(
        (
            "time_embedding", "add_embedding", "time_text_embed", "time_embed", "time_proj", "timestep_embedder",
            "adaln_single", "condition_embedder", "caption_projection", "context_embedder", "encoder_hid_proj",
            "norm_out",
        ),
        Scheme(8, 16),
        "conditioning: one row per image or prompt, so 8-bit inputs save no time, and the error reaches every layer",
        "conditioning",
    ),
)  # fmt: skip

_KEPT = "kept in float where this network was quantized before: 8 bits in all layers gave noise"
PUBLISHED_RULES: Mapping[str, tuple[Rule, ...]] = {
    # layers that diffusers marks as not to be cast, and those that NVIDIA's Model-Optimizer (pull request 1205) and
    # vllm-omni leave out: embedders, the final layer and the modulation, 2 % of the weights
    "ZImageTransformer2DModel": (
        Rule(("t_embedder", "cap_embedder", "all_x_embedder", "all_final_layer", "*.adaLN_modulation"), None, _KEPT),
    ),
}
"""By the class of a network: exclusions that were published for it."""


def default_rules(model: nn.Module) -> tuple[Rule, ...]:
    """What was published for this class of networks, or else `FEW_STEP_RULES`."""
    return PUBLISHED_RULES.get(type(model).__name__, FEW_STEP_RULES)


LOOKUP = Scheme(8, 16), "embedding: fewer bits of a lookup save no time, and their error reaches every layer"
"""What embeddings get where nothing else was said of them."""


Decision = tuple[Scheme | None, str]
"""What a module gets (None keeps it in float), and why; the reason is empty where the model's scheme simply applies."""


@dataclass(frozen=True)
class Decisions:
    """What every module of a model gets, however it was chosen; `replace_layers` makes it so.

    Attributes:
        scheme: Of the model as a whole.
        modules: The decision for every module that holds parameters, by name.
        unmatched: Roles whose rule found no layer.
    """

    scheme: Scheme
    modules: Mapping[str, Decision]
    unmatched: tuple[str, ...] = ()


def decisions(
    model: nn.Module, scheme: Scheme, choose: Callable[[str], Decision], unmatched: tuple[str, ...] = ()
) -> Decisions:
    """The decisions of `choose` (by name) for all layers that can be quantized; all others are kept."""
    shared, found = shared_parameters(model), {}
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            reason = kept_reason(module, shared)
            found[name] = (None, reason) if reason else _suited(module, choose(name))
    return Decisions(scheme, found, unmatched)


def _suited(module: nn.Module, decision: Decision) -> Decision:
    """An embedding has no inputs to round, smooth or multiply by: of a scheme it takes the format of the weights."""
    scheme, reason = decision
    if scheme is None or not isinstance(module, nn.Embedding):
        return decision
    plain = {"activation_bits": 16, "activation_format": "dynamic", "activation_group": None}
    return dataclasses.replace(scheme, **plain, smooth=False, rank=0, hadamard=False), reason  # type: ignore[arg-type]


def decisions_by_rules(
    model: nn.Module, scheme: Scheme, skip: Sequence[str], rules: Sequence[Rule], example: Call | None = None
) -> Decisions:
    """What the first rule that covers a layer says, or else the scheme; embeddings get 8 bits at least.

    Raises:
        FewstepError: a pattern of `skip` that names no layer.
    """
    check_patterns(model, skip)
    rules, unmatched = found_rules(model, rules, example)
    if skip:
        rules = [Rule(tuple(skip), None, "kept on request"), *rules]
    rules = [*rules, Rule(tuple(map(escape, lookups(model))), *LOOKUP)]
    return decisions(model, scheme, lambda name: decide(name, scheme, rules), unmatched)


def decide(name: str, scheme: Scheme, rules: Sequence[Rule]) -> Decision:
    """What a layer of this name gets in a model quantized with `scheme`."""
    for rule in rules:
        if rule.covers(name):
            target = rule.adapt(scheme)
            return target, "" if target == scheme else rule.reason
    return scheme, ""


def check_patterns(model: nn.Module, patterns: Sequence[str]) -> None:
    """Raise a FewstepError for a pattern that names no layer."""
    if isinstance(patterns, str):
        raise FewstepError("skip must be a list of patterns", value=patterns, hint=f"Write [{patterns!r}].")
    names = layer_names(model)
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            raise FewstepError("skip pattern matches no layer", value=pattern, hint=nearest(pattern, names))


def found_rules(
    model: nn.Module, rules: Sequence[Rule], example: Call | None = None
) -> tuple[list[Rule], tuple[str, ...]]:
    """The rules, those whose patterns find nothing with the layers of their role in an example call; and the roles that
    are still without a layer."""
    names = layer_names(model)
    roles: dict[str, tuple[str, ...]] | None = None
    found, unmatched = [], []
    for rule in rules:
        if rule.role and not any(rule.covers(name) for name in names):
            if roles is None:
                roles = {} if example is None else roles_of(model, example)
            own = roles.get(rule.role, ())
            unmatched += [] if own else [rule.role]
            rule = dataclasses.replace(rule, patterns=tuple(map(escape, own)))
        found.append(rule)
    return found, tuple(unmatched)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
