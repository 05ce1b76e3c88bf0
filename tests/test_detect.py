"""The commands on a detector's run, as a user types them."""

import json

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from runs import get_config

from jaxseg import detect, evaluate, predict
from jaxseg.main import run_experiment
from jaxseg.metrics.masks import decode_mask
from jaxseg.pictures import read_frames
from jaxseg.run import open_run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("run")
        config = get_config()
        with config.unlocked():
            config.model = ConfigDict({"name": "fakes.detector"})
        config.steps, config.eval_every = 2, 0
        config.task, config.best_metric = "detection_voc", "AP"
        config.data.max_objects = 4
        run_experiment(config, folder)
        yield folder


def picture(height, width, box=(10, 6, 25, 18)):
    """Grey noise with a white rectangle, x0, y0, x1, y1."""
    pixels = np.random.default_rng(0).integers(0, 100, (height, width, 3), dtype=np.uint8)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] = 255
    return pixels


def test_training_scores_and_draws(workdir):
    scores = json.loads((workdir / "scores.json").read_text())
    assert {"AP", "AP50", "AR_100", "mask_AP", "keypoint_AP", "voc_AP_all_point"} <= scores.keys()
    assert "proposal_AR_10" in scores
    assert "proposal_AR_1000" not in scores  # there are two
    assert "keypoints AP50" in (workdir / "scores.txt").read_text()
    names = {path.stem for path in (workdir / "pictures").iterdir()}
    assert {"val", "precision_recall", "mask_precision_recall"} <= names
    assert open_run(workdir).info.classes[0] == "background"


def test_evaluate_repeats_the_score_of_training(workdir, capsys):
    before = json.loads((workdir / "scores.json").read_text())
    evaluate.main([f"--workdir={workdir}"])
    assert json.loads((workdir / "scores.json").read_text()) == before
    told = capsys.readouterr().out
    assert f"{before['AP']:.4f}" in told
    assert "AR_medium" in told
    assert "AP 11-point" in told


def test_analysis_of_mistakes(workdir, capsys):
    evaluate.main([f"--workdir={workdir}", "--analyse"])
    scores = json.loads((workdir / "scores.json").read_text())
    told = json.loads((workdir / "analysis.json").read_text())
    assert (told["split"], told["step"]) == (scores["split"], scores["step"])
    assert told["AP50"]["mean"] == pytest.approx(scores["AP50"])
    assert told["errors"]["missed"]["sum"] > 0
    assert told["lost_AP50"]["missed"]["mean"] > 0
    table = capsys.readouterr().out.split("lost AP50, by kind of error")[1]
    assert " ".join(table.split()).startswith("class objects AP50 classification localisation both")
    for name in ("confusion", "lost"):
        picture = np.asarray(Image.open(workdir / "pictures" / f"analysis_{name}.png"))
        assert picture.shape[2] == 3
        assert picture.std() > 10


def test_detections_of_pictures_of_any_size(workdir, tmp_path):
    """The canvas has 32 by 32 pixels; the larger picture is seen at half its size."""
    Image.fromarray(picture(28, 31)).save(tmp_path / "7.png")
    Image.fromarray(picture(40, 64, (20, 8, 50, 30))).save(tmp_path / "12.png")
    out = tmp_path / "out"
    predict.main([f"--workdir={workdir}", f"--input={tmp_path}", f"--output={out}"])
    record = json.loads((out / "predictions.json").read_text())
    assert record["classes"][:2] == ["background", "disc"]
    told = {entry["image_id"]: entry for entry in record["predictions"]}
    assert told[7] == {
        "input": str(tmp_path / "7.png"),
        "size": [28, 31],
        "image_id": 7,
        "overlay": "7_overlay.png",
        "objects": {"disc": 1},
    }
    found = json.loads((out / "detections.json").read_text())
    assert [(d["image_id"], d["category_id"]) for d in found] == [(12, 1), (12, 2), (7, 1), (7, 2)]
    assert found[2]["bbox"] == pytest.approx([10, 6, 15, 12])
    assert found[0]["bbox"] == pytest.approx([20, 8, 30, 22], abs=2)
    assert found[3]["bbox"] == pytest.approx([0, 0, 8, 8])
    assert found[2]["score"] == pytest.approx(0.9)
    assert found[2]["keypoints"] == pytest.approx([17.5, 12, 1] * 5)
    mask = decode_mask(found[2]["segmentation"])
    assert mask.shape == (28, 31)
    assert mask[7:17, 11:24].all()
    assert mask.sum() < 1.2 * 15 * 12


