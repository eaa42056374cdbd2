"""NP-Edit: an editor trained by a judge and by distribution matching, without pairs."""

from __future__ import annotations

from fewstep.alignment.presets import ALIGNMENTS
from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Term
from fewstep.distillation.method import Method, needing, preset
from fewstep.distillation.roles import Critic, OptimizerSettings, UpdateRule
from fewstep.distillation.rollout import two_calls
from fewstep.distillation.score.branch import score_distillation
from fewstep.distillation.score.critic import denoising_loss
from fewstep.distillation.score.directions import distribution_matching
from fewstep.distillation.score.regularisers import reward_term
from fewstep.distillation.score.weights import error_normalizer
from fewstep.distillation.times import everywhere
from fewstep.errors import FewstepError
from fewstep.process import Process


@preset("np_edit", ALIGNMENTS, distils=True, gradient=True)
def np_edit(
    process: Process,
    chain: Chain,
    *,
    judging: float = 0.01,
    matching: float = 0.5,
    guidance: float = 1.0,
    ratio: int = 10,
    floor: float = 1e-5,
    fixed: bool | None = None,
) -> Method:
    """NP-Edit: a judge's answers about two unrolled calls, and matching to the teacher (arXiv 2510.14978).

        loss = -judging E log sigmoid(l_a - l_b) + matching grad E_t[w_t (C(x_t) - F^g(x_t))] dx/dtheta

    The reward is the judge (`judge_reward`). An editor's student reads the source too, teacher and critic the wanted
    caption alone: see `fewstep.tasks.editing.Editor`. Weights, ratio and rate are those told of the paper, unverified.

    Args:
        process: of the student.
        chain: how the student is run.
        judging: weight of the judge, per sample; 0: matching alone.
        matching: weight of the score term, per number; 0: the judge alone, which is then exploited.
        guidance: g, of the teacher.
        ratio: updates of the critic per update of the student.
        floor: of the normaliser, as in dmd2.
        fixed: whether the second call sees the first noise again; as the chain samples unless given.

    Raises:
        FewstepError: both weights are 0.
    """
    if not judging and not matching:
        raise FewstepError("nothing is trained", value=(judging, matching), hint="Give one of them a weight.")
    terms: dict[str, Term] = {"judge": reward_term(scale=judging)} if judging else {}
    critic = None
    if matching:
        weights = (error_normalizer(guidance, floor),)
        direction = distribution_matching(guidance)
        terms["score"] = score_distillation(direction, everywhere(process), weights, scale=matching)
        critic = Critic(denoising_loss(everywhere(process, 0.001, 1.0)), UpdateRule(ratio))
    needs = needing(reward=bool(judging), guided=bool(matching) and guidance != 1)
    settings = OptimizerSettings(learning_rate=2e-6, betas=(0.9, 0.999), weight_decay=0.01, clip_norm=10.0)
    return Method(terms, chain, two_calls(chain, fixed), critic=critic, needs=needs, settings=settings)
