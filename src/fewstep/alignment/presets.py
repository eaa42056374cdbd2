"""Published ways to tune a few-step student, by name: functions of its process, its own chain and options.

They give a `Method` of `fewstep.distillation`: one engine trains both, and `joint` runs both at once. They join their
table as the presets of distillation do theirs:

    @preset("mine", ALIGNMENTS)
    def mine(process: Process, chain: Chain, *, beta: float = 50.0) -> Method: ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fewstep.alignment.contrastive import forward_contrastive
from fewstep.alignment.in_turns import own_turns, roll_out_in_turns
from fewstep.alignment.pairwise import chain_step_loss, pairwise_chain_loss
from fewstep.alignment.policy import policy_gradient
from fewstep.distillation.chain import Chain, eta_steps
from fewstep.distillation.core import Term
from fewstep.distillation.method import Method, Preset, check_options, find_preset, needing, preset
from fewstep.distillation.method import method as distillation_method
from fewstep.distillation.part import replaced
from fewstep.distillation.roles import OptimizerSettings, TargetNetwork
from fewstep.distillation.rollout import backward_simulation
from fewstep.distillation.score.regularisers import reward_term
from fewstep.distillation.score.weights import reward_weight
from fewstep.distillation.times import everywhere
from fewstep.errors import FewstepError
from fewstep.process import Process
from fewstep.registry import Registry
from fewstep.transition import Reduction

SETTINGS = OptimizerSettings(learning_rate=1e-5, betas=(0.9, 0.999), weight_decay=1e-6, ema=0.9)

ALIGNMENTS: Registry[Preset] = Registry(
    "alignment method",
    "fewstep.alignments",
    package="fewstep.alignment",
    decorator="fewstep.distillation.method.preset(name, ALIGNMENTS)",
    source=lambda known: known.make,
)
"""Every method by name, those of other packages too: (process, chain, *, options) -> Method."""


@preset("pso", ALIGNMENTS)
def pso(
    process: Process,
    chain: Chain,
    *,
    eta: float | None = None,
    beta: float = 50.0,
    clamp: float = 0.1,
    reduction: Reduction = "mean",
) -> Method:
    """PSO online: pairs of the student's own runs, ranked by any reward (arXiv 2410.03190).

    Args:
        process: of the student.
        chain: how the student is run.
        eta: noise between the calls in training, 0 to 1; the chain's own unless given.
        beta: strength, of the mean over a sample's numbers.
        clamp: how far the ratio to the reference may move before its gradient ends.
        reduction: of log densities over a sample's numbers.
    """
    loss = pairwise_chain_loss(exploring(chain, eta), beta, clamp, reduction)
    return Method({"pairs": loss}, chain, needs=needing(reward=True, reference=True), settings=SETTINGS)


@preset("step_dpo", ALIGNMENTS)
def step_dpo(process: Process, chain: Chain, *, eta: float | None = None, draws: int = 4, beta: float = 50.0) -> Method:
    """Best against worst of several next states at every step: the loss of Flash-DMD's second stage (2511.20549).

    Args:
        process: of the student.
        chain: how the student is run.
        eta: noise between the calls in training; the chain's own unless given.
        draws: next states per state.
        beta: strength.
    """
    loss = chain_step_loss(exploring(chain, eta), draws, beta)
    return Method({"steps": loss}, chain, needs=needing(reward=True, reference=True), settings=SETTINGS)


@preset("grpo", ALIGNMENTS)
def grpo(
    process: Process,
    chain: Chain,
    *,
    eta: float | None = None,
    group: int = 8,
    clip: float = 0.1,
    kl: float = 0.04,
    last: float = 0.0,
    every: int = 1,
    reduction: Reduction = "mean",
) -> Method:
    """Policy gradient on the steps of the chain, advantages within groups (Flow-GRPO, arXiv 2505.05470).

    Args:
        process: of the student.
        chain: how the student is run.
        eta: noise between the calls in training; the chain's own unless given.
        group: runs per condition.
        clip: how far a ratio to the old policy may move.
        kl: weight of the divergence from the student as it began.
        last: weight of the reward's own gradient on the last call.
        every: updates before the old policy, which draws, becomes the present one.
        reduction: of log densities over a sample's numbers.
    """
    loss = policy_gradient(exploring(chain, eta), group, clip, kl, last, reduction)
    needs = needing(reward=True, reference=kl != 0)
    target = TargetNetwork(every=every) if every > 1 else None
    return Method({"policy": loss}, chain, target=target, needs=needs, settings=SETTINGS)


@preset("refl", ALIGNMENTS, gradient=True)
def refl(process: Process, chain: Chain, *, scale: float = 1.0) -> Method:
    """ReFL: the reward's own gradient through the last call (arXiv 2304.05977); needs a differentiable reward.

    Args:
        process: of the student.
        chain: how the student is run.
        scale: of the loss.
    """
    return draft(process, chain, calls=1, scale=scale)


@preset("draft", ALIGNMENTS, gradient=True)
def draft(process: Process, chain: Chain, *, calls: int = 2, scale: float = 1.0) -> Method:
    """DRaFT-K: the reward's own gradient through the last K calls (arXiv 2309.17400).

    Args:
        process: of the student.
        chain: how the student is run.
        calls: K.
        scale: of the loss.
    """
    rollout = backward_simulation(chain, last=True, through=calls - 1)
    return Method({"reward": reward_term(scale=scale)}, chain, rollout, needs=needing(reward=True), settings=SETTINGS)


@preset("nft", ALIGNMENTS)
def nft(
    process: Process, chain: Chain, *, group: int = 8, beta: float = 1.0, blur: bool = False, decay: float = 0.9
) -> Method:
    """DiffusionNFT: forward-process contrast (arXiv 2509.16117). It blurs few-step students, and wants to be told.

    Args:
        process: of the student.
        chain: how the student is run.
        group: samples per condition.
        beta: as in its formula.
        blur: accept it.
        decay: of the slow student that draws.

    Raises:
        FewstepError: `blur` is not accepted.
    """
    if not blur:
        hint = "Use pso, grpo or joint; or options.blur=true, for a network of many steps."
        raise FewstepError("nft is a denoising loss: it blurs a few-step student", value="blur=False", hint=hint)
    loss = forward_contrastive(chain, everywhere(process), group, beta)
    target = TargetNetwork(decay, warm=True)
    return Method({"contrast": loss}, chain, target=target, needs=needing(reward=True), settings=SETTINGS)


@preset("re_dmd", ALIGNMENTS, distils=True)
def re_dmd(
    process: Process,
    chain: Chain,
    *,
    beta: float = 2.0,
    most: float = 20.0,
    distillation: str = "dmd2",
    distillation_options: Mapping[str, Any] | None = None,
) -> Method:
    """Re-DMD: score distillation whose gradient is weighed by exp(beta reward) (arXiv 2512.04678); needs the teacher.

    Args:
        process: of the student.
        chain: how the student is run.
        beta: strength; what a limited student gives up moves towards low rewards, a matched one does not move.
        most: bound of the weight, which the paper does not have.
        distillation: method with a term `score`.
        distillation_options: of it.
    """
    made = _distilled(process, chain, distillation, distillation_options)
    weighed = replaced(_score(made), weights=(*_score(made).weights, reward_weight(beta=beta, most=most)))  # type: ignore[attr-defined]
    return dataclasses.replace(made, terms={**made.terms, "score": weighed}, needs=made.needs | {"reward"})


@preset("tilted_dmd", ALIGNMENTS, distils=True, gradient=True)
def tilted_dmd(
    process: Process,
    chain: Chain,
    *,
    beta: float = 1.0,
    distillation: str = "dmd2",
    distillation_options: Mapping[str, Any] | None = None,
) -> Method:
    """Score distillation minus beta times the reward's gradient, as in DMDR and NP-Edit; needs the teacher.

    Args:
        process: of the student.
        chain: how the student is run.
        beta: of the reward, in the units of the score term (see `reward_term`).
        distillation: method with a term `score`.
        distillation_options: of it.
    """
    made = _distilled(process, chain, distillation, distillation_options)
    terms = {**made.terms, "reward": reward_term(scale=beta, per_number=True)}
    return dataclasses.replace(made, terms=terms, needs=made.needs | {"reward"})


@preset("joint", ALIGNMENTS, distils=True)
def joint(
    process: Process,
    chain: Chain,
    *,
    policy: str = "pso",
    ratio: int = 1,
    policy_options: Mapping[str, Any] | None = None,
    distillation: str = "dmd2",
    distillation_options: Mapping[str, Any] | None = None,
) -> Method:
    """Reward updates and distillation in turns, so that distances stay: Flash-DMD's second stage; needs the teacher.

    Args:
        process: of the student.
        chain: how the student is run.
        policy: method of the reward updates: pso, step_dpo, grpo, refl, draft, pso_offline or dpo.
        ratio: reward updates per update of the distillation; the paper prefers 5 among 1, 2, 5 and 10.
        policy_options: of that method.
        distillation: the method that keeps the distances.
        distillation_options: of it.

    Raises:
        FewstepError: a policy that is joint itself or has a slow student of its own, or a ratio below 1.
    """
    if ratio < 1:
        raise FewstepError("the ratio counts reward updates per distillation", value=ratio, hint="ratio=1 or more.")
    rewarded = alignment(policy, process, chain, **(policy_options or {}))
    kept = _distilled(process, chain, distillation, distillation_options)
    if rewarded.critic is not None or rewarded.target is not None:
        raise FewstepError("this method cannot be the policy of joint", value=policy, hint="pso, grpo, refl or dpo.")
    count = ratio + 1
    terms: dict[str, Term] = {f"{policy}_{n}": own_turns(t, count, last=False) for n, t in rewarded.terms.items()}
    terms |= {name: own_turns(term, count, last=True) for name, term in kept.terms.items()}
    rollout = roll_out_in_turns(rewarded.rollout, kept.rollout, count)
    return dataclasses.replace(kept, terms=terms, rollout=rollout, needs=kept.needs | rewarded.needs)


def alignment(name: str, process: Process, chain: Chain, **options: Any) -> Method:
    """The method of that name for a student that is run by this chain.

    Raises:
        FewstepError: no such method or option.
    """
    found = ALIGNMENTS.find(name)
    check_options(name, options, found.options)
    return found.make(process, chain, **options)


def exploring(chain: Chain, eta: float | None) -> Chain:
    """The chain with noise of this eta between its calls; the chain itself unless given."""
    return chain if eta is None else Chain(chain.times, law=eta_steps(eta))


def _distilled(process: Process, chain: Chain, name: str, options: Mapping[str, Any] | None) -> Method:
    """A distillation of a student with that chain, without guidance and adversary unless asked for."""
    plain = {"steps": len(chain), "guidance": 1.0, "adversarial": 0.0}
    known = find_preset(name).options
    made = distillation_method(name, process, **{k: v for k, v in plain.items() if k in known} | dict(options or {}))
    return dataclasses.replace(
        made, steps=chain, rollout=None if made.rollout is None else replaced(made.rollout, chain=chain)
    )


def _score(made: Method) -> Term:
    if "score" not in made.terms:
        hint = "Use dmd2, or another method with a term `score`."
        raise FewstepError("this distillation has no score term to weigh", value=list(made.terms), hint=hint)
    return made.terms["score"]
