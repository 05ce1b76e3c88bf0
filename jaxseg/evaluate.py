"""Score a run: `python -m jaxseg.evaluate --workdir=RUN [--split=val --scales=0.75,1,1.25 --flip
--crf --analyse]`.

Writes `scores.json`, `scores.txt` and pictures into the run's folder, and prints the table. With
--analyse a detector's mistakes, too: `analysis.json`, a table, `pictures/analysis_….png`.
"""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxseg import cli, run
from jaxseg.train.log import write_picture, write_scores, write_whole
from jaxseg.train.loop import Scored
from jaxseg.types import Findings


def evaluate_run(options: Namespace) -> tuple[Scored, Findings | None]:
    """Score a run's checkpoint on a split, and analyse its mistakes, as the command's options
    say."""
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
    analyse = task.analyse if options.analyse else None
    if options.analyse and analyse is None:
        raise ValueError(f"--analyse is for detection; this task is {config.task}")
    scored = run.make_scoring(config, dataset, split, task, predict)(opened.variables)
    findings = analyse(scored.counts) if analyse else None
    if jax.process_index() == 0:
        write_scores(workdir, opened.step, split, scored.scores, scored.table, **used)
        for name, picture in scored.pictures.items():
            write_picture(workdir, name, picture)
        if findings is not None:
            write_findings(workdir, findings, step=opened.step, split=split)
    return scored, findings


def write_findings(workdir: Path, findings: Findings, **about: Any) -> None:
    """`analysis.json` and `pictures/analysis_….png` of a run."""
    record = {**about, **findings.record}
    write_whole(workdir / "analysis.json", json.dumps(record, indent=2) + "\n")
    for name, picture in findings.pictures.items():
        write_picture(workdir, name, picture)


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--split", help="the config's eval_split if none is given")
    cli.add_care_options(parser)
    parser.add_argument(
        "--analyse", action="store_true", help="where a detector's AP is lost, and to which classes"
    )
    options = parser.parse_args(argv)
    with cli.told_errors():
        scored, findings = evaluate_run(options)
    print(scored.table)
    for name, value in scored.scores.items():
        print(f"{name:24} {value:.4f}")
    if findings is not None:
        print(f"\n{findings.table}")


if __name__ == "__main__":
    main()
