"""FCN and DeepLab v3 on ResNet-50 and U-Net on ResNet-34 beside the same networks in PyTorch.

    python benchmarks/semantic.py [--networks=fcn,deeplab,unet --size=512 --rounds=5 --threads=2]

Forward at batch 1 and a training step (cross-entropy, SGD with momentum) at batch 2, float32, both
on the same device; PyTorch eager, channels last. The networks below have torchvision's (and
segmentation_models_pytorch's) names, take our variables through `jaxseg.weights`, and must give the
same logits before anything is timed. The two take turns, round by round; medians and the ratio of
times are printed. Needs the extra `torch`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn
from torch.nn import functional

from jaxseg.models import deeplab, fcn, unet
from jaxseg.train.step import init_state, make_step
from jaxseg.weights.convert import to_torchvision

CLASSES = 21
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# ---- the networks in PyTorch ----


def conv_norm(inputs: int, outputs: int, size: int = 3, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(
        inputs, outputs, size, padding=dilation * (size // 2), dilation=dilation, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Block(nn.Module):
    """A basic block or a bottleneck, by the number of its convolutions."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, bottleneck: bool):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        sizes = [(1, 1), (3, stride), (1, 1)] if bottleneck else [(3, stride), (3, 1)]
        widths = [inputs, width, width, outputs] if bottleneck else [inputs, width, width]
        self.count = len(sizes)
        for i, (size, step) in enumerate(sizes, start=1):
            rate = dilation if size == 3 else 1
            conv = nn.Conv2d(
                widths[i - 1], widths[i], size, step, rate * (size // 2), rate, bias=False
            )
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", nn.BatchNorm2d(widths[i]))
        self.downsample = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = functional.relu(y, inplace=True) if i < self.count else y
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, blocks: tuple[int, ...], bottleneck: bool, dilated: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs, dilation = 64, 1
        for stage, count in enumerate(blocks):
            width, stride, first = 64 << stage, 1 if stage == 0 else 2, dilation
            if dilated and stage >= 2:
                stride, dilation = 1, 2 * dilation
            layers = []
            for i in range(count):
                rate, step = (first, stride) if i == 0 else (dilation, 1)
                layers.append(Block(inputs, width, step, rate, bottleneck))
                inputs = 4 * width if bottleneck else width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        features = [x]
        x = functional.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
            features.append(x)
        return features


def fcn_head(channels: int) -> nn.Sequential:
    return nn.Sequential(
        *conv_norm(channels, channels // 4), nn.Identity(), nn.Conv2d(channels // 4, CLASSES, 1)
    )


class ASPP(nn.Module):
    def __init__(self):
        super().__init__()
        rates = [(1, 1), (3, 12), (3, 24), (3, 36)]
        branches = [conv_norm(2048, 256, size, rate) for size, rate in rates]
        pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm(2048, 256, 1))
        self.convs = nn.ModuleList([*branches, pooling])
        self.project = conv_norm(5 * 256, 256, 1)

    def forward(self, x):
        branches = [conv(x) for conv in self.convs]
        branches[-1] = branches[-1].expand_as(branches[0])
        return self.project(torch.cat(branches, dim=1))


class Segmenter(nn.Module):
    """A dilated ResNet-50 with a head, and an FCN head on the stage before."""

    def __init__(self, classifier: nn.Sequential):
        super().__init__()
        self.backbone = ResNet((3, 4, 6, 3), bottleneck=True, dilated=True)
        self.classifier, self.aux_classifier = classifier, fcn_head(1024)

    def forward(self, x):
        *_, third, fourth = self.backbone(x)
        heads = [(self.classifier, fourth)]
        if self.training:
            heads.append((self.aux_classifier, third))
        return [functional.interpolate(head(y), x.shape[2:], mode="bilinear") for head, y in heads]


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = ResNet((3, 4, 6, 3), bottleneck=False, dilated=False)
        self.decoder = nn.Module()
        self.decoder.blocks = nn.ModuleList()
        inputs, skips = 512, (256, 128, 64, 64, 0)
        for skip, width in zip(skips, (256, 128, 64, 32, 16), strict=True):
            block = nn.Module()
            block.conv1, block.conv2 = conv_norm(inputs + skip, width), conv_norm(width, width)
            self.decoder.blocks.append(block)
            inputs = width
        self.segmentation_head = nn.Sequential(nn.Conv2d(16, CLASSES, 3, padding=1))

    def forward(self, x):
        *skips, x = self.encoder(x)
        for block in self.decoder.blocks:
            x = functional.interpolate(x, scale_factor=2)
            if skips:
                x = torch.cat([x, skips.pop()], dim=1)
            x = block.conv2(block.conv1(x))
        return [self.segmentation_head(x)]


def deeplab_head() -> nn.Sequential:
    return nn.Sequential(ASPP(), *conv_norm(256, 256), nn.Conv2d(256, CLASSES, 1))


NETWORKS: dict[str, tuple[Any, Callable[[], nn.Module], str]] = {
    "fcn": (
        lambda: fcn.build(CLASSES, backbone="resnet50", dropout=0.0),
        lambda: Segmenter(fcn_head(2048)),
        "fcn_resnet",
    ),
    "deeplab": (
        lambda: deeplab.build(
            CLASSES, **(deeplab.TORCHVISION | {"backbone": "resnet50", "dropout": 0.0})
        ),
        lambda: Segmenter(deeplab_head()),
        "deeplabv3_resnet",
    ),
    "unet": (lambda: unet.build(CLASSES, backbone="resnet34"), UNet, "smp_unet_resnet"),
}


# ---- the race ----


def ours(model, variables, image: np.ndarray, labels: np.ndarray) -> dict[str, Callable]:
    """{"forward", "step"}: functions that do it once and wait for it."""
    image, labels = jnp.asarray(image), jnp.asarray(labels)
    batch = {"image": image, "segmentation": labels, "valid": jnp.ones(len(image), bool)}
    optimizer = optax.sgd(1e-3, momentum=0.9)
    state = init_state(jax.tree.map(jnp.copy, variables), optimizer, ema=False)
    step = jax.jit(make_step(model, optimizer, seed=0), donate_argnums=0)
    forward = jax.jit(lambda v, x: model.predict(v, x)["segmentation"])

    def train():
        nonlocal state
        state, report = step(state, batch)
        jax.block_until_ready((state, report))

    return {
        "forward": lambda: jax.block_until_ready(forward(variables, image[:1])),
        "step": train,
    }


def theirs(network: nn.Module, image: np.ndarray, labels: np.ndarray) -> dict[str, Callable]:
    network = network.to(DEVICE, memory_format=torch.channels_last)
    x = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    x = x.to(DEVICE, memory_format=torch.channels_last)
    y = torch.from_numpy(labels.astype(np.int64)).to(DEVICE)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)

    def wait():
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    def forward():
        network.eval()
        with torch.inference_mode():
            network(x[:1])[0].softmax(1).argmax(1)
        wait()

    def train():
        network.train()
        optimizer.zero_grad(set_to_none=True)
        out, *auxiliary = network(x)
        loss = functional.cross_entropy(out, y)
        for logits in auxiliary:
            loss = loss + 0.5 * functional.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        wait()

    return {"forward": forward, "step": train}


