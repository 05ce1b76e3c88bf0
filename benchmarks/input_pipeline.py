"""Our input pipeline beside a torch DataLoader doing the same work, in one run.

    python benchmarks/input_pipeline.py [--data=shapes --workers=2 --batches=40 --rounds=3]

Both read the same ArrayRecord, decode, and augment with the same functions (random scale, crop,
flip, colours), into batches of numpy arrays. What differs is shuffling, workers, batching and
handing over. They take turns; medians of images a second and their ratio are printed. Needs the
extra `torch`.
"""

import argparse
import itertools
import statistics
import time
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from jaxseg.data import pipeline
from jaxseg.data.builders import prepare

BATCH = 8


class Augmented(Dataset):
    """The same examples and augmentation, as PyTorch wants them."""

    def __init__(self, examples, augment):
        self.examples, self.augment = pipeline.Numbered(examples), augment

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        rng = np.random.default_rng(torch.randint(2**62, ()).item())
        return self.augment(self.examples[index], rng)


def collate(rows):
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def forever(loader):
    while True:
        yield from loader


def rate(batches, count: int) -> float:
    """Images a second over `count` batches, after the first few."""
    for _ in range(4):
        next(batches)
    start = time.perf_counter()
    for _ in itertools.islice(batches, count):
        pass
    return count * BATCH / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="shapes", choices=["shapes", "camvid"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    size = (256, 256) if options.data == "shapes" else (360, 480)
    extra = dict(image_size=size, num_train=200, num_val=8) if options.data == "shapes" else {}
    dataset = prepare(options.data, **extra)
    augment = partial(
        pipeline.augment_example,
        image_size=size,
        crop_size=size,
        scales=(0.75, 1.5),
        flip=True,
        color={"brightness": 0.3, "contrast": 0.3, "saturation": 0.3},
        num_classes=len(dataset.classes),
    )
    examples = dataset.splits["train"]

    def ours(workers: int):
        return pipeline.training_batches(
            examples, augment, batch_size=BATCH, seed=0, num_workers=workers
        )

    loader = DataLoader(
        Augmented(examples, augment),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        collate_fn=collate,
        persistent_workers=options.workers > 0,
    )
    rates = []
    for _ in range(options.rounds):
        row = []
        for workers in (0, options.workers):
            batches = ours(workers)
            row.append(rate(batches, options.batches))
            if hasattr(batches, "close"):
                batches.close()
        rates.append([*row, rate(forever(loader), options.batches)])
    threads, workers, peer = (statistics.median(column) for column in zip(*rates, strict=True))
    print(f"{options.data} {size}, batches of {BATCH}")
    named = f"{options.workers} workers"
    print(f"jaxseg, {'threads':12} {threads:8.1f} images/s   ratio {peer / threads:.2f}")
    print(f"jaxseg, {named:12} {workers:8.1f} images/s   ratio {peer / workers:.2f}")
    print(f"torch,  {named:12} {peer:8.1f} images/s   (ratio below 1: jaxseg is faster)")


if __name__ == "__main__":
    main()
