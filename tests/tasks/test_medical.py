"""Scans keep where they lie; intervals of exact draws are calibrated; anomalies of a Gaussian are known."""

import numpy as np
import pytest
import torch

from fewstep.errors import FewstepError, PlanError
from fewstep.prediction import Prediction
from fewstep.process import VPContinuous
from fewstep.solvers import SOLVERS, grids
from fewstep.tasks.medical import (
    Scan,
    anomaly_map,
    calibration_curve,
    calibration_error,
    phantom,
    random_phantoms,
    read_scan,
    write_scan,
)
from fewstep.tasks.restoration import fourier_mask, inpainting
from fewstep.testing.mixture import Mixture


def oblique():
    """A scan with voxels of 2 x 3 x 4 mm, its axes to the left, the front and the feet, turned a little."""
    turn = np.deg2rad(10)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-2.0, 3.0, -4.0])
    affine[:3, 3] = 5, -6, 7
    values = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    return Scan(values, torch.from_numpy(affine))


def test_a_scan_says_its_spacing_and_orientation():
    scan = oblique()
    assert scan.spacing == pytest.approx((2, 3, 4))
    assert scan.orientation == "LAI"
    assert torch.equal(scan.like(2 * scan.values).affine, scan.affine)
    with pytest.raises(FewstepError, match="keeps its shape"):
        scan.like(torch.zeros(1, 2, 2, 2))


@pytest.mark.extra("nibabel")
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_nifti_keeps_values_orientation_and_spacing(name, tmp_path):
    import nibabel

    scan, file = oblique(), tmp_path / name
    write_scan(scan, file)
    back = read_scan(file)
    assert torch.equal(back.values, scan.values)
    torch.testing.assert_close(back.affine, scan.affine, atol=1e-5, rtol=0)
    theirs = nibabel.load(file)
    assert theirs.header.get_zooms() == pytest.approx((2, 3, 4))
    assert nibabel.aff2axcodes(theirs.affine) == ("L", "A", "I")
    with pytest.raises(FewstepError):
        write_scan(scan, file)  # nothing is overwritten
    with pytest.raises(FewstepError, match="NIfTI"):
        write_scan(scan, tmp_path / "scan.png")


@pytest.mark.extra("nibabel")
def test_broken_scans_are_named(tmp_path):
    file = tmp_path / "scan.nii"
    write_scan(oblique(), file)
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(FewstepError, match="cannot read"):
        read_scan(file)
    with pytest.raises(FewstepError, match="no such scan"):
        read_scan(tmp_path / "none.nii")
    spoiled = oblique()
    write_scan(spoiled.like(torch.full_like(spoiled.values, torch.nan)), tmp_path / "nan.nii")
    with pytest.raises(FewstepError, match="NaN"):
        read_scan(tmp_path / "nan.nii")


