"""Scans of NIfTI and DICOM files as tensors that know where they lie, and back (nibabel, pydicom: extra `medical`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.files import atomic
from fewstep.ownership import Over

NIFTI = (".nii", ".nii.gz")
TO_RAS = np.diag([-1.0, -1.0, 1.0])
"""DICOM's axes point to the left, the back and the head; NIfTI's to the right, the front and the head."""


@dataclass(frozen=True, eq=False)
class Scan:
    """A volume and where its voxels lie.

    Attributes:
        values: (1, I, J, K) float32, in the units of the file; a single slice has K = 1.
        affine: (4, 4) float64, from voxel (i, j, k) to millimetres to the right, the front and the head.
    """

    values: Tensor
    affine: Tensor

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels along I, J and K."""
        i, j, k = self.affine[:3, :3].norm(dim=0).tolist()
        return i, j, k

    @property
    def orientation(self) -> str:
        """Where I, J and K point, as in `RAS`: right, anterior, superior."""
        codes = []
        for column in self.affine[:3, :3].T:
            axis = int(column.abs().argmax())
            codes.append(("RAS" if float(column[axis]) > 0 else "LPI")[axis])
        return "".join(codes)

    def like(self, values: Tensor) -> Scan:
        """Other values of that shape at the same place.

        Raises:
            FewstepError: another shape.
        """
        if values.shape != self.values.shape:
            raise FewstepError("a scan keeps its shape", value=tuple(values.shape), hint=f"{tuple(self.values.shape)}")
        return Scan(values.float(), self.affine)


def read_scan(path: Path | str) -> Scan:
    """The scan of a NIfTI file, of a DICOM file, or of a folder of DICOM slices of one series.

    Raises:
        FewstepError: no such file or package, a broken file, one without spacing, or NaN in it.
    """
    place = Path(path)
    if not place.exists():
        raise FewstepError("there is no such scan", value=str(place), hint="Give a .nii, .nii.gz, .dcm or a folder.")
    try:
        scan = _nifti(place) if place.name.endswith(NIFTI) else _dicom(place)
    except FewstepError:
        raise
    except Exception as error:  # both packages raise many kinds for broken files
        raise FewstepError(f"cannot read the scan {place}: {error}", hint="Replace it, or leave it out.") from error
    if not bool(scan.values.isfinite().all()):
        raise FewstepError("the scan holds NaN or infinity", value=str(place), hint="Mask what is not known.")
    if min(scan.spacing) <= 0:
        raise FewstepError("the scan does not say how far its voxels lie apart", value=str(place))
    return scan


def write_scan(scan: Scan, path: Path | str, over: Over = "nothing") -> None:
    """Write a NIfTI file, atomically, with orientation and spacing.

    Raises:
        FewstepError: another ending, or a file is there that may not be replaced.
    """
    place = Path(path)
    if not place.name.endswith(NIFTI):
        raise FewstepError("scans are written as NIfTI", value=str(place), hint="End the name with .nii or .nii.gz.")
    nibabel = _package("nibabel")
    image = nibabel.Nifti1Image(scan.values[0].numpy().astype(np.float32), scan.affine.numpy())
    image.header.set_xyzt_units("mm")
    with atomic(place, over) as draft:
        data = image.to_bytes()
        if place.name.endswith(".gz"):
            import gzip

            data = gzip.compress(data, mtime=0)
        draft.write_bytes(data)


def _nifti(place: Path) -> Scan:
    image = _package("nibabel").load(place)
    values = np.asarray(image.get_fdata(dtype=np.float32))
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3:
        raise FewstepError("a scan has three dimensions", value=values.shape, hint="Save one time or contrast alone.")
    if not image.header["pixdim"][1:4].all():
        raise FewstepError("the scan does not say how far its voxels lie apart", value=str(place))
    return Scan(torch.from_numpy(values.copy())[None], torch.from_numpy(np.array(image.affine, dtype=np.float64)))


def _dicom(place: Path) -> Scan:
    pydicom = _package("pydicom")
    files = sorted(f for f in place.iterdir() if f.is_file()) if place.is_dir() else [place]
    if not files:
        raise FewstepError("the folder holds no slices", value=str(place))
    slices = [pydicom.dcmread(file) for file in files]
    for one in slices:
        lacking = [n for n in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing") if n not in one]
        if lacking:
            raise FewstepError(f"a slice does not say its {lacking[0]}", value=str(place), hint="Export it anew.")
    return _stacked(slices, str(place))


def _stacked(slices: Sequence[Any], place: str) -> Scan:
    """Slices of one series in the order in which they lie."""
    directions = {tuple(round(float(v), 5) for v in one.ImageOrientationPatient) for one in slices}
    shapes = {(int(one.Rows), int(one.Columns)) for one in slices}
    if len(directions) > 1 or len(shapes) > 1:
        raise FewstepError("the slices belong to several series", value=place, hint="Put each series in its folder.")
    along, down = np.array(next(iter(directions))).reshape(2, 3)  # directions of growing column and row
    normal = np.cross(along, down)
    slices = sorted(slices, key=lambda one: float(normal @ np.array(one.ImagePositionPatient, dtype=float)))
    positions = np.array([[float(v) for v in one.ImagePositionPatient] for one in slices])
    steps = np.diff(positions @ normal)
    if len(steps) and (steps.min() <= 0 or steps.max() > 1.01 * steps.min()):
        raise FewstepError(
            "the slices are not equally far apart", value=place, hint="Some are missing, or there twice."
        )
    between = float(steps.mean()) if len(steps) else float(getattr(slices[0], "SliceThickness", 0) or 1)
    row, column = (float(v) for v in slices[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3, :3] = TO_RAS @ np.stack([down * row, along * column, normal * between], 1)
    affine[:3, 3] = TO_RAS @ positions[0]
    values = np.stack([_values(one) for one in slices], -1)
    return Scan(torch.from_numpy(values)[None], torch.from_numpy(affine))


def _values(one: Any) -> np.ndarray:
    """Pixels in the units that the file says, such as Hounsfield's."""
    slope, start = (float(getattr(one, name, value)) for name, value in (("RescaleSlope", 1), ("RescaleIntercept", 0)))
    return (one.pixel_array.astype(np.float32) * slope + start).astype(np.float32)


def _package(name: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        hint = 'pip install "fewstep[medical]"'
        raise FewstepError(f"this file is read by {name}, which is not installed", value=name, hint=hint) from error
