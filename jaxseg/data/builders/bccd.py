"""BCCD: red and white blood cells and platelets under the microscope, with boxes, in VOC's layout.

    ImageSets/Main/<split>.txt, JPEGImages/<name>.jpg, Annotations/<name>.xml

364 pictures of 480×640 pixels; boxes count pixels from 1 and include the last one, as VOC's do.
Two of the 4,888 boxes (a red cell each in BloodImage_00338 and BloodImage_00343) are single points
and are left out. github.com/Shenggan/BCCD_Dataset
"""

from collections.abc import Sequence
from pathlib import Path

from jaxseg.data.builders import voc
from jaxseg.data.builders.source import Source

CLASSES = ("RBC", "WBC", "Platelets")


def open_source(path: str | Path, *, splits: Sequence[str] | None = None) -> Source:
    """BCCD in `path` or up to two folders below. Examples have `boxes`, `labels`, `difficult`.

    splits: those to read; None means every list that is there.
    """
    source = voc.open_source(
        path, year=None, task="detection", splits=splits, classes=CLASSES, drop_points=True
    )
    return source._replace(name="bccd")
