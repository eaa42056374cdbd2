"""Plans inside the samplers of Boltz and Protenix: functions with the interface of theirs, in whose place they run.

Neither package is needed here: their objects are called as they call them themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.executor import sample
from fewstep.plan import Plan
from fewstep.tasks.proteins.sampling import moved

_KNOBS = ("noise_schedule", "gamma0", "gamma_min", "noise_scale_lambda", "step_scale_eta")
"""What a plan says in place of Protenix' arguments."""
_STEERING = ("fk_steering", "physical_guidance_update", "contact_guidance_update", "guidance_update")


@contextmanager
def sampling_by(plan: Plan, target: Any, seeds: Sequence[int] | None = None) -> Iterator[None]:
    """Inside this context a predictor samples by a plan.

        with sampling_by(structure_plan("protenix-mini", 5), model.structure_module):     # Boltz-1 and Boltz-2
            model(...)
        with sampling_by(structure_plan("protenix-mini", 2), protenix.model.protenix):    # the module that imports it
            runner.predict(...)

    Args:
        plan: of `structure_plan`, or any for clean coordinates and sigma in angstrom.
        target: an object with Boltz' `preconditioned_network_forward` and `sample`, or a module that has Protenix'
            `sample_diffusion`.
        seeds: one per structure of every call; drawn from torch's own stream unless given.

    Raises:
        FewstepError: neither of these.
    """
    function: Callable[..., Any]
    if hasattr(target, "preconditioned_network_forward") and hasattr(target, "sample"):
        name, function = "sample", partial(boltz_sample, target)
    elif hasattr(target, "sample_diffusion"):
        name, function = "sample_diffusion", protenix_sample
    else:
        hint = "Give Boltz' structure_module, or the module protenix.model.protenix."
        raise FewstepError("no sampler known here", value=type(target).__name__, hint=hint)
    own = vars(target).get(name)
    setattr(target, name, partial(function, plan=plan, seeds=seeds))
    try:
        yield
    finally:
        if own is None:
            delattr(target, name)
        else:
            setattr(target, name, own)


@torch.no_grad()
def boltz_sample(
    diffusion: Any,
    atom_mask: Tensor,
    num_sampling_steps: int | None = None,
    multiplicity: int = 1,
    max_parallel_samples: int | None = None,
    steering_args: dict[str, Any] | None = None,
    train_accumulate_token_repr: bool = False,
    *,
    plan: Plan,
    seeds: Sequence[int] | None = None,
    **network_condition_kwargs: Any,
) -> dict[str, Any]:
    """Boltz' `AtomDiffusion.sample` by a plan: the same arguments, of which the number of steps is not read.

    Results are superposed on the state where the module has `alignment_reverse_diff`, and turned at random unless
    `coordinate_augmentation` is off. A confidence head that sees the trajectory sees fewer of its points.

    Raises:
        FewstepError: steering is asked for: it changes the samples between steps, which no plan describes.
    """
    asked = [name for name in _STEERING if (steering_args or {}).get(name)]
    if asked:
        raise FewstepError("a plan does not steer", value=asked, hint="Turn these off, or use Boltz' own sampler.")
    mask = atom_mask.repeat_interleave(multiplicity, 0)
    chunk = max_parallel_samples or multiplicity
    first = hasattr(diffusion, "use_inference_model_cache")  # Boltz-1, which also returns its tokens
    cached: dict[str, Any] = {"model_cache": {} if diffusion.use_inference_model_cache else None} if first else {}
    options = {"training": False} if first else {}
    trajectory = _Trajectory(diffusion) if getattr(diffusion, "accumulate_token_repr", False) else None

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        parts = []
        of_chain = x.unflatten(0, (len(atom_mask), multiplicity))
        for part in of_chain.split(chunk, 1):
            given = dict(multiplicity=part.shape[1], **cached, **network_condition_kwargs)
            flat = part.flatten(0, 1)
            parts.append(
                diffusion.preconditioned_network_forward(flat, float(sigma), network_condition_kwargs=given, **options)
            )
        if trajectory is not None:
            trajectory.add(float(sigma), torch.cat([tokens for _, tokens in parts]))
        found = [part[0] if isinstance(part, tuple) else part for part in parts]
        return torch.cat([f.unflatten(0, (len(atom_mask), -1)) for f in found], 1).flatten(0, 1)

    numbers = _seeds(seeds, len(mask))
    align = bool(getattr(diffusion, "alignment_reverse_diff", False))
    turn = numbers if getattr(diffusion, "coordinate_augmentation", True) else None
    network = moved(denoise, turn, align=align, mask=mask.float())
    x = sample(plan, network, seeds=numbers, shape=(*mask.shape[1:], 3), device=mask.device)
    return {"sample_atom_coords": x, "diff_token_repr": None if trajectory is None else trajectory.told}


class _Trajectory:
    """What Boltz-1's confidence is told of the tokens along the way."""

    def __init__(self, diffusion: Any) -> None:
        self.diffusion = diffusion
        self.told: Tensor | None = None

    def add(self, sigma: float, tokens: Tensor) -> None:
        before = torch.zeros_like(tokens) if self.told is None else self.told
        levels = torch.full((len(tokens),), sigma, device=tokens.device)
        times = self.diffusion.c_noise(levels)
        self.told = self.diffusion.out_token_feat_update(times=times, acc_a=before, next_a=tokens)


@torch.no_grad()
def protenix_sample(
    denoise_net: Callable[..., Tensor],
    input_feature_dict: dict[str, Any],
    s_inputs: Tensor,
    *,
    plan: Plan,
    seeds: Sequence[int] | None = None,
    N_sample: int = 1,
    diffusion_chunk_size: int | None = None,
    attn_chunk_size: int | None = None,
    **condition: Any,
) -> Tensor:
    """Protenix' `sample_diffusion` by a plan: the same arguments by name, of which schedule and scales are not read.

    Returns:
        Coordinates (..., N_sample, N_atom, 3) in angstrom.
    """
    atoms, batch = input_feature_dict["atom_to_token_idx"].size(-1), s_inputs.shape[:-2]
    given = {name: value for name, value in condition.items() if name not in _KNOBS}
    given |= {"input_feature_dict": input_feature_dict, "s_inputs": s_inputs, "chunk_size": attn_chunk_size}
    count = math.prod(batch)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        samples = x.reshape(*batch, N_sample, atoms, 3)
        parts = [
            denoise_net(x_noisy=part, t_hat_noise_level=sigma.to(x.dtype).expand(part.shape[:-2]), **given)
            for part in samples.split(diffusion_chunk_size or N_sample, -3)
        ]
        return torch.cat(parts, -3).reshape(x.shape)

    numbers = _seeds(seeds, count * N_sample)
    x = sample(plan, moved(denoise, numbers), seeds=numbers, shape=(atoms, 3), device=s_inputs.device)
    return x.to(s_inputs.dtype).reshape(*batch, N_sample, atoms, 3)


def _seeds(seeds: Sequence[int] | None, count: int) -> list[int]:
    if seeds is None:
        return torch.randint(2**62, (count,)).tolist()
    if len(seeds) != count:
        raise FewstepError(f"{count} structures need as many seeds", value=len(seeds))
    return list(seeds)
