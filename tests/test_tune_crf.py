"""The search for the dense CRF's settings, and what `--crf` takes."""

import json

import numpy as np
import pytest
from runs import get_config

from jaxseg import cli, evaluate, tune_crf
from jaxseg.crf.dense import dense_crf
from jaxseg.crf.energies import logits_from_probabilities
from jaxseg.main import run_experiment
from jaxseg.metrics import confusion
from jaxseg.types import IGNORE, MEAN, STD

QUICK = "backend=exact,iterations=2"
FIRST = dict(zip(tune_crf.VALUES, (2.0, 5.0, 40.0, 1.0, 2.0), strict=True))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("run")
        config = get_config()
        config.eval_every = config.steps = 0
        config.model.update(width=2, depth=1)
        config.data.options.update(num_train=8, num_val=8)
        config.data.image_size = (16, 16)
        run_experiment(config, folder)
        yield folder


def test_candidates_are_the_first_and_a_grid_or_random_ones():
    values = {"bilateral_weight": (2.0, 8.0), "spatial_sigma": (3.0,)}
    first = {"bilateral_weight": 5.0, "spatial_sigma": 1.0}
    grid = tune_crf.make_candidates(values, first, 0)
    points = [{"bilateral_weight": w, "spatial_sigma": 3.0} for w in (2.0, 8.0)]
    assert grid == [first, *points]
    drawn = tune_crf.make_candidates(values, first, 200, seed=1)
    assert drawn[0] == first
    assert len(drawn) == 200
    weights = np.array([candidate["bilateral_weight"] for candidate in drawn[1:]])
    assert {candidate["spatial_sigma"] for candidate in drawn[1:]} == {3.0}
    assert 2 <= weights.min() < 2.2
    assert 7.5 < weights.max() <= 8
    assert np.median(weights) == pytest.approx(4, rel=0.2)  # log-uniform
    assert drawn == tune_crf.make_candidates(values, first, 200, seed=1)


def test_each_candidate_is_measured_as_if_it_were_alone():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 6, 7, 3))
    probabilities = rng.dirichlet(np.ones(3), (2, 6, 7)).astype(np.float32)
    batch = {
        "image": ((image / 255 - MEAN) / STD).astype(np.float32),
        "segmentation": rng.integers(0, 3, (2, 6, 7)).astype(np.int32),
        "valid": np.array([True, False]),
    }
    predictions = {"probabilities": probabilities, "segmentation": probabilities.argmax(-1)}
    candidates = [FIRST, FIRST | {"bilateral_weight": 0.1}, FIRST | {"colour_sigma": 200.0}]
    settings = {"backend": "exact", "iterations": 3}
    found = tune_crf.make_measure(candidates, settings, 3)(predictions, batch)
    labels = np.where(batch["valid"][:, None, None], batch["segmentation"], IGNORE)
    logits = logits_from_probabilities(probabilities)
    expected = [probabilities.argmax(-1)]
    for candidate in candidates:
        refined = dense_crf(logits, image.astype(np.uint8), **settings, **candidate)
        expected.append(np.asarray(refined).argmax(-1))
    for matrix, segmentation in zip(found, expected, strict=True):
        alone = confusion.confusion_matrix(segmentation.astype(np.int32), labels, 3)
        np.testing.assert_array_equal(matrix, alone)
    assert not np.array_equal(found[1], found[2])


def test_the_best_is_written_and_evaluated(workdir, capsys):
    options = [f"--workdir={workdir}", f"--crf={QUICK}", "--trials=3", "--bilateral_sigma=2,6"]
    tune_crf.main(options)
    out = capsys.readouterr().out
    best = json.loads((workdir / "crf.json").read_text())
    assert best["backend"], best["iterations"] == ("exact", 2)
    assert best.keys() - {"backend", "iterations"} == tune_crf.VALUES.keys()
    assert json.loads(out.splitlines()[-1]) == best
    assert len(out.splitlines()) == 1 + 2 + 3 + 1  # titles, alone and first, three ranked
    top = float(out.splitlines()[3].split()[0])
    evaluate.main([f"--workdir={workdir}", f"--crf={workdir}/crf.json"])
    scores = json.loads((workdir / "scores.json").read_text())
    assert scores["mean_iu"] == pytest.approx(top, abs=1e-4)
    assert scores["crf"] == best


def test_wrong_options_are_named(workdir, tmp_path):
    run = f"--workdir={workdir}"
    (tmp_path / "list.json").write_text("[1]")
    for command, options, message in [
        (tune_crf, ["--bilateral_sigma=0,3"], "bilateral_sigma is .*expected numbers above zero"),
        (tune_crf, ["--split=test"], "--split=test"),
        (tune_crf, ["--crf=sigma=3"], "--crf: 'sigma' is none of spatial_sigma"),
        (evaluate, ["--crf=iterations"], "'iterations', expected NAME=VALUE"),
        (evaluate, [f"--crf={tmp_path}/list.json"], "expected an object of settings"),
        (evaluate, [f"--crf={tmp_path}/none.json"], "none.json"),
    ]:
        with pytest.raises(SystemExit, match=message):
            command.main([run, *options])


def test_the_option_goes_before_the_config():
    configured = {"iterations": 5, "bilateral_sigma": 60.0}
    assert cli.crf_settings(None, {}) is None
    assert cli.crf_settings("none", configured) is None
    assert cli.crf_settings(None, configured) == cli.crf_settings("", configured) == configured
    assert cli.crf_settings("", {}) == {}
    found = cli.crf_settings("iterations=3,backend=exact", configured)
    assert found == {"iterations": 3, "bilateral_sigma": 60.0, "backend": "exact"}
