"""What happens to an example between disk and batch: geometry, colour, normalisation, padding.

An example is a dict of numpy arrays, as `builders.prepare` gives it:

    image         uint8 [H W 3]
    segmentation  uint8 [H W], IGNORE where unknown
    boxes         float32 [M 4] xyxy, labels int32 [M], crowd and difficult bool [M],
    masks         bool [M H W], keypoints float32 [M J 3]

Geometry is a 3×3 matrix that takes points (x, y, 1) of the picture, in pixels with centres at +0.5,
to points of the canvas. `warp` moves everything that an example holds by one such matrix, and may
bend the canvas by a field of displacements on the way: pictures are interpolated once.
"""

from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8
from scipy.ndimage import map_coordinates

from jaxseg.ops.border import border_weights
from jaxseg.types import IGNORE, MEAN, STD

Example = dict[str, Any]
Matrix = Float[np.ndarray, "3 3"]
Field = Float32[np.ndarray, "H W 2"]  # a displacement (x, y) in pixels for each of the canvas
Size = tuple[int, int]  # height, width in pixels


def fit_scale(size: Size, canvas: Size) -> float:
    """The factor by which a picture fits into the canvas; never above 1."""
    return min(1.0, canvas[0] / size[0], canvas[1] / size[1])


def scaled_size(size: Size, scale: float) -> Size:
    """Size in whole pixels after scaling."""
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def resize_matrix(size: Size, new_size: Size) -> Matrix:
    """Stretch `size` to `new_size`."""
    return np.diag([new_size[1] / size[1], new_size[0] / size[0], 1.0])


def shift_matrix(x: int | float, y: int | float) -> Matrix:
    """Move by (x, y) pixels."""
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


def flip_matrix(width: int | float) -> Matrix:
    """Mirror left and right on a canvas of `width` pixels."""
    return np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]])


def whole_picture(size: Size, canvas: Size) -> tuple[Matrix, Size]:
    """The whole picture at the canvas' top left, shrunk if it is larger; and its size there."""
    new_size = scaled_size(size, fit_scale(size, canvas))
    return resize_matrix(size, new_size), new_size


def random_crop(
    rng: np.random.Generator,
    size: Size,
    canvas: Size,
    crop: Size,
    scales: tuple[float, float] = (1.0, 1.0),
    flip: bool = False,
) -> Matrix:
    """A crop of a picture that was scaled at random, and mirrored half of the time.

    The scale is uniform in `scales`, times the one at which the picture fits into `canvas`. Where
    the scaled picture is smaller than `crop`, it lies anywhere inside and the rest is padding.
    """
    new_size = scaled_size(size, fit_scale(size, canvas) * rng.uniform(*scales))
    room = np.subtract(crop, new_size)  # of the picture inside the crop; negative: it reaches out
    offset = rng.integers(np.minimum(room, 0), np.maximum(room, 0), endpoint=True)
    top, left = offset.tolist()
    matrix = shift_matrix(left, top) @ resize_matrix(size, new_size)
    return flip_matrix(crop[1]) @ matrix if flip and rng.random() < 0.5 else matrix


