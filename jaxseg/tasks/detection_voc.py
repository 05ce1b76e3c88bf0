"""Detection as Pascal VOC scores it, too: `voc_AP_11_point` (2007) and `voc_AP_all_point` (since
2010) of the boxes, at an IoU of 0.5, beside the numbers of `tasks.detection`."""

from typing import Any

from jaxseg.tasks import detection
from jaxseg.types import Task


def make_task(dataset: Any, split: str) -> Task:
    """The task for a split of a `data.builders.prepare.Dataset`."""
    return detection.make_task(dataset, split, voc_scores=True)
