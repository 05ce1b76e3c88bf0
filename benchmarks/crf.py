"""The dense CRF beside pydensecrf, and what it costs by pixels, labels and iterations.

    python benchmarks/crf.py [--threads=2 --rounds=7 --batches=1,4]

A photograph (scikit-image's astronaut) at 320×213 and 500×375, 21 labels, 10 iterations, weights 3
and 10, spatial bandwidth 3, bilateral bandwidths 80/13, 60/10 and 160/3 (pixels / levels of 255).
Forward, and forward with the gradient of a scalar with respect to the logits, which pydensecrf has
not. The two take turns, round by round; medians and the ratio of times (ours over pydensecrf's
forward) are printed, and how many labels agree. pydensecrf has one thread and takes the pictures of
a batch one by one. Its release does not build on Python 3.11, the head of its repository does, with
Cython 0.29; where it cannot be imported that is said, and we run alone. Memory is what the compiler
plans for arguments, results and all between.

Then one thing at a time is varied, from 320×213, 21 labels, 10 iterations, and the time for a unit
of it is printed: constant where the cost is linear.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--batches", default="1,4")
parser.add_argument("--device", action="store_true", help="JAX's own device, not the CPU")
options = parser.parse_args()
if hasattr(os, "sched_setaffinity"):  # before XLA counts the cores
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
if not options.device:
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from skimage.data import astronaut  # noqa: E402
from skimage.transform import resize  # noqa: E402

from jaxseg.crf.dense import dense_crf  # noqa: E402

try:
    from pydensecrf import densecrf
except ImportError:
    densecrf = None

SIZES = (213, 320), (375, 500)
BANDWIDTHS = (80.0, 13.0), (60.0, 10.0), (160.0, 3.0)
LABELS, ITERATIONS = 21, 10


def make_input(size: tuple[int, int], labels: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures, uint8 [B H W 3], which differ in their brightness, and smooth logits [B H W K]."""
    picture = resize(astronaut(), size)
    fades = np.linspace(1.0, 0.8, batch)
    image = np.stack([np.rint(255 * fade * picture) for fade in fades]).astype(np.uint8)
    coarse = 3 * np.random.default_rng(0).standard_normal((batch, 27, 40, labels))
    logits = jax.image.resize(coarse, (batch, *size, labels), "linear")
    return image, np.asarray(logits, np.float32)


def ours(
    image: np.ndarray, logits: np.ndarray, bandwidths: tuple[float, float], iterations: int
) -> tuple[dict[str, Callable], float]:
    """{"forward", "gradient"}: functions that run once and wait; and megabytes for the gradient."""
    sigma, colour_sigma = bandwidths

    def refine(logits: jax.Array, image: jax.Array) -> jax.Array:
        return dense_crf(
            logits,
            image,
            bilateral_sigma=sigma,
            colour_sigma=colour_sigma,
            iterations=iterations,
            room=1.0,
        )

    def loss(logits: jax.Array, image: jax.Array) -> jax.Array:
        return (jax.nn.softmax(refine(logits, image)) * logits).sum()

    arguments = jnp.asarray(logits), jnp.asarray(image)
    forward = jax.jit(refine).lower(*arguments).compile()
    gradient = jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile()
    plan = gradient.memory_analysis()
    used = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    runs = {
        "forward": lambda: np.asarray(forward(*arguments)),
        "gradient": lambda: jax.block_until_ready(gradient(*arguments)),
    }
    return runs, used / 1e6


def theirs(
    image: np.ndarray, logits: np.ndarray, bandwidths: tuple[float, float], iterations: int
) -> Callable:
    (height, width, labels), (sigma, colour_sigma) = logits.shape[1:], bandwidths

    def one(image: np.ndarray, unary: np.ndarray) -> np.ndarray:
        crf = densecrf.DenseCRF2D(width, height, labels)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseGaussian(sxy=3, compat=3)
        crf.addPairwiseBilateral(sxy=sigma, srgb=colour_sigma, rgbim=image, compat=10)
        return np.array(crf.inference(iterations)).T.reshape(height, width, labels)

    unaries = [np.ascontiguousarray(-x.reshape(-1, labels).T) for x in logits]
    return lambda: np.stack([one(*pair) for pair in zip(image, unaries, strict=True)])


def seconds(run: Callable) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median_times(runs: list[Callable], rounds: int) -> list[float]:
    """Milliseconds of each, taking turns, after one turn that does not count."""
    times = [[seconds(run) for run in runs] for _ in range(rounds + 1)][1:]
    return [1e3 * statistics.median(column) for column in zip(*times, strict=True)]


def race(size: tuple[int, int], bandwidths: tuple[float, float], batch: int) -> None:
    image, logits = make_input(size, LABELS, batch)
    runs, megabytes = ours(image, logits, bandwidths, ITERATIONS)
    line = f"{batch} × {size[1]}×{size[0]}  {bandwidths[0]:3.0f}/{bandwidths[1]:<2.0f}"
    if densecrf is None:
        forward, gradient = median_times([*runs.values()], options.rounds)
        print(f"{line}  forward {forward:6.0f} ms  gradient {gradient:6.0f} ms", flush=True)
        return
    peer = theirs(image, logits, bandwidths, ITERATIONS)
    agreement = (runs["forward"]().argmax(-1) == peer().argmax(-1)).mean()
    forward, gradient, other = median_times([*runs.values(), peer], options.rounds)
    print(
        f"{line}  forward {forward:6.0f} ms  gradient {gradient:6.0f} ms  pydensecrf {other:6.0f} "
        f"ms  ratios {forward / other:.2f} {gradient / other:.2f}  agreement {agreement:.4f}  "
        f"{megabytes:.0f} MB",
        flush=True,
    )


def vary(what: str, cases: list[tuple[float, tuple[int, int], int, int]], unit: str) -> None:
    """cases: how many units, and the size, labels and iterations that make them."""
    print(f"\nby {what}: forward, with gradient, in ms; and in ms per {unit}")
    for units, size, labels, iterations in cases:
        runs, _ = ours(*make_input(size, labels, 1), BANDWIDTHS[0], iterations)
        forward, gradient = median_times([*runs.values()], options.rounds)
        each = f"{forward / units:6.2f} {gradient / units:6.2f}"
        print(f"  {units:6.4g}  {forward:6.0f} {gradient:6.0f}   {each}", flush=True)


def main() -> None:
    print(f"{jax.devices()[0].device_kind}, {options.threads} threads, {options.rounds} rounds")
    if densecrf is None:
        print("pydensecrf cannot be imported: no ratios")
    for batch in map(int, options.batches.split(",")):
        for size in SIZES:
            for bandwidths in BANDWIDTHS:
                race(size, bandwidths, batch)
    size = SIZES[0]
    sizes = [(round(s * size[0]), round(s * size[1])) for s in (0.5, 1.0, 2.0, 4.0)]
    vary("pixels", [(h * w / 1e4, (h, w), LABELS, 10) for h, w in sizes], "10,000 pixels")
    vary("labels", [(k, size, k, 10) for k in (5, 10, 21, 42, 84)], "label")
    vary("iterations", [(n, size, LABELS, n) for n in (1, 5, 10, 20)], "iteration")


if __name__ == "__main__":
    main()
