"""One table of many systems, all trained in the same way: scores, size, arithmetic, speed.

    python benchmarks/systems.py --config=experiments/camvid_systems.py --workdir=RUNS \\
        [--systems=unet,fcn32s,fcn16s] [--variant=cpu] [--config.FIELD=VALUE, as jaxseg.main]

Trains, one after another, every system that the experiment file names in `SYSTEMS` (a run that is
done already is not made again), and prints a table in Markdown. Parameters are counted, GFLOPs are
those of one picture forward as the compiler counts them, minutes and images/s those of training by
the run's own log, evaluations left out; predicted images/s are measured at the end, at batch 8,
when nothing else runs.
"""

import argparse
import json
import runpy
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.run import Run, open_run

BATCH = 8
SCORES = {  # of a task, {column: key}
    "semantic": {"mean IU": "mean_iu", "pixel accuracy": "pixel_accuracy"},
    "detection": {"AP50": "AP50", "AP": "AP"},
    "detection_voc": {"AP 2007": "voc_AP_11_point", "AP 2012": "voc_AP_all_point"},
}


def train(config: str, workdir: Path, changes: list[str]) -> None:
    """Run `python -m jaxseg.main`, or go on where it was left."""
    command = [sys.executable, "-m", "jaxseg.main", f"--config={config}", f"--workdir={workdir}"]
    subprocess.run([*command, *changes], check=True)


def row(name: str, workdir: Path) -> dict[str, str]:
    """The table's row for a run that is done: {column: value}."""
    run = open_run(workdir, which="last")
    scores = json.loads((workdir / "scores.json").read_text())
    parameters = sum(x.size for x in jax.tree.leaves(run.variables["params"]))
    gflops, predicted = forward_cost(run)
    speeds = [rates["images_per_second"] for rates in training_rates(workdir)]
    speed = statistics.median(speeds)
    images = run.config.steps * run.config.data.batch_size
    return {
        "system": name,
        **{title: f"{scores[key]:.3f}" for title, key in SCORES[run.config.task].items()},
        "parameters": f"{parameters / 1e6:.2f} M",
        "GFLOPs": f"{gflops:.2f}",
        "training minutes": f"{images / speed / 60:.1f}",
        "training images/s": f"{speed:.1f}",
        "predicted images/s": f"{predicted:.1f}",
    }


def training_rates(workdir: Path) -> list[dict[str, float]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    times = [json.loads(line).get("time", {}) for line in lines]
    return [t for t in times if "images_per_second" in t]


def forward_cost(run: Run) -> tuple[float, float]:
    """(GFLOPs of a picture, pictures a second) of the run's prediction."""
    height, width = run.config.data.image_size

    def compiled(batch: int) -> tuple[Any, jax.Array]:
        image = jnp.zeros((batch, height, width, 3))
        return jax.jit(run.model.predict).lower(run.variables, image).compile(), image

    cost = compiled(1)[0].cost_analysis() or {}
    predict, image = compiled(BATCH)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        jax.block_until_ready(predict(run.variables, image))
        times.append(time.perf_counter() - start)
    return cost.get("flops", 0.0) / 1e9, BATCH / statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="an experiment file with SYSTEMS")
    parser.add_argument("--workdir", type=Path, required=True, help="holds a run's folder each")
    parser.add_argument("--systems", help="names, with commas; all if not given")
    parser.add_argument("--variant", default="cpu")
    options, changes = parser.parse_known_args()
    if unknown := [change for change in changes if not change.startswith("--config.")]:
        parser.error(f"unknown {unknown}")
    known = list(runpy.run_path(options.config)["SYSTEMS"])
    chosen = options.systems.split(",") if options.systems else known
    if unknown := set(chosen) - set(known):
        parser.error(f"--systems: {sorted(unknown)} are not among {', '.join(known)}")
    start = time.perf_counter()
    for name in chosen:
        train(f"{options.config}:{name},{options.variant}", options.workdir / name, changes)
    minutes = (time.perf_counter() - start) / 60
    rows = [row(name, options.workdir / name) for name in chosen]
    lines = [rows[0], ["---"] * len(rows[0]), *(line.values() for line in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    print(f"\n{table}\n\n{minutes:.0f} minutes in all")
    (options.workdir / "table.md").write_text(table + "\n")


if __name__ == "__main__":
    main()
