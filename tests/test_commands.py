"""The four commands on one tiny run, as a user types them."""

import json
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from PIL import Image
from runs import get_config

from jaxseg import evaluate, export, predict
from jaxseg.main import run_experiment
from jaxseg.pictures import read_frames
from jaxseg.run import open_run
from jaxseg.types import MEAN, STD


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("run")
        config = get_config()
        config.eval_every = 0
        run_experiment(config, folder)
        yield folder


def picture(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_evaluate_repeats_the_score_of_training(workdir, capsys):
    before = json.loads((workdir / "scores.json").read_text())
    evaluate.main([f"--workdir={workdir}"])
    assert json.loads((workdir / "scores.json").read_text()) == before
    assert f"{before['mean_iu']:.4f}" in capsys.readouterr().out


def test_evaluate_with_more_care(workdir):
    evaluate.main([f"--workdir={workdir}", "--split=train", "--flip", "--scales=1,1.5"])
    scores = json.loads((workdir / "scores.json").read_text())
    assert (scores["split"], scores["flip"], scores["scales"]) == ("train", True, [1.0, 1.5])


def test_evaluate_names_what_is_wrong(workdir, tmp_path):
    with pytest.raises(SystemExit, match="is not the workdir of a run"):
        evaluate.main([f"--workdir={tmp_path}"])
    with pytest.raises(SystemExit, match=r"--split=test: shapes has \['train', 'val'\]"):
        evaluate.main([f"--workdir={workdir}", "--split=test"])
    with pytest.raises(SystemExit, match="--analyse is for detection; this task is semantic"):
        evaluate.main([f"--workdir={workdir}", "--analyse"])
    assert not (workdir / "analysis.json").exists()


@pytest.mark.parametrize("options", [[], ["--window=32", "--margin=8"], ["--flip"]])
def test_predict_pictures_of_any_size(workdir, tmp_path, options):
    sizes = {"small": (20, 31), "tall": (90, 40), "fitting": (32, 32)}
    for name, size in sizes.items():
        Image.fromarray(picture(*size)).save(tmp_path / f"{name}.png")
    out = tmp_path / "out"
    predict.main([f"--workdir={workdir}", f"--input={tmp_path}", f"--output={out}", *options])
    record = json.loads((out / "predictions.json").read_text())
    assert record["classes"][:2] == ["background", "disc"]
    assert len(record["predictions"]) == 3
    for name, (height, width) in sizes.items():
        mask = Image.open(out / f"{name}.png")
        assert (mask.mode, mask.size) == ("P", (width, height))
        assert Image.open(out / f"{name}_overlay.png").size == (width, height)
        (told,) = [p for p in record["predictions"] if p["mask"] == f"{name}.png"]
        shares = np.bincount(np.asarray(mask).ravel(), minlength=6) / (height * width)
        np.testing.assert_allclose(list(told["classes"].values()), shares)


def test_predict_is_what_evaluation_sees(workdir, tmp_path):
    """A picture of the canvas' size: the mask is the model's own argmax."""
    image = picture(32, 32)
    Image.fromarray(image).save(tmp_path / "a.png")
    predict.main([f"--workdir={workdir}", f"--input={tmp_path}/a.png", f"--output={tmp_path}/out"])
    opened = open_run(workdir)
    normalized = ((image / 255 - MEAN) / STD).astype(np.float32)[None]
    expected = opened.model.predict(opened.variables, normalized)["segmentation"][0]
    assert (np.asarray(Image.open(tmp_path / "out" / "a.png")) == expected).mean() > 0.999


def test_predict_a_video(workdir, tmp_path):
    video = tmp_path / "film.mp4"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"mp4v"), 5, (48, 36))
    for _ in range(3):
        writer.write(picture(36, 48))
    writer.release()
    out = tmp_path / "out"
    predict.main([f"--workdir={workdir}", f"--input={video}", f"--output={out}"])
    (told,) = json.loads((out / "predictions.json").read_text())["predictions"]
    assert (told["frames"], told["size"]) == (3, [36, 48])
    assert len(list((out / "film").iterdir())) == 3
    assert sum(1 for _ in read_frames(out / "film_overlay.mp4")) == 3


def test_predict_goes_on_after_a_bad_file(workdir, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    Image.fromarray(picture(20, 20)).save(tmp_path / "good.png")
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match=r"bad.png: not a readable picture"):
        predict.main([f"--workdir={workdir}", f"--input={tmp_path}/*.png", f"--output={out}"])
    assert (out / "good.png").exists()
    told = json.loads((out / "predictions.json").read_text())["predictions"]
    assert ["error" in p for p in told] == [True, False]
    with pytest.raises(SystemExit, match="no picture or video there"):
        predict.main([f"--workdir={workdir}", "--input=nothing*", f"--output={out}"])


WITHOUT_JAXSEG = """
import json, sys
import jax, numpy as np
folder = sys.argv[1]
exported = jax.export.deserialize(bytearray(open(f"{folder}/model.stablehlo", "rb").read()))
images = np.load(f"{folder}/images.npy")
np.savez(f"{folder}/found.npz", **exported.call(images))
assert not [name for name in sys.modules if name.startswith(("jaxseg", "flax"))]
"""


@pytest.mark.parametrize("count", [1, 3])
def test_an_exported_model_works_without_jaxseg(workdir, tmp_path, count):
    export.main([f"--workdir={workdir}", f"--output={tmp_path}/model.stablehlo"])
    signature = json.loads((tmp_path / "model.json").read_text())
    assert signature["input"] == {"shape": ["b", 32, 32, 3], "dtype": "uint8"}
    assert signature["outputs"]["segmentation"] == {"shape": ["b", 32, 32], "dtype": "int32"}
    assert signature["classes"][0] == "background"
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    subprocess.run([sys.executable, "-c", WITHOUT_JAXSEG, str(tmp_path)], check=True)
    found = np.load(tmp_path / "found.npz")
    opened = open_run(workdir)
    normalized = ((images / 255 - MEAN) / STD).astype(np.float32)
    expected = jax.jit(opened.model.predict)(opened.variables, normalized)
    np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=1e-5)
