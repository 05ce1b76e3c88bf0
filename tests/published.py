"""What published implementations computed (`fixtures/torchvision`, see its README), and how to
compare with it: the same pictures, the same weights, and stages, gradients and statistics."""

import importlib.util
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from networks import compiled_once
from PIL import Image

from jaxseg.ops.losses import segmentation_losses
from jaxseg.types import IGNORE, MEAN, STD
from jaxseg.weights.convert import from_torchvision, to_torchvision
from jaxseg.weights.merge import merge

_SHARED = Path(__file__).parents[2] / "shared"


class Reference(NamedTuple):
    """Arrays, in torch's layout and often thinned, and how they were made."""

    folder: Path  # fixtures/torchvision
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


def names(pattern: str) -> list[str]:
    """Those of the references that are there, such as "cls/resnet18" for "cls/*"."""
    folder = Path(os.environ.get("JAXSEG_FIXTURES", _SHARED / "fixtures")) / "torchvision"
    paths = sorted(folder.glob(f"{pattern}.npz"))
    return [str(path.relative_to(folder).with_suffix("")) for path in paths]


def read(fixtures: Path, name: str) -> Reference:
    arrays = dict(np.load(fixtures / f"torchvision/{name}.npz"))
    return Reference(fixtures / "torchvision", arrays, json.loads(bytes(arrays.pop("meta"))))


def recipe(folder: Path) -> Any:
    """The module that makes weights of their names."""
    spec = importlib.util.spec_from_file_location("recipe", folder / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pictures(reference: Reference, field: str = "input") -> np.ndarray:
    """[B H W 3] float32, normalised: the crops that a field of `meta` names."""
    crops = re.findall(
        r"(\w+)\[(\d+):(\d+),(\d+):(\d+)\](?:\[:(\d+),:(\d+)\])?", reference.meta[field]
    )
    cut = []
    for name, *numbers in crops:
        top, bottom, left, right, height, width = (int(n) if n else None for n in numbers)
        colours = _photo(reference.folder / f"{name}.png")[top:bottom, left:right]
        cut.append(colours[:height, :width])
    return np.stack(cut)


@cache
def _photo(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return (np.asarray(picture.convert("RGB"), np.float32) / 255 - MEAN) / STD


def weights(
    reference: Reference, network: nn.Module, image: np.ndarray
) -> tuple[dict[str, Any], str]:
    """(variables of the network, family): those of the recipe, every one of them in its place."""
    model = reference.meta["model"]
    manifest = json.loads((reference.folder / f"manifest/{model}.json").read_text())
    state = recipe(reference.folder).state_dict(manifest, model)
    loaded, left_over, family = from_torchvision(state, model)
    empty = jax.eval_shape(network.init, jax.random.key(0), image)
    variables, report = merge(dict(empty), loaded, num_classes=-1, name_of_file=model)
    assert report._replace(taken=[], left_over=left_over + report.left_over) == ([], [], [], [])
    return variables, family


def error(found: Any, reference: Reference, name: str) -> float:
    """max|a − b| / max|b| of an array [B H W C], or [B C], and a reference."""
    found, expected = np.asarray(found), reference.arrays[name]
    about = reference.meta["arrays"][name]
    if found.ndim == 4:
        found = found.transpose(0, 3, 1, 2)
    assert list(found.shape) == about["shape"], name
    found = found.reshape(-1)[:: about.get("step", 1)].reshape(expected.shape)
    return np.abs(found - expected).max() / np.abs(expected).max()


def check_logits(reference: Reference, network: nn.Module, tolerance: float = 1e-4) -> None:
    """Logits [B H W K] of a segmentation network, auxiliary ones too, and the best classes."""
    image = pictures(reference)
    variables, _ = weights(reference, network, image)
    outputs = jax.jit(network.apply)(variables, jnp.asarray(image))
    outputs = outputs if isinstance(outputs, dict) else {"out": outputs}
    assert outputs.keys() == reference.meta["max_rel_f32_vs_f64"].keys() & {"out", "aux"}
    for name, logits in outputs.items():
        assert error(logits, reference, name) < tolerance, name
        assert (logits.argmax(-1) == reference.arrays[f"{name}_argmax"]).mean() > 0.9999, name


def check_training(
    reference: Reference,
    network: nn.Module,
    *,
    batch_statistics: bool,
    tolerance: float = 1e-4,
) -> None:
    """One step of training, with the statistics of the batch or the running ones: the loss
    CE(out) + CE(aux) / 2, its gradients, and what the running statistics are afterwards."""
    prefix = "train" if batch_statistics else "train_bn_eval"
    image = pictures(reference, "train_input")
    b, y, x = np.indices(image.shape[:3])
    labels = (y // 20 + x // 24 + 3 * b) % 22
    labels = np.where(labels == 21, IGNORE, labels).astype(np.int32)
    batch = {"image": image, "segmentation": labels, "valid": np.ones(len(image), bool)}
    variables, family = weights(reference, network, image)

    @compiled_once
    def step(params, rest, batch):
        def loss(params):
            outputs, after = network.apply(
                {"params": params, **rest},
                batch["image"],
                train=batch_statistics,
                mutable=["batch_stats"],
            )
            outputs = outputs if isinstance(outputs, dict) else {"out": outputs}
            losses = {
                name: segmentation_losses(logits, batch, ("cross_entropy",), None)["cross_entropy"]
                for name, logits in outputs.items()
            }
            factors = {"out": 1.0, "aux": 0.5}
            return sum(factors[name] * loss.value() for name, loss in losses.items()), after

        return jax.value_and_grad(loss, has_aux=True)(params)

    params = variables.pop("params")
    batch = jax.tree.map(jnp.asarray, batch)
    (loss, after), gradients = jax.device_get(step(params, variables, batch))
    expected = reference.meta[f"{prefix}_loss"]
    assert abs(loss - expected) < tolerance * expected
    check_gradients(reference, prefix, to_torchvision({"params": gradients}, family), tolerance)
    if batch_statistics:
        after = to_torchvision({"params": params, **after}, family)
        keys = [name for name in reference.arrays if name.startswith("after/")]
        assert keys
        for name in keys:
            assert error(after[name.removeprefix("after/")], reference, name) < tolerance, name


def check_gradients(
    reference: Reference, prefix: str, gradients: dict[str, np.ndarray], tolerance: float
) -> None:
    """Norms, and eight values of each gradient, relative to its norm. A gradient that is 0 but for
    rounding counts as 1e-4 of the largest. Where float32 itself is further from float64 than the
    tolerance, 5 times the largest such distance of a norm is allowed."""
    known = reference.meta[f"{prefix}_grad_names"]
    norms, exact, slices = (
        reference.arrays[f"{prefix}_grad_{kind}"] for kind in ("norms", "norms_f64", "slices")
    )
    assert set(known) <= set(gradients)
    scales = np.maximum(exact, 1e-4 * exact.max())
    tolerance = max(tolerance, 5 * (np.abs(norms - exact) / scales).max())
    for name, norm, expected, scale in zip(known, exact, slices, scales, strict=True):
        g = gradients[name].reshape(-1).astype(np.float64)
        assert abs(np.linalg.norm(g) - norm) < tolerance * scale, (name, "norm")
        values = g[:: max(1, g.size // 8)][:8]
        difference = np.abs(values - expected[: len(values)]).max()
        assert difference < tolerance * scale, (name, "values", difference / scale)
