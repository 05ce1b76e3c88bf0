"""What each conditional random field adds to one network's labels, and learned filters to a CRF.

    python benchmarks/crf_steps.py --config=experiments/crf_steps.py --workdir=RUNS \\
        [--sets=camvid,pets --variant=cpu --tune=40 --source=FOLDER]

Trains the experiment's `unary`, then searches the settings of the grid CRF and of the dense CRF on
some training pictures (not augmented), trains `crf_rnn` from there and `longer`, the same without a
CRF, and prints a table in Markdown for the validation set: mean IU, pixel accuracy, the share of
right pixels within 4 of a boundary between labels (Kohli et al. 2009, "trimap"), and milliseconds a
picture: all of a network's `predict`, or what the CRF adds to it.

The second table has mean-field steps behind the fixed network, one and two, with Gaussian filters,
whose weights and compatibilities are trained, and with learned filters (Jampani et al. 2016).
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.ndimage import distance_transform_edt

from jaxseg.crf.dense import dense_crf, from_batch
from jaxseg.crf.energies import bilateral_features, grid_features, logits_from_probabilities
from jaxseg.crf.grid import grid_crf
from jaxseg.metrics import confusion
from jaxseg.nn.bilateral import MeanFieldSteps, lattices
from jaxseg.ops.losses import softmax_cross_entropy
from jaxseg.run import Run, evaluation_batches, open_run, prepare_data
from jaxseg.tune_crf import make_candidates
from jaxseg.types import IGNORE

WIDTH = 4  # pixels on each side of a boundary
GRID = {"weight": (0.3, 30.0)}
DENSE = {
    "bilateral_weight": (1.0, 20.0),
    "bilateral_sigma": (10.0, 80.0),
    "colour_sigma": (3.0, 30.0),
    "spatial_weight": (0.3, 10.0),
}
USUAL = dict(zip(DENSE, (10.0, 80.0, 13.0, 3.0), strict=True))


class Picture(NamedTuple):
    logits: np.ndarray  # [H W K], of the network alone
    image: np.ndarray  # [H W 3], colours from 0 to 255
    inside: np.ndarray  # bool [H W]
    labels: np.ndarray  # [H W]


def pictures_of(run: Run, split: str, count: int | None = None) -> list[Picture]:
    """Of a whole split, or `count` evenly spread over it."""
    predict = jax.jit(lambda v, x: run.model.predict(v, x)["probabilities"])
    found = []
    for batch in evaluation_batches(run.config, prepare_data(run.config), split, (0, 1)):
        probabilities = predict(run.variables, batch["image"])
        colours, inside = from_batch(batch["image"])
        rows = zip(*map(np.asarray, (probabilities, colours, inside)), strict=True)
        for i, (p, colour, within) in enumerate(rows):
            if batch["valid"][i]:
                logits = np.asarray(logits_from_probabilities(p))
                found.append(Picture(logits, colour, within, batch["segmentation"][i]))
    if count is None or count >= len(found):
        return found
    return [found[i] for i in np.linspace(0, len(found) - 1, count).astype(int)]


def trimap(labels: np.ndarray) -> np.ndarray:
    """bool [H W]: within WIDTH pixels of a neighbour with another label, both of them known."""
    known, border = labels != IGNORE, np.zeros(labels.shape, bool)
    for a, b in [(np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])]:
        differs = (labels[a] != labels[b]) & known[a] & known[b]
        border[a] |= differs
        border[b] |= differs
    if not border.any():
        return border
    return known & (distance_transform_edt(~border) < WIDTH)


def score(predicted: list[np.ndarray], pictures: list[Picture]) -> dict[str, float]:
    classes = pictures[0].logits.shape[-1]
    whole = near = np.zeros((classes, classes), np.int64)
    for labels, picture in zip(predicted, pictures, strict=True):
        count = partial(confusion.confusion_matrix, jnp.asarray(labels), num_classes=classes)
        whole = whole + np.asarray(count(jnp.asarray(picture.labels)))
        band = np.where(trimap(picture.labels), picture.labels, IGNORE)
        near = near + np.asarray(count(jnp.asarray(band)))
    scores = confusion.scores(whole)
    return {
        "mean_iu": scores["mean_iu"],
        "pixel_accuracy": scores["pixel_accuracy"],
        "trimap_accuracy": confusion.scores(near)["pixel_accuracy"],
    }


def refined(refine: Callable, pictures: list[Picture]) -> tuple[list[np.ndarray], float]:
    """The labels, and milliseconds a picture; `refine` is of a picture."""
    refine(pictures[0])
    start = time.perf_counter()
    labels = [np.asarray(refine(picture)) for picture in pictures]
    return labels, 1e3 * (time.perf_counter() - start) / len(pictures)


@jax.jit
def by_grid(logits: jax.Array, image: jax.Array, settings: dict) -> jax.Array:
    return grid_crf(logits, image, **settings).argmax(-1)


@jax.jit
def by_dense(logits: jax.Array, image: jax.Array, inside: jax.Array, settings: dict) -> jax.Array:
    return dense_crf(logits, image, inside=inside, room=1.0, **settings).argmax(-1)


def search(
    refine: Callable, values: dict[str, tuple], first: dict[str, float], pictures: list[Picture]
) -> dict[str, float]:
    """The settings of the highest mean IU, of 24."""
    candidates = make_candidates(values, first, 24)
    scores = [
        score(refined(lambda p, c=c: refine(p, c), pictures)[0], pictures)["mean_iu"]
        for c in candidates
    ]
    return candidates[int(np.argmax(scores))]


def train(config: str, workdir: Path, **overrides: Any) -> Run:
    command = [sys.executable, "-m", "jaxseg.main", f"--config={config}", f"--workdir={workdir}"]
    subprocess.run([*command, *(f"--config.{k}={v}" for k, v in overrides.items())], check=True)
    return open_run(workdir, which="last")


def of_network(run: Run, pictures: list[Picture]) -> tuple[list[np.ndarray], float]:
    """What a run's own `predict` says, a picture at a time."""
    batches = evaluation_batches(run.config, prepare_data(run.config), "val", (0, 1))
    predict = jax.jit(lambda v, x: run.model.predict(v, x)["segmentation"])
    images = [x for b in batches for x in b["image"][np.asarray(b["valid"])]]
    assert len(images) == len(pictures)
    jax.block_until_ready(predict(run.variables, images[0][None]))
    start = time.perf_counter()
    labels = [np.asarray(predict(run.variables, image[None])[0]) for image in images]
    return labels, 1e3 * (time.perf_counter() - start) / len(images)


