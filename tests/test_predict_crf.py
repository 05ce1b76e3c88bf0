"""`predict --crf`: behind a run, and on label maps without one."""

import json

import numpy as np
import pytest
from PIL import Image
from runs import get_config

from jaxseg import predict
from jaxseg.crf import dense
from jaxseg.main import run_experiment
from jaxseg.types import MEAN, STD

QUICK = "--crf=backend=exact,iterations=3,bilateral_sigma=8,colour_sigma=30,bilateral_weight=5"
SETTINGS = dict(
    backend="exact", iterations=3, bilateral_sigma=8, colour_sigma=30, bilateral_weight=5
)
FOLDERS = {"labels": "masks", "input": "images", "output": "out"}
LEFT, RIGHT = (200, 30, 30), (20, 60, 220)


@pytest.fixture
def folder(tmp_path):
    """Two halves of different colours, and a mask whose border is three pixels off."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    image = np.empty((20, 30, 3), np.uint8)
    image[:, :15], image[:, 15:] = LEFT, RIGHT
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    labels = np.zeros((20, 30), np.uint8)
    labels[:, 18:] = 1
    labels[8:12, 12:24] = 255
    return tmp_path, image, labels


def main(folder, *options):
    folders = (f"--{option}={folder}/{name}" for option, name in FOLDERS.items())
    predict.main([QUICK, *folders, *options])
    return Image.open(folder / "out" / "a.png")


@pytest.mark.parametrize("kind", ["grey", "palette", "colours", "palette by colour"])
def test_the_border_comes_to_the_edge_of_the_picture(folder, kind):
    folder, _, labels = folder
    path = folder / "masks" / "a.png"
    palette = np.zeros((256, 3), np.uint8)
    palette[:2] = [(0, 128, 0), (128, 0, 64)]
    mask = Image.fromarray(labels)
    if kind == "colours":
        mask = Image.fromarray(palette[labels])  # unknown is black
    elif kind == "palette":
        mask.putpalette(palette.tobytes())
    elif kind == "palette by colour":  # another order, black in between
        order = np.array([2, 0, *[1] * 254])
        mask = Image.fromarray(order[labels].astype(np.uint8))
        mask.putpalette(palette[[1, 255, 0]].tobytes())
    mask.save(path)
    found = main(folder, *["--by-colour"] * (kind == "palette by colour"))
    expected = np.zeros((20, 30), int)
    expected[:, 15:] = 1
    np.testing.assert_array_equal(np.asarray(found), expected)
    if kind != "grey":
        assert np.asarray(found.convert("RGB"))[0, 0].tolist() == [0, 128, 0]
    told = json.loads((folder / "out" / "predictions.json").read_text())
    names = ["#008000", "#800040"] if "colour" in kind else ["0", "1"]
    assert told["predictions"][0]["classes"] == dict.fromkeys(names, 0.5)
    assert (folder / "out" / "a_overlay.png").exists()


def test_tiles_and_confidence(folder):
    """A tile sees as much as the whole, as bandwidths are small; and who trusts the labels, keeps
    them."""
    folder, _, labels = folder
    Image.fromarray(labels).save(folder / "masks" / "a.png")
    whole = np.asarray(main(folder))
    tiled = np.asarray(main(folder, QUICK + ",tile=28"))
    np.testing.assert_array_equal(tiled, whole)
    sure = np.asarray(main(folder, "--confidence=0.999999"))
    np.testing.assert_array_equal(sure[labels != 255], labels[labels != 255])


def test_what_does_not_fit_is_named(folder):
    folder, image, labels = folder
    path, size = folder / "masks" / "a.png", image.shape[:2]

    def expect(message, mask, *options):
        mask.save(path)
        with pytest.raises(SystemExit, match=message):
            main(folder, *options)

    expect("a.png: mask of 20×29 pixels; expected 20×30", Image.fromarray(labels[:, :29]))
    expect(
        r"label 3 at 600 pixels; expected 0 … 1", Image.fromarray(labels * 0 + 3), "--num-classes=2"
    )
    expect("the labels are 0; expected 2 or more", Image.fromarray(labels * 0))
    expect("colours that are all grey", Image.fromarray(labels).convert("RGB"))
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expect("more than 255 colours", Image.fromarray(noise))
    expect("confidence is 0.4, expected between", Image.fromarray(labels), "--confidence=0.4")
    expect("'sigma' is none of", Image.fromarray(labels), "--crf=sigma=2")
    Image.fromarray(image).save(folder / "images" / "b.png")
    expect("b.png: there is no mask b in", Image.fromarray(labels))
    assert (folder / "out" / "a.png").exists()  # the others go on
    path.rename(folder / "masks" / "c.png")
    with pytest.raises(SystemExit, match="no mask has the name of a picture, as a"):
        main(folder)
    (folder / "masks" / "b.png").write_bytes(b"nothing")
    with pytest.raises(SystemExit, match=r"b\.png: not a readable picture"):
        main(folder)
    with pytest.raises(SystemExit, match="2"):
        predict.main([f"--input={folder}/images", f"--output={folder}/out", f"--labels={path}"])
    with pytest.raises(SystemExit, match="2"):
        predict.main([f"--input={folder}/images", f"--output={folder}/out"])


def test_behind_a_run_the_picture_is_refined_on_its_canvas(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "cache"))
    config = get_config()
    config.eval_every = config.steps = 0
    config.model.update(width=2, depth=1)
    config.crf.update(SETTINGS)
    run_experiment(config, tmp_path / "run")
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    arguments = [f"--workdir={tmp_path}/run", f"--input={tmp_path}/a.png"]
    for name, options in {"plain": ["--crf=none"], "refined": []}.items():
        predict.main([*arguments, f"--output={tmp_path}/{name}", *options])
    opened = predict.run.open_run(tmp_path / "run")
    normalized = ((image / 255 - MEAN) / STD).astype(np.float32)
    canvas = np.pad(normalized, ((0, 8), (0, 0), (0, 0)))
    padding = ((np.round(255 * MEAN) / 255 - MEAN) / STD).astype(np.float32)
    canvas[24:] = padding
    network = opened.model.predict(opened.variables, canvas[None])["probabilities"][0, :24]
    alone = dense.dense_crf(np.log(np.maximum(network, 1e-7)), image, **SETTINGS).argmax(-1)
    refined, plain = (
        np.asarray(Image.open(tmp_path / name / "a.png")) for name in ("refined", "plain")
    )
    assert (refined == alone).mean() > 0.99
    assert (refined != plain).any()


def test_palettes_that_differ(folder):
    """Labels that are indices in one mask cannot be other colours in the next."""
    folder, image, labels = folder
    Image.fromarray(image).save(folder / "images" / "b.png")
    for name, colour in (("a", LEFT), ("b", RIGHT)):
        mask = Image.fromarray(np.minimum(labels, 1), "P")
        mask.putpalette([9, 9, 9, *colour])
        mask.save(folder / "masks" / f"{name}.png")
    with pytest.raises(SystemExit, match=r"b.png: other colours .* give --by-colour"):
        main(folder)
