"""What a mask head can reach: true masks, cut out of their true boxes and put back.

    python benchmarks/mask_ceiling.py --source=FOLDER [--count=20 --sides=384,512,0 --sizes=28,56]

For the first pictures of COCO's training split in FOLDER: each object's mask, of the picture shrunk
to fit a square of `side` pixels (0: as it is), is cut out of its box as the target of the mask loss
is, decided at one half, and put back into the picture of the file's size; the mask AP of that, once
with the centres of pixels as torchvision has them, and once with `aligned`. Prints a table in
Markdown.
"""

import argparse
from functools import partial

import jax
import numpy as np

from jaxseg.data import transforms
from jaxseg.data.builders.prepare import Example, prepare
from jaxseg.metrics import coco
from jaxseg.metrics.masks import encode_mask, paste_mask
from jaxseg.metrics.records import Record
from jaxseg.ops.masks import crop_masks
from jaxseg.tasks.detection import read_truth

cut_out = jax.jit(crop_masks, static_argnames=("size", "aligned"))


def drawn(example: Example, side: int, size: int, aligned: bool) -> Record:
    """The objects of an example, their masks by way of size × size values."""
    height, width = example["image"].shape[:2]
    scale = side / max(height, width) if side else 1.0
    matrix = np.diag([scale, scale, 1.0])
    objects = {name: x for name, x in example.items() if name in ("boxes", "labels", "masks")}
    objects = transforms.select_objects(objects, ~transforms.is_crowd(example))
    canvas = side or max(height, width)
    moved = transforms.warp(objects, matrix, (canvas, canvas))
    each = np.arange(len(moved["boxes"]))
    cut = cut_out(moved["masks"], moved["boxes"], each, size=size, aligned=aligned)
    boxes = moved["boxes"] / np.float32(scale)
    paste = partial(paste_mask, size=(height, width), aligned=aligned)
    masks = [paste(mask, box) for mask, box in zip(np.asarray(cut) >= 0.5, boxes, strict=True)]
    return {
        "boxes": boxes,
        "labels": moved["labels"],
        "scores": np.ones(len(boxes), np.float32),
        "masks": [encode_mask(mask) for mask in masks],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="COCO's folder")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--sides", default="384,512,0")
    parser.add_argument("--sizes", default="28,56")
    options = parser.parse_args()
    dataset = prepare("coco", options.source, with_objects=("train",)).first(options.count)
    examples = list(dataset.splits["train"])
    truths = [read_truth(example) for example in examples]
    print("| pictures at | masks of | mask AP | with `aligned` |", "|---|---|---|---|", sep="\n")
    for side in map(int, options.sides.split(",")):
        for size in map(int, options.sizes.split(",")):
            scores = []
            for aligned in (False, True):
                found = [drawn(example, side, size, aligned) for example in examples]
                scores.append(coco.evaluate(truths, found, dataset.classes, "masks").scores["AP"])
            where = side or "the file's size"
            print(f"| {where} | {size}×{size} | {scores[0]:.3f} | {scores[1]:.3f} |", flush=True)


if __name__ == "__main__":
    main()
