"""Restoration: pictures in, pictures out. Operators, guidances for any plan, jumps."""

from fewstep.tasks.restoration.guidance import GUIDANCES, Measurement, ddnm, ddrm, dps, pigdm, posterior
from fewstep.tasks.restoration.jumps import with_jumps
from fewstep.tasks.restoration.operators import (
    LinearOperator,
    bicubic_downsampling,
    blur,
    box_downsampling,
    denoise,
    grey,
    inpainting,
)
from fewstep.tasks.restoration.residual_shift import anchored, restored
from fewstep.tasks.restoration.scales import decoder_loss, nested, scale_conditions
from fewstep.tasks.restoration.scans import compressed_sensing, fourier_mask, radon, written_out

__all__ = [
    "GUIDANCES",
    "LinearOperator",
    "Measurement",
    "anchored",
    "bicubic_downsampling",
    "blur",
    "box_downsampling",
    "compressed_sensing",
    "ddnm",
    "ddrm",
    "decoder_loss",
    "denoise",
    "dps",
    "fourier_mask",
    "grey",
    "inpainting",
    "nested",
    "pigdm",
    "posterior",
    "radon",
    "restored",
    "scale_conditions",
    "with_jumps",
    "written_out",
]