def learned_steps(
    training: list[Picture], pictures: list[Picture], dense: dict[str, float], steps: int
) -> dict[str, dict[str, float]]:
    """{"MF-1, learned filters": scores}."""
    sigma = dense["bilateral_sigma"], dense["colour_sigma"]

    @jax.jit
    def grids(image: jax.Array) -> list:
        features = grid_features(image.shape[:2], (3.0, 3.0)), bilateral_features(image, *sigma)
        return [lattices(f[None], 1, f.shape[0] // 2) for f in features]

    known = [grids(jnp.asarray(picture.image)) for picture in training]
    weights = dense["spatial_weight"], dense["bilateral_weight"]
    found = {}
    for name, number, shared in [("MF-1", 1, True), ("MF-2", 2, True), ("loose MF-2", 2, False)]:
        layer = MeanFieldSteps(weights=weights, steps=number, shared=shared, filter_per_label=True)
        for filters in ("Gaussian", "learned"):
            run = trained(layer, training, known, steps, fixed=filters == "Gaussian")
            labels, milliseconds = refined(lambda p, r=run: r(p.logits, grids(p.image)), pictures)
            key = f"{name}, {filters} filters"
            found[key] = score(labels, pictures) | {"milliseconds": milliseconds}
            print(key, found[key], flush=True)
    return found


def trained(
    layer: MeanFieldSteps, training: list[Picture], known: list, steps: int, *, fixed: bool
) -> Callable:
    """(logits, lattices) -> labels, trained by cross-entropy; `fixed`: filters stay Gaussian."""
    height, width, classes = training[0].logits.shape

    def infer(params: Any, logits: jax.Array, grid: list) -> jax.Array:
        refined = layer.apply({"params": params}, logits.reshape(1, -1, classes), grid)
        return refined.reshape(height, width, classes)

    def loss(params: Any, logits: jax.Array, grid: list, labels: jax.Array) -> jax.Array:
        losses = softmax_cross_entropy(infer(params, logits, grid), labels)
        return losses.sum() / jnp.maximum((labels != IGNORE).sum(), 1)

    @jax.jit
    def update(params: Any, state: Any, *example: Any) -> tuple[Any, Any]:
        change, state = optimizer.update(jax.grad(loss)(params, *example), state, params)
        return optax.apply_updates(params, change), state

    def rate(path: tuple, _: Any) -> str:
        return "fixed" if fixed and "kernel" in str(path[-1]) else "free"

    first = jnp.asarray(training[0].logits).reshape(1, -1, classes)
    params = layer.init(jax.random.key(0), first, known[0])["params"]
    free = optax.adam(optax.cosine_decay_schedule(0.02, steps))
    groups = jax.tree_util.tree_map_with_path(rate, params)
    optimizer = optax.multi_transform({"free": free, "fixed": optax.set_to_zero()}, groups)
    state = optimizer.init(params)
    for i in np.random.default_rng(0).integers(len(training), size=steps):
        labels = training[i].labels.astype(np.int32)
        params, state = update(params, state, training[i].logits, known[i], labels)
    return jax.jit(lambda logits, grid: infer(params, logits, grid).argmax(-1))


def table(rows: dict[str, dict[str, float]]) -> str:
    lines = [
        "| | mean IU | pixel accuracy | trimap accuracy | ms a picture |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, scores in rows.items():
        shares = [
            f"{100 * scores[key]:.2f}" for key in ("mean_iu", "pixel_accuracy", "trimap_accuracy")
        ]
        lines.append(f"| {name} | {' | '.join(shares)} | {scores['milliseconds']:.0f} |")
    return "\n".join(lines)


def steps_of(name: str, options: argparse.Namespace) -> str:
    """The tables of a set of pictures."""

    def config(part: str) -> str:
        return f"{options.config}:{name},{part},{options.variant}"

    folder = options.workdir / name
    source = {"data.source": options.source} if options.source else {}
    unary = train(config("unary"), folder / "unary", **source)
    pictures = pictures_of(unary, "val")
    tuning = pictures_of(unary, "train", options.tune)
    grid = search(lambda p, c: by_grid(p.logits, p.image, c), GRID, {"weight": 3.0}, tuning)
    dense = search(lambda p, c: by_dense(p.logits, p.image, p.inside, c), DENSE, USUAL, tuning)
    print(name, json.dumps({"grid": grid, "dense": dense}), flush=True)

    rows = {}

    def add(name: str, found: tuple[list[np.ndarray], float]) -> None:
        rows[name] = score(found[0], pictures) | {"milliseconds": found[1]}
        print(name, rows[name], flush=True)

    add("unary: FCN-8s", of_network(unary, pictures))
    add("+ grid CRF", refined(lambda p: by_grid(p.logits, p.image, grid), pictures))
    add("+ dense CRF", refined(lambda p: by_dense(p.logits, p.image, p.inside, dense), pictures))
    start = source | {"init_from": folder / "unary"}
    add("trained longer", of_network(train(config("longer"), folder / "longer", **start), pictures))
    layer = {f"model.crf_rnn.{key}": value for key, value in dense.items()}
    run = train(config("crf_rnn"), folder / "crf_rnn", **start, **layer)
    add("as long with CRF-RNN", of_network(run, pictures))
    first = f"{name}, {len(pictures)} pictures\n\n{table(rows)}"
    learned = learned_steps(pictures_of(unary, "train", 120), pictures, dense, options.steps)
    return f"{first}\n\n{table(learned)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", type=Path, required=True, help="holds the runs' folders")
    parser.add_argument("--sets", default="camvid,pets")
    parser.add_argument("--variant", default="cpu")
    parser.add_argument("--source", help="config.data.source, where it is not found by its name")
    parser.add_argument("--tune", type=int, default=40, help="pictures to search settings on")
    parser.add_argument("--steps", type=int, default=300, help="of training learned filters")
    options = parser.parse_args()
    tables = [steps_of(name, options) for name in options.sets.split(",")]
    (options.workdir / "crf.md").write_text("\n\n".join(tables) + "\n")
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
