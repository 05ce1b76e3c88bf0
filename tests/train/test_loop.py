"""Whole runs: interrupted ones end like those that were not."""

import json
import os
import signal

import jax
import numpy as np
import pytest
from runs import assert_same_end, get_config, raw_leaves, read_lines

from jaxseg import run
from jaxseg.main import run_experiment, run_stages
from jaxseg.train import loop


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    assert run_experiment(get_config(), workdir).step == 12
    return workdir


def test_what_a_run_leaves(whole):
    names = {p.name for p in whole.iterdir()}
    assert names >= {"config.json", "dataset.json", "metrics.jsonl", "scores.json", "scores.txt"}
    assert {p.name for p in (whole / "pictures").iterdir()} == {"val.png", "confusion.png"}
    assert list((whole / "tensorboard").iterdir())
    scores = json.loads((whole / "scores.json").read_text())
    assert (scores["step"], scores["split"]) == (12, "val")
    assert 0 <= scores["mean_iu"] <= 1
    rows = read_lines(whole)
    assert [r["step"] for r in rows if "split" not in r] == [2, 4, 6, 8, 10, 12]
    assert [r["step"] for r in rows if "split" in r] == [4, 8, 12]
    assert all(next(iter(r)) == "step" for r in rows)
    timed = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= r["time"]["waiting"] <= 1 for r in timed if "split" not in r)


def test_a_second_start_changes_nothing(whole):
    before = (whole / "metrics.jsonl").read_text()
    assert run_experiment(get_config(), whole).step == 12
    assert (whole / "metrics.jsonl").read_text() == before


def stop_at(monkeypatch, step):
    """SIGTERM to ourselves when batch `step` is asked for."""
    plain = run.training_batches

    def interrupted(config, dataset, start, process):
        for number, batch in enumerate(plain(config, dataset, start, process), start=start):
            if number == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(run, "training_batches", interrupted)


def test_interrupted_runs_end_the_same(whole, tmp_path, monkeypatch):
    for step in (1, 4, 6, 11):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            assert run_experiment(get_config(), tmp_path) is None
        saved = sorted(int(p.name) for p in (tmp_path / "checkpoints" / "last").iterdir())
        assert saved[-1] == step + 1
    assert run_experiment(get_config(), tmp_path).step == 12
    assert_same_end(tmp_path, whole)


def test_interrupted_evaluation_is_done_again(whole, tmp_path, monkeypatch):
    plain = run.evaluation_batches
    calls = []

    def interrupted(*args):
        calls.append(args)
        for number, batch in enumerate(plain(*args)):
            # the first call only asks for shapes
            if len(calls) == 2 and number == 1:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(run, "evaluation_batches", interrupted)
        assert run_experiment(get_config(), tmp_path) is None
    assert read_lines(tmp_path)[-1]["step"] == 4
    assert "split" not in read_lines(tmp_path)[-1]
    assert run_experiment(get_config(), tmp_path).step == 12
    assert_same_end(tmp_path, whole)


def poison(monkeypatch, steps):
    """Batches with one NaN pixel at the given steps."""
    plain = run.training_batches

    def poisoned(config, dataset, start, process):
        for number, batch in enumerate(plain(config, dataset, start, process), start=start):
            if number in steps:
                batch["image"][0, 0, 0, 0] = np.nan
            yield batch

    monkeypatch.setattr(run, "training_batches", poisoned)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    poison(monkeypatch, {4})
    with pytest.raises(loop.NonFiniteError, match="step 5 is not finite: cross_entropy nan"):
        run_experiment(get_config(), tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in raw_leaves(tmp_path).values())
    assert read_lines(tmp_path)[-1]["step"] == 4


def test_up_to_so_many_are_skipped(tmp_path, monkeypatch, capsys):
    poison(monkeypatch, {2, 6})
    config = get_config()
    config.max_skipped_steps = 2
    assert run_experiment(config, tmp_path).skipped == 2
    assert "step 7 is not finite" in capsys.readouterr().out
    assert all(np.isfinite(leaf).all() for leaf in raw_leaves(tmp_path).values())
    assert run_experiment(config, tmp_path).step == 12


def test_another_config_is_refused_with_the_difference(whole, tmp_path):
    run.claim_workdir(tmp_path, get_config(), info := read_info(whole), override=False)
    config = get_config()
    config.optim.learning_rate = 0.5
    with pytest.raises(ValueError, match=r'-    "learning_rate": 0.01(.|\n)*\+.*0.5'):
        run.claim_workdir(tmp_path, config, info, override=False)
    run.claim_workdir(tmp_path, config, info, override=True)
    assert '"learning_rate": 0.5' in (tmp_path / "config.json").read_text()


def read_info(workdir):
    return run.open_run(workdir).info


def test_a_batch_that_the_devices_cannot_share_is_refused(tmp_path):
    config = get_config()
    config.data.batch_size = 6
    with pytest.raises(ValueError, match="batch_size is 6, expected a multiple of the 8 devices"):
        run_experiment(config, tmp_path)


def test_pmap_trains_the_same(whole, tmp_path):
    config = get_config()
    config.model.dropout = 0.0
    config.eval_every = 0
    config.optim.name = "sgd"  # Adam makes as much of a rounding error as of a gradient
    for kind in ("jit", "pmap"):
        config.parallel = kind
        run_experiment(config, tmp_path / kind)
    ours, theirs = (raw_leaves(tmp_path / kind) for kind in ("jit", "pmap"))
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5, err_msg=name)


def test_init_from_takes_the_variables_of_a_run(whole, tmp_path):
    config = get_config()
    config.init_from = str(whole)
    config.steps = 0
    state = run_experiment(config, tmp_path)
    taken = run.open_run(whole).variables["params"]
    jax.tree.map(np.testing.assert_array_equal, state.params, taken)
    config.model.width = 5
    with pytest.raises(ValueError, match="the network's is"):
        run_experiment(config, tmp_path / "other")


def test_stages_start_from_the_ones_before(tmp_path):
    config = get_config()
    config.eval_every = config.checkpoint_every = 0
    config.stages = ({"steps": 2}, {"steps": 0, "model.dropout": 0.0})
    state = run_stages(config, tmp_path)
    first, last = (run.open_run(folder, which="last") for folder in (tmp_path / "stage1", tmp_path))
    assert (first.step, last.step) == (2, 0)
    assert int(state.step) == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, first.variables["params"])
    assert last.config.model.dropout == 0.0 != first.config.model.dropout

    config.stages = ({"stepz": 2},)
    with pytest.raises(ValueError, match=r"stages, number 1: .*stepz"):
        run_stages(config, tmp_path / "other")
