"""CamVid in the layout of the SegNet tutorial: 360×480 street scenes, 11 classes and void.

    CamVid/train.txt, val.txt, test.txt   a line: `/SegNet/CamVid/<image> /SegNet/CamVid/<mask>`
    CamVid/train/…, CamVid/trainannot/…   images, and PNG masks of labels 0 … 10 and 11 (void)

Void becomes IGNORE. Brostow et al., "Semantic object classes in video", 2009; the 11 classes are
those of Badrinarayanan et al., "SegNet", 2017.
"""

from pathlib import Path

import numpy as np

from jaxseg.data.builders.source import (
    DataError,
    Example,
    Source,
    check_file,
    check_unique,
    find_root,
    fingerprint,
    inside,
    read_image,
    read_labels,
    read_lines,
)

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip
PALETTE = np.array(
    [
        [128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222],
        [128, 128, 0], [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192],
    ],
    np.uint8,
)  # fmt: skip
VOID = 11


def open_source(path: str | Path) -> Source:
    """CamVid in `path` or up to two folders below. Examples have `segmentation`."""
    root = find_root(path, "train.txt", "CamVid with its train.txt, as in the SegNet tutorial")
    lists = {s: root / f"{s}.txt" for s in ("train", "val", "test")}
    pairs = {split: _read_pairs(file, root) for split, file in lists.items() if file.exists()}

    def read(split: str, key: str) -> Example:
        image_path, mask_path = (check_file(file, lists[split]) for file in pairs[split][key])
        image, size = read_image(image_path)
        labels = read_labels(mask_path, len(CLASSES), size, void=(VOID,))
        return {"image": image, "segmentation": labels}

    files = [f for split in pairs.values() for pair in split.values() for f in pair]
    return Source(
        name="camvid",
        fingerprint=fingerprint(root, [*files, *filter(Path.exists, lists.values())]),
        classes=CLASSES,
        palette=PALETTE,
        splits={split: tuple(found) for split, found in pairs.items()},
        fields=("segmentation",),
        read=read,
    )


def _read_pairs(file: Path, root: Path) -> dict[str, tuple[Path, Path]]:
    """Name -> (image, mask), in the order of a list file."""
    pairs = []
    for line in read_lines(file):
        entries = line.split()
        if len(entries) != 2:
            raise DataError(f"{file}: line {line!r}; expected the paths of an image and its mask")
        # The paths start where the authors' machine had the set.
        image, mask = (inside(root, e.rpartition("CamVid/")[2], file) for e in entries)
        pairs.append((image.stem, (image, mask)))
    check_unique((name for name, _ in pairs), file)
    return dict(pairs)
