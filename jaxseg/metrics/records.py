"""What the scores of detections have in common: one record an image, of truth and of detections."""

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def check_records(truths: Sequence[Record], detections: Sequence[Record], num_classes: int) -> None:
    """ValueError unless there is one of each for every image, and labels are 1 … num_classes - 1
    (0 is the background)."""
    if len(truths) != len(detections):
        raise ValueError(f"{len(truths)} records of truth for {len(detections)} of detections")
    for name, records in (("truth", truths), ("detections", detections)):
        labels = {int(label) for record in records for label in record["labels"]}
        if unknown := sorted(labels - {*range(1, num_classes)}):
            raise ValueError(f"{name}: labels {unknown}, expected 1 … {num_classes - 1}")