def seconds(run: Callable) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def check_equal(model, variables, network: nn.Module, image: np.ndarray) -> None:
    """Raise AssertionError unless both give the same probabilities."""
    mine = jax.jit(model.predict)(variables, jnp.asarray(image[:1]))["probabilities"]
    with torch.inference_mode():
        other = network.eval()(torch.from_numpy(image[:1].transpose(0, 3, 1, 2).copy()))[0]
    other = other.softmax(1).permute(0, 2, 3, 1).numpy()
    # Fresh batch norms have statistics of 0 and 1: logits are huge, and some pixels undecided.
    assert np.abs(mine - other).mean() < 1e-5, np.abs(mine - other).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="fcn,deeplab,unet")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of PyTorch, on CPU; all cores if not given")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    image = rng.standard_normal((2, options.size, options.size, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, image.shape[:3]).astype(np.int32)
    print(f"{jax.default_backend()} and {DEVICE}, {options.size}×{options.size}")
    for name in options.networks.split(","):
        build, make, family = NETWORKS[name]
        model, network = build(), make()
        variables = model.init(jax.random.key(0), {"image": image})
        state = to_torchvision(variables, family)
        network.load_state_dict({key: torch.from_numpy(x.copy()) for key, x in state.items()})
        check_equal(model, variables, network, image)
        runs = ours(model, variables, image, labels), theirs(network, image, labels)
        for what in ("forward", "step"):
            mine, other = (run[what] for run in runs)
            mine(), other()
            times = [(seconds(mine), seconds(other)) for _ in range(options.rounds)]
            a, b = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
            ratio = statistics.median(m / o for m, o in times)
            print(f"{name:8} {what:8} jaxseg {a:8.1f} ms   torch {b:8.1f} ms   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