def test_the_threshold_is_of_the_drawing_alone(workdir, tmp_path):
    grey = picture(32, 32, (0, 0, 0, 0))
    Image.fromarray(grey).save(tmp_path / "a.png")
    drawn = []
    for threshold in (0.95, 0.1):
        out = tmp_path / f"{threshold}"
        arguments = [f"--workdir={workdir}", f"--input={tmp_path}/a.png", f"--output={out}"]
        predict.main([*arguments, f"--threshold={threshold}"])
        drawn.append(np.asarray(Image.open(out / "a_overlay.png")))
        (entry,) = json.loads((out / "predictions.json").read_text())["predictions"]
        assert entry["objects"] == ({} if threshold == 0.95 else {"square": 1})
        assert entry["image_id"] == 0  # "a" is not a number
        # What is not there has a box of no size, which is left out.
        (found,) = json.loads((out / "detections.json").read_text())
        assert found["category_id"] == 2
    np.testing.assert_array_equal(drawn[0], grey)
    changed = (drawn[1] != grey).any(-1)
    assert changed[:8, :8].mean() > 0.9
    assert not changed[20:].any()


def test_detections_in_a_video(workdir, tmp_path):
    video = tmp_path / "film.mp4"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"mp4v"), 5, (48, 36))
    for _ in range(3):
        writer.write(picture(36, 48))
    writer.release()
    out = tmp_path / "out"
    predict.main([f"--workdir={workdir}", f"--input={video}", f"--output={out}"])
    (told,) = json.loads((out / "predictions.json").read_text())["predictions"]
    assert (told["frames"], told["size"], told["objects"]) == (3, [36, 48], {"disc": 3})
    assert told["frames_per_second"] > 0
    frames = [*read_frames(out / "film_overlay.mp4")]
    assert len(frames) == 3
    assert frames[0][:10, :2].mean() < 0.5 * frames[0][20:30, :2].mean()  # the rate on its plate
    assert json.loads((out / "detections.json").read_text()) == []


@pytest.mark.parametrize(
    "option", ["--crf", "--scales=1,1.5", "--flip", "--window=32", "--crf=bilateral_sigma=60"]
)
def test_options_of_semantic_models_are_refused(workdir, tmp_path, option):
    Image.fromarray(picture(20, 20, (1, 1, 9, 9))).save(tmp_path / "a.png")
    name = option.split("=")[0]
    message = f"{name} is for semantic segmentation; this task is detection_voc"
    with pytest.raises(SystemExit, match=message):
        predict.main(
            [f"--workdir={workdir}", f"--input={tmp_path}", f"--output={tmp_path}", option]
        )
    with pytest.raises(SystemExit, match=message):
        evaluate.main([f"--workdir={workdir}", option])


def test_image_ids_are_numbers_in_names_or_positions(tmp_path):
    def numbers(*names):
        paths = [tmp_path / name for name in names]
        return [*detect.number_pictures(paths).values()]

    assert numbers("000000000139.jpg", "000000000285.jpg") == [139, 285]
    assert numbers("139.jpg", "cat.jpg") == [0, 1]
    assert numbers("7.jpg", "07.png") == [0, 1]


def test_runs_made_before_there_were_keypoints_still_open(workdir, tmp_path):
    record = json.loads((workdir / "dataset.json").read_text())
    for name in ("keypoint_names", "skeleton"):
        del record[name]
    (tmp_path / "dataset.json").write_text(json.dumps(record))
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    info = open_run(tmp_path).info
    assert (info.keypoint_names, info.skeleton) == ((), ())
