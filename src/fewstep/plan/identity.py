"""What a plan belongs to: the network, its quantization, the guidance."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.errors import IdentityError
from fewstep.plan import checks
from fewstep.weights import same_weights

TOGETHER = " and "
"""Stands between the fingerprints, or the schemes, of a pipeline's networks."""


@dataclass(frozen=True)
class Identity:
    """What a plan belongs to; None means "any". Compared field by field before a plan is used."""

    model: str | None = None
    """Fingerprint of the network's weights (`fewstep.denoiser.fingerprint`)."""
    quantization: str | None = None
    """Name of the scheme, `"none"` for a full-precision network."""
    guidance: float | None = None
    """Classifier-free guidance scale the network output includes (1 = without)."""

    def __post_init__(self) -> None:
        for name in ("model", "quantization"):
            if getattr(self, name) is not None:
                checks.text(f"identity.{name}", getattr(self, name))
        checks.guidance("guidance", self.guidance)

    def check(self, found: Identity) -> None:
        """Refuse a plan that was made for something else.

        Raises:
            IdentityError: a field that both sides know differs.
        """
        for name, wanted in vars(self).items():
            have = getattr(found, name)
            if name == "guidance" and wanted is not None and have is not None:
                wanted, have = max(1.0, wanted), max(1.0, have)  # pipelines run every scale up to 1 without guidance
            if wanted is None or have is None or wanted == have:
                continue
            if name == "guidance" or not _same(wanted, have):
                raise IdentityError(
                    f"this plan belongs to {name} {wanted!r}, not {have!r}",
                    hint=f"Use it with that {name}, or search a plan for this one (fewstep run q-sched).",
                )


def _same(wanted: str, have: str) -> bool:
    """Whether the networks are those that the plan knows; plans of earlier versions know the first alone."""
    known, found = wanted.split(TOGETHER), have.split(TOGETHER)
    return len(known) <= len(found) and all(map(same_weights, known, found))