def slices(place, count=3, lacking=None):
    """A series with rows of 0.7 mm, columns of 0.5 mm and slices 2 mm apart, written in another order."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    place.mkdir(exist_ok=True)
    for k in range(count):
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.SOPClassUID = one.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2"
        one.Rows, one.Columns, one.BitsAllocated, one.BitsStored, one.HighBit = 2, 3, 16, 16, 15
        one.SamplesPerPixel, one.PixelRepresentation, one.PhotometricInterpretation = 1, 0, "MONOCHROME2"
        one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        one.ImagePositionPatient = [10, 20, 30 + 2 * k]
        one.PixelSpacing, one.RescaleSlope, one.RescaleIntercept = [0.7, 0.5], 2, -1000
        one.PixelData = (np.arange(6, dtype=np.uint16) + 100 * k).tobytes()
        if lacking is not None:
            delattr(one, lacking)
        one.save_as(place / f"{count - k}.dcm", enforce_file_format=True)
    return place


@pytest.mark.extra("pydicom")
def test_dicom_slices_are_stacked_where_they_lie(tmp_path):
    scan = read_scan(slices(tmp_path / "series"))
    assert scan.values.shape == (1, 2, 3, 3)
    assert scan.spacing == pytest.approx((0.7, 0.5, 2))
    assert scan.orientation == "PLS"  # DICOM: rows go back, columns to the left
    # row 1, column 2 of slice 2 lies at (10 + 2 * 0.5, 20 + 0.7, 34) to the left, the back and the head
    where = scan.affine @ torch.tensor([1.0, 2.0, 2.0, 1.0]).double()
    assert where[:3].tolist() == pytest.approx([-11, -20.7, 34])
    assert float(scan.values[0, 1, 2, 2]) == 2 * 205 - 1000
    one = read_scan(tmp_path / "series" / "3.dcm")
    assert torch.equal(one.values[..., 0], scan.values[..., 0])


@pytest.mark.extra("pydicom")
def test_dicom_without_a_place_or_with_gaps_is_refused(tmp_path):
    with pytest.raises(FewstepError, match="PixelSpacing"):
        read_scan(slices(tmp_path / "bare", lacking="PixelSpacing"))
    gap = slices(tmp_path / "gap", 4)
    (gap / "2.dcm").unlink()
    with pytest.raises(FewstepError, match="equally far"):
        read_scan(gap)


@pytest.mark.extra("pydicom")
@pytest.mark.extra("nibabel")
def test_dicom_becomes_nifti_at_the_same_place(tmp_path):
    scan = read_scan(slices(tmp_path / "series"))
    write_scan(scan, tmp_path / "scan.nii.gz")
    back = read_scan(tmp_path / "scan.nii.gz")
    torch.testing.assert_close(back.affine, scan.affine, atol=1e-5, rtol=0)
    assert torch.equal(back.values, scan.values)


@pytest.mark.parametrize("count", [9, 39])
def test_draws_of_the_right_law_are_calibrated_and_narrow_ones_are_not(count):
    """Any law: the truth is one more draw, so its place among them is uniform."""
    generator = torch.Generator().manual_seed(0)
    law = torch.distributions.Exponential(1.0)
    torch.manual_seed(0)
    draws, truth = law.sample((count, 20_000)), law.sample((20_000,))
    levels = (0.2, 0.5, 0.8)
    curve = calibration_curve(draws, truth, levels)
    torch.testing.assert_close(curve, torch.tensor(levels).double(), rtol=0, atol=0.02)
    narrow = 1 + 0.3 * (torch.randn(count, 20_000, generator=generator))
    assert calibration_error(narrow, 1 + torch.randn(20_000, generator=generator), levels) > 0.2
    with pytest.raises(FewstepError, match="draw more"):
        calibration_curve(draws[:3], truth, (0.9,))
    with pytest.raises(FewstepError, match="fit"):
        calibration_curve(draws[0], truth)


def test_the_anomaly_map_of_a_gaussian_by_its_recursion():
    """Healthy N(0, v): x with an offset is pulled back by the plan's own affine map; noiseless where sigma is small."""
    process, prediction, v = VPContinuous(), Prediction("v_prediction"), 0.04
    data = Mixture.gaussian([0.0] * 4, [v] * 4)
    plan = SOLVERS["ddim"](process, prediction, grids.uniform(process, 8))
    pictures = torch.tensor([[0.0, 0.0, 3.0, 0.0]]).double()
    network = data.network(process, prediction)
    found = anomaly_map(plan, network, pictures, seeds=[0], row=4, draws=400)[0]
    slope = 1.0
    for k in range(4, 8):
        a, s = plan.rows[k].alpha, plan.rows[k].sigma
        b, r = (plan.rows[k + 1].alpha, plan.rows[k + 1].sigma) if k < 7 else (1.0, 0.0)
        gain = a * v / (a**2 * v + s**2)
        slope *= b * gain + r * (1 - a * gain) / s
    kept, noise = slope * plan.rows[4].alpha, slope * plan.rows[4].sigma
    assert float(found[2]) == pytest.approx(3 * (1 - kept), rel=0.05)  # far from zero: the noise averages out
    assert float(found[[0, 1, 3]].mean()) == pytest.approx(noise * (2 / np.pi) ** 0.5, rel=0.1)
    with pytest.raises(PlanError, match="begins there"):
        anomaly_map(plan, network, pictures, seeds=[0], row=8)


def test_the_phantom_has_the_published_values_and_a_middle_slice():
    flat, volume = phantom((64, 64))[0], phantom((65, 64, 64))[0]
    assert float(flat[32, 32]) == pytest.approx(0.2, abs=1e-6)  # inside, between the ellipses
    assert float(flat[32, 40]) == pytest.approx(0.0, abs=1e-6)  # a ventricle
    assert float(flat[3, 32]) == pytest.approx(1.0)  # the skull
    assert float(flat[0, 0]) == 0
    torch.testing.assert_close(volume[32, 32], flat[32])
    some = random_phantoms(3, (32, 32), torch.Generator().manual_seed(0))
    assert some.shape == (3, 1, 32, 32)
    assert float((some[0] - some[1]).abs().max()) > 0
    still = random_phantoms(1, (32, 32), torch.Generator(), spread=0.0)[0]
    torch.testing.assert_close(still, phantom((32, 32)))


def test_a_volume_is_sampled_and_restored_as_a_picture_is():
    """(1, D, H, W): noise, plan and operators take three dimensions, and k-space goes slice by slice."""
    from torch import nn

    from fewstep.executor import sample

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.SiLU(), nn.Conv3d(4, 1, 3, padding=1))
    plan = SOLVERS["dpm_solver_pp_2m"](VPContinuous(), Prediction("v_prediction"), grids.uniform(VPContinuous(), 3))
    with torch.no_grad():
        found = sample(plan, lambda x, time: network(x), seeds=[0, 1], shape=(1, 4, 6, 8))
        alone = sample(plan, lambda x, time: network(x), seeds=[1], shape=(1, 4, 6, 8))
    torch.testing.assert_close(found[1:], alone, atol=1e-5, rtol=1e-5)
    mask = (torch.rand(4, 6, 8, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    operator = inpainting(mask, (1, 4, 6, 8))
    torch.testing.assert_close(operator.pinv(operator.forward(found)), found * mask)
    slices_of = fourier_mask(torch.ones(6, 8), (1, 6, 8))  # k-space of every slice
    flat = found.transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(slices_of.pinv(slices_of.forward(flat)), flat, atol=1e-5, rtol=1e-5)
