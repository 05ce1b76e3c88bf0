"""Our U-Net's training step beside the same network in PyTorch, in one run.

    python benchmarks/train_step.py [--width=16 --batch=8 --size=160,208 --rounds=5]

Both: 3×3 convolutions with "same" padding, batch norm, transposed convolutions, mean
cross-entropy, SGD with momentum, float32. They take turns, round by round; medians and their ratio
are printed, and beside them the step's arithmetic and the rate at which each does it. Needs the
extra `torch`.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

from jaxseg.models import unet
from jaxseg.train.step import init_state, make_step

CLASSES = 11


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    layers = []
    for channels in (inputs, outputs):
        conv = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class TorchUNet(nn.Module):
    """jaxseg.models.unet with padding="same", in PyTorch."""

    def __init__(self, width: int, depth: int = 4):
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            double_conv(i, o) for i, o in zip([3, *widths], widths, strict=False)
        )
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in steps)
        self.join = nn.ModuleList(double_conv(2 * o, o) for _, o in steps)
        self.classifier = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x):
        copied = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            copied.append(x)
        for up, join, skip in zip(self.up, self.join, copied[-2::-1], strict=True):
            x = join(torch.cat([skip, up(x)], dim=1))
        return self.classifier(x)


def jax_step(width: int, image: np.ndarray, labels: np.ndarray) -> tuple[Callable, int, float]:
    """(a function that makes one step and waits for it, parameters, GFLOPs a step)."""
    network = dict(width=width, padding="same", norm="batch", dropout=0.0)
    model = unet.build(CLASSES, **network)
    valid = jnp.ones(len(image), bool)
    batch = {"image": jnp.asarray(image), "segmentation": jnp.asarray(labels), "valid": valid}
    optimizer = optax.sgd(0.01, momentum=0.9)
    state = init_state(model.init(jax.random.key(0), batch), optimizer, ema=False)
    step = jax.jit(make_step(model, optimizer, seed=0), donate_argnums=0)
    compiled = step.lower(state, batch).compile()
    cost = compiled.cost_analysis() or {}
    count = sum(x.size for x in jax.tree.leaves(state.params))

    def run():
        nonlocal state
        state, report = compiled(state, batch)
        jax.block_until_ready((state, report))

    return run, count, cost.get("flops", 0.0) / 1e9


def torch_step(width: int, image: np.ndarray, labels: np.ndarray) -> tuple[Callable, int]:
    """(a function that makes one step and waits for it, parameters)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = TorchUNet(width).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    x = torch.from_numpy(image.transpose(0, 3, 1, 2)).to(device, memory_format=torch.channels_last)
    y = torch.from_numpy(labels.astype(np.int64)).to(device)

    def run():
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run, sum(p.numel() for p in network.parameters())


def seconds(run: Callable) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", default="160,208", help="height,width, multiples of 16")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    height, width = map(int, options.size.split(","))
    rng = np.random.default_rng(0)
    image = rng.standard_normal((options.batch, height, width, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, (options.batch, height, width)).astype(np.int32)

    ours, count, gflops = jax_step(options.width, image, labels)
    peer, peer_count = torch_step(options.width, image, labels)
    assert count == peer_count, (count, peer_count)
    ours(), peer()
    times = [(seconds(ours), seconds(peer)) for _ in range(options.rounds)]
    mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    print(f"U-Net {options.width}, {count:,} parameters, {options.batch}×{height}×{width}")
    print(f"jaxseg {mine * 1e3:8.1f} ms   {gflops / mine:7.1f} GFLOP/s of {gflops:.1f} GFLOP")
    print(f"torch  {theirs * 1e3:8.1f} ms   {gflops / theirs:7.1f} GFLOP/s")
    print(f"ratio  {ratio:8.2f}      (below 1: jaxseg is faster)")


if __name__ == "__main__":
    main()