def elastic_field(
    rng: np.random.Generator, size: Size, points: int = 3, sigma: int | float = 10.0
) -> Field:
    """A smooth random deformation of a canvas of `size` (Ronneberger et al. 2015, section 3.1;
    Simard et al. 2003): displacements of standard deviation `sigma` pixels on a coarse grid of
    `points` by `points`, in the middle of equal tiles, and bicubic interpolation between them.

    Up to a `sigma` of about an eighth of a tile it is one-to-one; beyond, it folds here and there.
    """
    coarse = rng.normal(0, sigma, (points, points, 2)).astype(np.float32)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def warp(
    example: Example,
    matrix: Matrix,
    size: Size,
    keypoint_flip: tuple[int, ...] = (),
    field: Field | None = None,
) -> Example:
    """Everything in `example` moved by `matrix` onto a canvas of `size`.

    With a `field`, a pixel of the canvas shows what the matrix alone would have put where its
    displacement points to. Boxes then enclose their bent outlines.

    Images are interpolated, and smoothed where they shrink; labels and masks take the nearest
    pixel. Beyond the picture lie the mean colour and IGNORE. Objects that are left with less than a
    pixel's width or height are dropped, keypoints outside become absent. Where the matrix mirrors,
    keypoints are exchanged by the permutation `keypoint_flip` (left and right eye, …).
    """
    height, width = size
    moved = {"image": _warp_image(example["image"], matrix, size, field)}
    if "segmentation" in example:
        moved["segmentation"] = _warp_labels(example["segmentation"], matrix, size, IGNORE, field)
    if "boxes" in example:
        outlines = _outlines(example["boxes"], 1 if field is None else 32)
        outlines = _move(outlines, matrix, field)
        boxes = np.concatenate([outlines.min(1), outlines.max(1)], axis=1)
        boxes = boxes.clip(0, (width, height, width, height)).astype(np.float32)
        inside = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
        moved["boxes"] = boxes[inside]
        for name in ("labels", "crowd", "difficult"):
            if name in example:
                moved[name] = example[name][inside]
        if "masks" in example:
            masks = [
                _warp_labels(mask.astype(np.uint8), matrix, size, 0, field) > 0
                for mask in example["masks"][inside]
            ]
            moved["masks"] = np.stack(masks) if masks else np.zeros((0, height, width), bool)
        if "keypoints" in example:
            points = example["keypoints"][inside]
            mirrored = np.linalg.det(matrix[:2, :2]) < 0
            if mirrored and keypoint_flip:
                points = points[:, list(keypoint_flip)]
            moved["keypoints"] = _warp_keypoints(points, matrix, size, field)
    return moved


