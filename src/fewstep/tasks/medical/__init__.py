"""Medical images: scans that keep where they lie, uncertainty from repeated draws, anomalies, phantoms."""

from fewstep.tasks.medical.anomaly import anomaly_map
from fewstep.tasks.medical.phantoms import phantom, random_phantoms
from fewstep.tasks.medical.scans import Scan, read_scan, write_scan
from fewstep.tasks.medical.uncertainty import calibration_curve, calibration_error

__all__ = [
    "Scan",
    "anomaly_map",
    "calibration_curve",
    "calibration_error",
    "phantom",
    "random_phantoms",
    "read_scan",
    "write_scan",
]
