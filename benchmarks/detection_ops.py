"""RoI-Align and non-maximum suppression beside torchvision's, in one run.

    python benchmarks/detection_ops.py [--ops=align,multiscale,nms,batched --size=800,1088
                                        --rounds=15 --threads=2]

    align       512 RoIs of 7×7 bins, 2×2 points a bin, on the map of stride 8, 256 channels
    multiscale  the same on the four maps of strides 4 to 32
    nms         of 2,000 and 6,000 boxes, at IoU 0.5 and 0.7
    batched     of 4,000 boxes of 80 classes, and the best 300 of them

float32, both on the same device, ours under jit. RoI-Align forward, and forward with the gradient
of the maps. Boxes for suppression lie around objects, twenty to each, as proposals do. Both must
give the same, numbers but for rounding, indices exactly, before anything is timed. The two take
turns, round by round; medians and the median of the ratios (ours over theirs) are printed, beside
the goal. torchvision has the memory format, of two, that it is faster with. Where it cannot be
imported that is said, and we run alone. Needs the extra `torch`, and torchvision of the same
release.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--ops", default="align,multiscale,nms,batched")
parser.add_argument("--size", default="800,1088", help="height,width of the image")
parser.add_argument("--channels", type=int, default=256)
parser.add_argument("--rois", type=int, default=512)
parser.add_argument("--rounds", type=int, default=15)
parser.add_argument("--threads", type=int, help="on CPU; all cores if not given")
options = parser.parse_args()
if options.threads and hasattr(os, "sched_setaffinity"):  # before anyone counts the cores
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from jaxseg.ops.nms import batched_nms, nms  # noqa: E402
from jaxseg.ops.roi import multiscale_roi_align, roi_align  # noqa: E402

try:
    import torch
    import torchvision
except ImportError as error:
    torch, missing = None, error

HEIGHT, WIDTH = map(int, options.size.split(","))
STRIDES = (4, 8, 16, 32)
BINS = (7, 7)


class Case(NamedTuple):
    """One line of the table: what both do, as functions that run once and wait."""

    name: str
    goal: float
    ours: Callable[[], Any]
    theirs: list[Callable[[], Any]]  # in each of their memory formats
    # (ours, theirs) -> what to say of results that agree; AssertionError for others
    compare: Callable[[Any, Any], str]


# ---- inputs


def make_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """[count 4] xyxy inside of the image; sides of 16 to 512 pixels, each octave alike."""
    centre = rng.uniform((0, 0), (WIDTH, HEIGHT), (count, 2))
    half = np.exp(rng.uniform(np.log(16), np.log(512), (count, 2))) / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    return np.clip(boxes, 0, np.tile([WIDTH, HEIGHT], 2)).astype(np.float32)


def make_proposals(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(boxes [count 4], scores [count], no two alike): each corner of a box is off its object's by
    0.15 of a side, in standard deviation."""
    rng = np.random.default_rng(count)
    objects = make_boxes(rng, count // 20)[rng.integers(0, count // 20, count)]
    sides = np.tile(objects[:, 2:] - objects[:, :2], 2)
    boxes = objects + 0.15 * sides * rng.standard_normal(objects.shape)
    scores = rng.permutation(count).astype(np.float32) / count
    return np.clip(boxes, 0, np.tile([WIDTH, HEIGHT], 2)).astype(np.float32), scores


# ---- RoI-Align


def align_cases(name: str, strides: tuple[int, ...], goals: tuple[float, float]) -> list[Case]:
    """RoI-Align on the maps of these strides, forward and with the gradient."""
    rng = np.random.default_rng(0)
    boxes = make_boxes(rng, options.rois)
    sizes = [(HEIGHT // stride, WIDTH // stride, options.channels) for stride in strides]
    maps = [rng.standard_normal(size).astype(np.float32) for size in sizes]
    shape = (options.rois, *BINS, options.channels)
    cotangent = rng.standard_normal(shape).astype(np.float32)
    mine = our_align(strides, maps, boxes, cotangent)
    formats = torch and (torch.contiguous_format, torch.channels_last)
    others = [their_align(strides, maps, boxes, cotangent, it) for it in formats or ()]
    return [
        Case(f"{name}, {what}", goal, mine[i], [pair[i] for pair in others], compare_numbers)
        for i, (what, goal) in enumerate(zip(("forward", "with gradient"), goals, strict=True))
    ]


def our_align(strides, maps, boxes, cotangent) -> tuple[Callable, Callable]:
    boxes, cotangent = jnp.asarray(boxes), jnp.asarray(cotangent)
    maps = tuple(map(jnp.asarray, maps))

    def pool(maps, boxes):
        if len(maps) == 1:
            return roi_align(maps[0], boxes, BINS, scale=1 / strides[0])
        return multiscale_roi_align(maps, boxes, BINS, strides=strides)

    @jax.jit
    def gradient(maps, boxes, cotangent):
        pooled, pull = jax.vjp(lambda maps: pool(maps, boxes), maps)
        return pooled, *pull(cotangent)[0]

    forward = jax.jit(pool)
    return (
        lambda: [jax.block_until_ready(forward(maps, boxes))],
        lambda: jax.block_until_ready(gradient(maps, boxes, cotangent)),
    )


def their_align(strides, maps, boxes, cotangent, memory_format) -> tuple[Callable, Callable]:
    boxes = put(boxes)
    # A map's gradient has the map's format, which here is the one of a single image.
    maps = [put(x.transpose(2, 0, 1)[None]).contiguous(memory_format=memory_format) for x in maps]
    cotangent = put(cotangent.transpose(0, 3, 1, 2)).contiguous(memory_format=memory_format)
    multiscale = torchvision.ops.MultiScaleRoIAlign([*map(str, strides)], BINS, 2)

    def pool(maps):
        if len(maps) == 1:
            return torchvision.ops.roi_align(maps[0], [boxes], BINS, 1 / strides[0], 2)
        named = dict(zip(map(str, strides), maps, strict=True))
        return multiscale(named, [boxes], [(HEIGHT, WIDTH)])

    def forward():
        with torch.inference_mode():
            return wait([pool(maps)])

    def gradient():
        leaves = [x.detach().requires_grad_() for x in maps]
        pooled = pool(leaves)
        return wait([pooled.detach(), *torch.autograd.grad(pooled, leaves, cotangent)])

    return forward, gradient


def compare_numbers(mine, others) -> str:
    """Arrays [R n m C] or [H W C], and [R C n m] or [1 C H W]."""
    worst = 0.0
    for x, y in zip(mine, others, strict=True):
        y = np.moveaxis(y.cpu().numpy(), 1, -1).reshape(x.shape)
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * max(np.abs(y).max(), 1))
        worst = max(worst, np.abs(np.asarray(x) - y).max())
    return f"off by {worst:.0e}"


# ---- suppression


def nms_case(count: int, threshold: float, goal: float) -> Case:
    boxes, scores = make_proposals(count)
    run = jax.jit(partial(nms, iou_threshold=threshold))
    arrays, tensors = on_both(boxes, scores)
    return Case(
        f"nms, {count} boxes at {threshold}",
        goal,
        lambda: jax.block_until_ready(run(*arrays)),
        torch and [lambda: wait(torchvision.ops.nms(*tensors, threshold))],
        compare_indices,
    )


def batched_case(
    count: int, classes: int, threshold: float, goal: float, most: int | None = None
) -> Case:
    boxes, scores = make_proposals(count)
    labels = np.random.default_rng(0).integers(0, classes, count).astype(np.int32)
    run = jax.jit(partial(batched_nms, iou_threshold=threshold, max_outputs=most))
    arrays, tensors = on_both(boxes, scores, labels)
    return Case(
        f"batched_nms, {count} boxes, {classes} classes" + (f", {most}" if most else ""),
        goal,
        lambda: jax.block_until_ready(run(*arrays)),
        torch and [lambda: wait(torchvision.ops.batched_nms(*tensors, threshold)[:most])],
        compare_indices,
    )


def compare_indices(mine, others) -> str:
    indices, kept = map(np.asarray, mine)
    np.testing.assert_array_equal(indices[kept], others.cpu().numpy())
    return f"{kept.sum()} kept"


# ---- the race


def put(array: np.ndarray) -> Any:
    """On the device that JAX uses."""
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    return torch.from_numpy(array.copy()).to(device)


def on_both(*arrays: np.ndarray) -> tuple[list, list]:
    return [*map(jnp.asarray, arrays)], [*map(put, arrays)] if torch else []


def wait(result: Any) -> Any:
    if jax.default_backend() == "gpu":
        torch.cuda.synchronize()
    return result


def seconds(run: Callable) -> float:
    """Of the second of two runs: the threads of whoever ran before may still be spinning."""
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def race(case: Case) -> None:
    agreement = [case.compare(case.ours(), theirs()) for theirs in case.theirs or ()]
    if not agreement:
        mine = statistics.median(seconds(case.ours) for _ in range(options.rounds))
        print(f"{case.name:36} jaxseg {1e3 * mine:7.2f} ms", flush=True)
        return
    trials = [statistics.median(seconds(run) for _ in range(3)) for run in case.theirs]
    theirs = case.theirs[trials.index(min(trials))]
    times = [(seconds(case.ours), seconds(theirs)) for _ in range(options.rounds)]
    mine, other = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    print(
        f"{case.name:36} jaxseg {mine:7.2f} ms   torchvision {other:7.2f} ms   ratio {ratio:5.2f}"
        f"   goal {case.goal:.2f}   {agreement[0]}",
        flush=True,
    )


CASES: dict[str, Callable[[], list[Case]]] = {
    "align": lambda: align_cases("roi_align", (8,), (0.17, 0.17)),
    "multiscale": lambda: align_cases("multiscale_roi_align", STRIDES, (0.13, 0.25)),
    "nms": lambda: [
        nms_case(count, threshold, goal)
        for count, goal in ((2000, 0.25), (6000, 0.13))
        for threshold in (0.5, 0.7)
    ],
    "batched": lambda: [batched_case(4000, 80, 0.5, 0.7, most) for most in (None, 300)],
}


def main() -> None:
    device = jax.devices()[0].device_kind
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{device}, {cores} cores, jax {jax.__version__}, {options.rounds} rounds")
    if torch is None:
        print(f"no ratios: {missing}")
    else:
        versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
        print(f"{versions}, {torch.get_num_threads()} threads")
    for name in options.ops.split(","):
        for case in CASES[name]():
            race(case)


if __name__ == "__main__":
    main()
