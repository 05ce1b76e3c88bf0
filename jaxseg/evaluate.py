"""Score a run: `python -m jaxseg.evaluate --workdir=RUN [--split=val --scales=0.75,1,1.25 --flip
--crf]`.

Writes `scores.json`, `scores.txt` and pictures into the run's folder, and prints the table.
"""

from argparse import Namespace
from collections.abc import Sequence

import jax

from jaxseg import cli, run
from jaxseg.train.log import write_picture, write_scores
from jaxseg.train.loop import Scored


def evaluate_run(options: Namespace) -> Scored:
    """Score a run's checkpoint on a split, as the command's options say."""
    workdir = options.workdir
    opened = run.open_run(workdir, which=options.checkpoint)
    config = opened.config
    dataset = run.prepare_data(config)
    split = options.split or config.data.eval_split
    if split not in dataset.splits:
        raise ValueError(f"--split={split}: {dataset.name} has {sorted(dataset.splits)}")
    if tuple(dataset.classes) != opened.info.classes:
        raise ValueError(f"{workdir} was trained on classes {opened.info.classes}")
    predict, used = cli.careful(opened.model.predict, options, config)
    task = run.build_task(config, dataset, split)
    scored = run.make_scoring(config, dataset, split, task, predict)(opened.variables)
    if jax.process_index() == 0:
        write_scores(workdir, opened.step, split, scored.scores, scored.table, **used)
        for name, picture in scored.pictures.items():
            write_picture(workdir, name, picture)
    return scored


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--split", help="the config's eval_split if none is given")
    cli.add_care_options(parser)
    options = parser.parse_args(argv)
    with cli.told_errors():
        scored = evaluate_run(options)
    print(scored.table)
    for name, value in scored.scores.items():
        print(f"{name:24} {value:.4f}")


if __name__ == "__main__":
    main()
