"""Train: `python -m jaxseg.main --config=experiments/x.py --workdir=RUN [--config.steps=100 …]`.

Ctrl-C and SIGTERM save and stop; the same command goes on from the last checkpoint.
"""

from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from jaxseg import cli, run
from jaxseg.train.loop import NonFiniteError, train
from jaxseg.train.mesh import make_parallel
from jaxseg.train.optim import make_optimizer, make_schedule
from jaxseg.train.step import State, init_state, make_step

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")
OVERRIDE = flags.DEFINE_bool("override", False, "Go on in a workdir whose config was another.")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of the first process, where several train together."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many train together.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def run_stages(config: ConfigDict, workdir: Path, *, override: bool = False) -> State | None:
    """Train as `config` says; where it has stages, those in turn, each from the best of the one
    before, in `workdir`/stage1, /stage2 …, and the last in `workdir` itself. Gives back what
    `run_experiment` does; ValueError for changes of settings that are not there."""
    stages = config.stages or ({},)
    source, state = config.init_from, None
    for number, changes in enumerate(stages, start=1):
        stage = config.copy_and_resolve_references()
        try:
            stage.update_from_flattened_dict({"stages": (), "init_from": source, **dict(changes)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"stages, number {number}: {error.args[0]}") from error
        folder = workdir if number == len(stages) else workdir / f"stage{number}"
        state = run_experiment(stage, folder, override=override)
        if state is None:
            return None
        source = str(folder)
    return state


def run_experiment(config: ConfigDict, workdir: Path, *, override: bool = False) -> State | None:
    """Train as `config` says. The last state on the host, or None where a signal stopped it."""
    process = jax.process_index(), jax.process_count()
    run.check_config(config)
    dataset = run.prepare_data(config)
    info = run.describe(dataset, config.data.train_split)
    parallel = make_parallel(config.parallel)
    model = run.build_model(config, info, parallel.axis_name)
    eval_name = config.data.eval_split
    task = run.build_task(config, dataset, eval_name)
    first = next(run.evaluation_batches(config, dataset, eval_name, process))
    variables = model.init(jax.random.key(config.seed), first)
    told = ""
    if config.init_from:
        variables, told = run.take_weights(variables, config, len(info.classes))
    optimizer = make_optimizer(config.optim, config.steps)
    state = init_state(variables, optimizer, ema=bool(config.optim.ema_decay))
    run.claim_workdir(workdir, config, info, override=override)
    count = sum(x.size for x in jax.tree.leaves(state.params))
    train_split, eval_split = (dataset.splits[config.data[f"{s}_split"]] for s in ("train", "eval"))
    if process[0] == 0:
        print(
            f"{config.model.name}, {count:,} parameters; {info.name}, {len(train_split)} training "
            f"and {len(eval_split)} evaluation images; {jax.device_count()} "
            f"{jax.default_backend()} device(s), {config.parallel}",
            told,
            sep="\n" if told else "",
            flush=True,
        )

    step = make_step(
        model,
        optimizer,
        seed=config.seed,
        accumulate=config.optim.accumulate,
        ema_decay=config.optim.ema_decay or None,
        axis_name=parallel.axis_name,
    )
    final = train(
        step=step,
        state=jax.tree.map(np.asarray, state),
        batches=lambda start: run.training_batches(config, dataset, start, process),
        evaluate=run.make_scoring(config, dataset, eval_name, task, model.predict),
        schedule=make_schedule(config.optim, config.steps),
        parallel=parallel,
        config=config,
        workdir=workdir,
    )
    if process[0] == 0 and final is not None:
        print(f"\n{(workdir / 'scores.txt').read_text()}")
        for picture in sorted((workdir / "pictures").glob("*.png")):
            print(f"picture: {picture}")
        print(f"table:   {workdir / 'scores.txt'}")
    return final


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    if COORDINATOR.value:
        jax.distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    with cli.told_errors(NonFiniteError):
        run_stages(CONFIG.value, Path(str(WORKDIR.value)), override=bool(OVERRIDE.value))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
