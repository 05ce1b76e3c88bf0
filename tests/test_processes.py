"""Runs in processes of their own: two that train together, one that is killed 20 times."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from runs import assert_same_end, raw_leaves, read_lines

ROOT = Path(__file__).parents[1]


def start(workdir: Path, cache: Path, *options: str) -> subprocess.Popen:
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAXSEG_CACHE": str(cache)}
    command = [sys.executable, "-m", "jaxseg.main", "--config=tests/runs.py"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes: subprocess.Popen) -> str:
    texts = [process.communicate(timeout=300)[0] for process in processes]
    for process, text in zip(processes, texts, strict=True):
        assert process.returncode == 0, text[-3000:]
    return texts[0]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    options = ["--config.steps=10", "--config.log_every=1", "--config.eval_every=5"]
    options += ["--config.optim.name=sgd"]  # Adam makes as much of rounding as of gradients
    finish(start(tmp_path / "one", tmp_path / "cache", *options))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = [f"--coordinator=localhost:{port}", "--num_processes=2"]
    finish(
        *[
            start(tmp_path / "two", tmp_path / "cache", *options, *together, f"--process_id={i}")
            for i in range(2)
        ]
    )
    one, two = (read_lines(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 12
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() & {"cross_entropy", "mean_iu", "learning_rate"}:
            assert abs(ours[name] - theirs[name]) < 1e-5, (name, ours, theirs)
    ours, theirs = raw_leaves(tmp_path / "one"), raw_leaves(tmp_path / "two")
    for name, leaf in ours.items():
        np.testing.assert_allclose(leaf, theirs[name], atol=1e-5, err_msg=name)


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    workdir = tmp_path / "run"
    options = ["--config.steps=100000", "--config.eval_every=0", "--config.log_every=1"]
    process = start(workdir, tmp_path / "cache", *options)
    wait_for_lines(workdir, 5, process)
    process.send_signal(signal.SIGINT)
    text = finish(process)
    assert "saved; the same command goes on from there" in text
    saved = max(int(p.name) for p in (workdir / "checkpoints" / "last").iterdir())
    assert saved == read_lines(workdir)[-1]["step"]
    process = start(workdir, tmp_path / "cache", *options)
    wait_for_lines(workdir, saved + 3, process)
    process.send_signal(signal.SIGTERM)
    assert f"resumed at step {saved}" in finish(process)
    steps = [row["step"] for row in read_lines(workdir)]
    assert steps == list(range(1, len(steps) + 1))


def wait_for_lines(workdir: Path, count: int, process: subprocess.Popen) -> None:
    path = workdir / "metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < count:
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.02)


@pytest.mark.slow
def test_kill_minus_nine_twenty_times(tmp_path):
    """Half of the kills come while a checkpoint is being written, half at random moments."""
    options = ["--config.steps=500", "--config.eval_every=50", "--config.checkpoint_every=2"]
    finish(start(tmp_path / "whole", tmp_path / "cache", *options))
    workdir, rng = tmp_path / "killed", random.Random(0)
    inside_a_save = 0
    for number in range(20):
        last = workdir / "checkpoints" / "last"
        process = start(workdir, tmp_path / "cache", *options)
        before = finished(last)
        while finished(last) <= before:  # at least one save, so that every life gets on
            assert process.poll() is None, process.communicate()[0][-3000:]
            time.sleep(0.005)
        if number % 2:
            while not unfinished(last):
                assert process.poll() is None, process.communicate()[0][-3000:]
        else:
            time.sleep(rng.random() * 0.3)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
        inside_a_save += bool(unfinished(last))
    assert inside_a_save >= 5
    finish(start(workdir, tmp_path / "cache", *options))
    assert_same_end(workdir, tmp_path / "whole")


def finished(folder: Path) -> int:
    """The last whole checkpoint's step."""
    return max((int(p.name) for p in listing(folder) if p.name.isdigit()), default=-1)


def unfinished(folder: Path) -> list[Path]:
    return [p for p in listing(folder) if "tmp" in p.name]


def listing(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
