"""Search the dense CRF's weights and bandwidths: `python -m jaxseg.tune_crf --workdir=RUN`.

Candidates are random, log-uniform from the lowest to the highest of the values given for a setting
(--bilateral_sigma=30,120), or with --trials=0 all combinations of these values. The first is the
config's own setting, or the usual one. The one of the highest mean IU on the split is written as
JSON, for `--crf=RUN/crf.json` of the other commands.
"""

import itertools
import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseg import cli, run
from jaxseg.crf import dense
from jaxseg.crf.energies import logits_from_probabilities
from jaxseg.metrics import confusion
from jaxseg.train.evaluate import make_evaluate
from jaxseg.train.log import write_whole
from jaxseg.train.mesh import by_rows, data_mesh
from jaxseg.types import IGNORE, Array, Batch

# The values tried, if no others are given. One value alone stays as it is.
VALUES = {
    "bilateral_weight": (2.0, 5.0, 10.0),
    "bilateral_sigma": (30.0, 60.0, 100.0),
    "colour_sigma": (3.0, 6.0, 13.0),
    "spatial_weight": (1.0, 3.0),
    "spatial_sigma": (3.0,),
}
USUAL = dict(zip(VALUES, (10.0, 80.0, 13.0, 3.0, 3.0), strict=True))  # as of `dense_crf`


class Trial(NamedTuple):
    """What a candidate scored. settings: None for the network alone."""

    settings: dict[str, float] | None
    mean_iu: float


def make_candidates(
    values: dict[str, Sequence[float]], first: dict[str, float], trials: int, seed: int = 0
) -> list[dict[str, float]]:
    """`first`, and random ones up to `trials` in all, or for 0 the grid of all values."""
    if not trials:
        grid = itertools.product(*values.values())
        return [first, *(dict(zip(values, point, strict=True)) for point in grid)]
    rng = np.random.default_rng(seed)
    low, high = (np.array([f(v) for v in values.values()]) for f in (min, max))
    points = low * (high / low) ** rng.uniform(size=(trials - 1, len(values)))
    return [first, *(dict(zip(values, map(float, point), strict=True)) for point in points)]


def make_measure(
    candidates: list[dict[str, float]],
    settings: dict[str, Any],
    num_classes: int,
    each: Callable[[Callable], Callable] = lambda f: f,
) -> Callable[[dict[str, Array], Batch], Array]:
    """(predictions, batch) -> confusion matrices [T+1 K K]: the network's, and each candidate's.

    It is one program, in which the candidates are data. settings: those of `dense_crf` that all
    have in common; each: what lets a device do its own rows, as `train.mesh.by_rows`.
    """
    # A spatial kernel that is part of the program is the faster one.
    sigmas = {candidate["spatial_sigma"] for candidate in candidates}
    fixed = {"spatial_sigma": sigmas.pop()} if len(sigmas) == 1 else {}
    table = {
        name: jnp.array([candidate[name] for candidate in candidates], jnp.float32)
        for name in candidates[0].keys() - fixed.keys()
    }

    def count(probabilities: Array, image: Array, labels: Array) -> Array:
        """[1 T+1 K K] of some rows."""
        logits = logits_from_probabilities(probabilities)
        colours, inside = dense.from_batch(image)

        def matrix(logits: Array) -> Array:
            return confusion.confusion_matrix(logits.argmax(-1), labels, num_classes)

        def candidate(numbers: dict[str, Array]) -> Array:
            options: dict[str, Any] = settings | fixed | numbers
            return matrix(dense.dense_crf(logits, colours, inside=inside, **options))

        return jnp.concatenate([matrix(logits)[None], lax.map(candidate, table)])[None]

    def measure(predictions: dict[str, Array], batch: Batch) -> Array:
        labels = jnp.where(batch["valid"][:, None, None], batch["segmentation"], IGNORE)
        return each(count)(predictions["probabilities"], batch["image"], labels).sum(0)

    return measure


def tune_run(options: Namespace) -> tuple[dict[str, Any], list[Trial]]:
    """The best settings, and all trials; the first is the network's own. Writes the settings."""
    opened = run.open_run(options.workdir, which=options.checkpoint)
    config, mesh = opened.config, data_mesh()
    dataset = run.prepare_data(config)
    split = options.split or config.data.eval_split
    if split not in dataset.splits:
        raise ValueError(f"--split={split}: {dataset.name} has {sorted(dataset.splits)}")
    settings = cli.crf_settings(options.crf, dict(config.get("crf") or {})) or {}
    first = {name: settings.pop(name, USUAL[name]) for name in VALUES}
    values = {name: getattr(options, name) for name in VALUES}
    for name, numbers in [*values.items(), *((n, [x]) for n, x in first.items())]:
        if not all(isinstance(x, float | int) and 0 < x < np.inf for x in numbers):
            raise ValueError(f"{name} is {numbers}, expected numbers above zero")
    first = {name: float(x) for name, x in first.items()}
    candidates = make_candidates(values, first, options.trials, options.seed)

    plain = Namespace(**vars(options) | {"crf": "none"})
    predict, _ = cli.careful(opened.model.predict, plain, config)
    task = run.build_task(config, dataset, split)._replace(
        measure=make_measure(
            candidates,
            dense.settings_of(settings, "crf"),
            len(opened.info.classes),
            partial(by_rows, mesh=mesh),
        ),
        add=lambda a, b: np.add(a, b, dtype=np.int64),
    )
    process = jax.process_index(), jax.process_count()
    batches = run.evaluation_batches(config, dataset, split, process)
    matrices, _ = make_evaluate(predict, task, mesh)(opened.variables, batches)
    scores = [confusion.scores(matrix)["mean_iu"] for matrix in matrices]
    trials = [Trial(s, score) for s, score in zip([None, *candidates], scores, strict=True)]
    best = max(trials[1:], key=lambda trial: trial.mean_iu)
    found = {**settings, **(best.settings or {})}
    if process[0] == 0:
        path = options.output or options.workdir / "crf.json"
        write_whole(path, json.dumps(found, indent=2) + "\n")
    return found, trials


def report(trials: list[Trial], count: int = 10) -> str:
    """The network alone, the first candidate, and the best ones."""
    alone, first, *_ = trials
    ranked = sorted(trials[1:], key=lambda trial: -trial.mean_iu)[:count]
    lines = ["mean IU  " + "  ".join(f"{name:>16}" for name in VALUES)]
    for trial, told in [
        (alone, "  the network alone"),
        (first, "  first"),
        *((t, "") for t in ranked),
    ]:
        numbers = "  ".join(f"{x:16.4g}" for x in (trial.settings or {}).values())
        lines.append(f"{trial.mean_iu:7.4f}  {numbers}{told}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--split", help="the config's eval_split if none is given")
    parser.add_argument("--trials", type=int, default=32, help="candidates; 0: the whole grid")
    parser.add_argument("--seed", type=int, default=0, help="of random candidates")
    parser.add_argument("--output", type=Path, help="the file to write, else RUN/crf.json")
    for name, values in VALUES.items():
        usual = ",".join(f"{value:g}" for value in values)
        parser.add_argument(
            f"--{name}", type=cli.numbers_option, default=values, help=f"else {usual}"
        )
    cli.add_care_options(parser)
    options = parser.parse_args(argv)
    if options.trials < 0:
        parser.error(f"--trials={options.trials}, expected 0 or more")
    with cli.told_errors():
        found, trials = tune_run(options)
    print(report(trials))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
