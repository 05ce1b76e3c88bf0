"""A pixel classifier window by window beside the same network over the whole picture at once.

    python benchmarks/patchwise.py [--size=32,32 --window=95 --width=48 --rounds=3]

The network and its scores are those of jaxseg/models/patch_classifier.py, in float32, each way
compiled. They take turns, round by round; medians and their ratio are printed, and the arithmetic
of each: what one window costs, times the pixels, and what the whole picture costs.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.models import patch_classifier as pc


def seconds(run: Callable, *args) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(*args))
    return time.perf_counter() - start


def gflops(compiled) -> float:
    return (compiled.cost_analysis() or {}).get("flops", 0.0) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="32,32", help="height,width")
    parser.add_argument("--window", type=int, default=95)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--at_once", type=int, default=16, help="windows")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    height, width = map(int, options.size.split(","))
    network = pc.PatchClassifier(2, window=options.window, width=options.width)
    image = np.random.default_rng(0).standard_normal((1, height, width, 3)).astype(np.float32)
    patch = jnp.zeros((1, options.window, options.window, 3))
    variables = jax.jit(network.init)(jax.random.key(0), patch)

    ways = {
        "patchwise": partial(pc.predict_patchwise, network, at_once=options.at_once),
        "dense": partial(pc.predict_dense, network),
        "strided": partial(pc.predict_strided, network),
    }
    compiled = {name: jax.jit(way).lower(variables, image).compile() for name, way in ways.items()}
    work = {name: gflops(run) for name, run in compiled.items()}
    one_window = jax.jit(network.apply).lower(variables, patch).compile()
    work["patchwise"] = height * width * gflops(one_window)  # of a loop, one turn is counted

    scores = {name: run(variables, image)["probabilities"] for name, run in compiled.items()}
    difference = np.abs(scores["patchwise"] - scores["dense"]).max()
    assert difference < 1e-5, difference
    times = [
        {name: seconds(run, variables, image) for name, run in compiled.items()}
        for _ in range(options.rounds)
    ]
    print(f"{height}×{width} pixels, windows of {options.window}, {jax.devices()[0].device_kind}")
    for name in ways:
        median = statistics.median(round[name] for round in times)
        print(f"{name:10} {median:10.3f} s {work[name]:12.2f} GFLOP")
    ratio = statistics.median(round["patchwise"] / round["dense"] for round in times)
    fewer = work["patchwise"] / work["dense"]
    print(
        f"dense is {ratio:.0f} times as fast as patchwise, with {fewer:.0f} times less arithmetic"
    )
    print(f"largest difference of their probabilities: {difference:.1e}")


if __name__ == "__main__":
    main()