def jitter_color(
    image: UInt8[np.ndarray, "H W 3"],
    rng: np.random.Generator,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> UInt8[np.ndarray, "H W 3"]:
    """Random brightness, contrast and saturation by factors of 1 ± the given, and a turn of the hue
    by ± `hue` of the whole circle."""
    factor = {
        name: rng.uniform(max(0.0, 1 - amount), 1 + amount)
        for name, amount in dict(b=brightness, c=contrast, s=saturation).items()
    }
    turn = rng.uniform(-hue, hue)
    if brightness or contrast:
        mean = factor["b"] * image.mean()
        levels = factor["c"] * (factor["b"] * np.arange(256.0) - mean) + mean
        image = cv2.LUT(image, levels.clip(0, 255).round().astype(np.uint8))
    if saturation:
        gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        image = cv2.addWeighted(image, factor["s"], gray, 1 - factor["s"], 0)
    if hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        hsv[..., 0] += np.uint8(round(turn * 256) % 256)  # the circle is 256 levels: it wraps
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    return image


def normalize(image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 3"]:
    """uint8 colours to float32 of about mean 0 and deviation 1."""
    return (image * (1 / (255 * STD)) - MEAN / STD).astype(np.float32)


def add_border_weights(example: Example, w0: float, sigma: float) -> Example:
    """Add `pixel_weights`, U-Net's emphasis on the pixels between objects: those of `masks`, or
    else the connected pieces of all that is neither label 0 nor IGNORE."""
    if "masks" in example:
        objects = example["masks"]
    else:
        labels = example["segmentation"]
        foreground = (labels != 0) & (labels != IGNORE)
        objects = cv2.connectedComponents(foreground.astype(np.uint8))[1]
    return {**example, "pixel_weights": border_weights(objects, w0=w0, sigma=sigma)}


def pad_objects(example: Example, max_objects: int) -> Example:
    """Exactly `max_objects` rows for all that is counted in objects, and `object_mask`.

    Raises ValueError where there are more.
    """
    count = len(example["boxes"])
    if count > max_objects:
        raise ValueError(f"an image has {count} objects, data.max_objects is {max_objects}")
    padded = dict(example)
    for name in ("boxes", "labels", "crowd", "difficult", "masks", "keypoints"):
        if name in example:
            rows = [(0, max_objects - count)] + [(0, 0)] * (example[name].ndim - 1)
            padded[name] = np.pad(example[name], rows)
    padded["object_mask"] = np.arange(max_objects) < count
    return padded


def present_classes(example: Example, num_classes: int) -> Example:
    """Add `classes`, bool [K]: which labels its objects, or else its pixels, have."""
    labels = example["labels"] if "labels" in example else example["segmentation"]
    return {**example, "classes": np.isin(np.arange(num_classes), labels)}


def _outlines(boxes: np.ndarray, steps: int) -> np.ndarray:
    """[M 4·steps 2] points (x, y) around xyxy boxes [M 4], `steps` a side; 1: the corners."""
    x0, y0, x1, y1 = boxes.astype(np.float64).T
    along = np.linspace(0, 1, steps, endpoint=False)[:, None]
    across, down = along * (x1 - x0), along * (y1 - y0)  # [steps M]
    sides = [
        (x0 + across, y0 + 0 * along),
        (x1 + 0 * along, y0 + down),
        (x1 - across, y1 + 0 * along),
        (x0 + 0 * along, y1 - down),
    ]
    return np.concatenate([np.stack(side) for side in sides], axis=1).transpose(2, 1, 0)


def _move(points: np.ndarray, matrix: Matrix, field: Field | None = None) -> np.ndarray:
    """Points [… 2] by an affine matrix, and to where a warp by `field` shows them."""
    moved = points @ matrix[:2, :2].T + matrix[:2, 2]
    if field is None or not moved.size:
        return moved
    goal = found = moved.reshape(-1, 2)
    for _ in range(20):  # found + field(found) = goal, a fixed point that smooth fields soon reach
        found = goal - _look_up(field, found)
    return found.reshape(moved.shape)


def _look_up(field: Field, points: np.ndarray) -> np.ndarray:
    """A field at points [N 2] of the canvas; beyond, its value at the edge."""
    place = points[:, ::-1].T - 0.5
    channels = [map_coordinates(field[..., c], place, order=1, mode="nearest") for c in (0, 1)]
    return np.stack(channels, axis=-1)


def _warp_image(image: np.ndarray, matrix: Matrix, size: Size, field: Field | None) -> np.ndarray:
    scale = np.hypot(matrix[:2, 0], matrix[:2, 1]).max()
    if scale < 1:  # first average over the area of the new, larger pixels
        small = scaled_size(image.shape[:2], scale)
        matrix = matrix @ resize_matrix(small, image.shape[:2])
        image = cv2.resize(image, small[::-1], interpolation=cv2.INTER_AREA)
    fill = (MEAN * 255).round().tolist()
    return _sample(image, matrix, size, field, cv2.INTER_LINEAR, fill)


def _warp_labels(
    labels: np.ndarray, matrix: Matrix, size: Size, fill: int, field: Field | None
) -> np.ndarray:
    return _sample(labels, matrix, size, field, cv2.INTER_NEAREST, fill)


def _sample(
    image: np.ndarray, matrix: Matrix, size: Size, field: Field | None, flags: int, fill: Any
) -> np.ndarray:
    """The canvas: what `image` has where each of its pixels comes from."""
    # OpenCV has pixel centres at whole numbers.
    matrix = shift_matrix(-0.5, -0.5) @ matrix @ shift_matrix(0.5, 0.5)
    if field is not None:
        y, x = np.indices(size, np.float32)
        places = np.stack([x + field[..., 0], y + field[..., 1]], axis=-1)
        x, y = cv2.split(cv2.transform(places, np.linalg.inv(matrix)[:2]))
        return cv2.remap(image, x, y, flags, borderValue=fill)
    if np.array_equal(matrix, np.eye(3)) and image.shape[:2] == tuple(size):
        return image
    return cv2.warpAffine(image, matrix[:2], size[::-1], flags=flags, borderValue=fill)


def _warp_keypoints(
    points: np.ndarray, matrix: Matrix, size: Size, field: Field | None
) -> np.ndarray:
    xy = _move(points[..., :2].astype(np.float64), matrix, field)
    inside = ((xy >= 0) & (xy < (size[1], size[0]))).all(-1) & (points[..., 2] > 0)
    return np.concatenate([xy, points[..., 2:]], axis=-1, dtype=np.float32) * inside[..., None]
