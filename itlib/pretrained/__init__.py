"""Other people's models: read, wrapped, adapted, judged, and given back.

:func:`from_diffusers` reads a pipeline in one call; :class:`FromModel` wraps any module by hand. Both give a predictor of
the noise in flat samples, which is all that the methods of this package ask for.
"""

from itlib.pretrained.adapters import distil, exported, merge_lora, save_lora, trainable, with_lora
from itlib.pretrained.models import PREDICTIONS, FromModel, Guided, clamped, edm, thresholded
from itlib.pretrained.pipelines import Wrapped, from_diffusers, read_scheduler
from itlib.pretrained.processes import shared
from itlib.pretrained.report import Report, report
from itlib.pretrained.rewards import Patient, RewardError
from itlib.pretrained.schedules import ContinuousVP, Flow, ModelSchedule, OnGrid, Tabulated, VarianceExploding

__all__ = [
    "PREDICTIONS",
    "ContinuousVP",
    "Flow",
    "FromModel",
    "Guided",
    "ModelSchedule",
    "OnGrid",
    "Patient",
    "Report",
    "RewardError",
    "Tabulated",
    "VarianceExploding",
    "Wrapped",
    "clamped",
    "distil",
    "edm",
    "exported",
    "from_diffusers",
    "merge_lora",
    "read_scheduler",
    "report",
    "save_lora",
    "shared",
    "thresholded",
    "trainable",
    "with_lora",
]
