"""What happens to an example between disk and batch: geometry, colour, normalisation, padding.
`collage` makes one picture of several.

An example is a dict of numpy arrays, as `builders.prepare` gives it:

    image         uint8 [H W 3]
    segmentation  uint8 [H W], IGNORE where unknown
    boxes         float32 [M 4] xyxy, labels int32 [M], crowd and difficult bool [M],
    area          float32 [M] square pixels,
    masks         bool [M H W], keypoints float32 [M J 3]

Geometry is a 3×3 matrix that takes points (x, y, 1) of the picture, in pixels with centres at +0.5,
to points of the canvas. `warp` moves everything that an example holds by one such matrix, and may
bend the canvas by a field of displacements on the way: pictures are interpolated once.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Integer, UInt8
from scipy.ndimage import map_coordinates

from jaxseg.ops.border import border_weights
from jaxseg.types import IGNORE, MEAN, PADDING, STD

Example = dict[str, Any]
Matrix = Float[np.ndarray, "3 3"]
Field = Float32[np.ndarray, "H W 2"]  # a displacement (x, y) in pixels for each of the canvas
Size = tuple[int, int]  # height, width in pixels
# (shorter, longer side) of a detector's pictures; (): as is; or to the whole canvas, as SSD's
Resize = tuple[int, int] | tuple[()] | Literal["stretch"]

OBJECTS = ("boxes", "labels", "crowd", "difficult", "area", "masks", "keypoints")  # a row each


def fit_scale(size: Size, canvas: Size, resize: Resize = ()) -> float:
    """The factor by which a picture fits into the canvas; never above 1.

    With a pair as `resize`, never above the factor at which the shorter side has resize[0] pixels,
    or the longer resize[1], whichever is less (Ren et al. 2015, "Faster R-CNN", section 3.3).
    """
    most = 1.0
    if resize and resize != "stretch":
        most = min(resize[0] / min(size), resize[1] / max(size))
    return min(most, canvas[0] / size[0], canvas[1] / size[1])


def choose_bucket(size: Size, buckets: Sequence[Size], resize: Resize = ()) -> int:
    """Which of several canvases has the least padding around a picture of `size`, or, where none
    holds it, lets it shrink least."""

    def badness(bucket: Size) -> tuple[float, int]:
        return -fit_scale(size, bucket, resize), bucket[0] * bucket[1]

    return min(range(len(buckets)), key=lambda i: badness(buckets[i]))


def group_by_bucket(
    sizes: Integer[np.ndarray, "N 2"], buckets: Sequence[Size], resize: Resize = ()
) -> list[Integer[np.ndarray, "_"]]:
    """For each of the buckets, the positions of the pictures, of `sizes`, that go there."""
    different, which = np.unique(sizes, axis=0, return_inverse=True)
    chosen = np.array([choose_bucket((h, w), buckets, resize) for h, w in different.tolist()])
    return [np.flatnonzero(chosen[which.ravel()] == i) for i in range(len(buckets))]


def scaled_size(size: Size, scale: float, resize: Resize = ()) -> Size:
    """Size in whole pixels after scaling. With `resize` what is left of a pixel is cut off, as
    torchvision's detectors do."""
    whole = math.floor if resize else round
    return max(whole(size[0] * scale), 1), max(whole(size[1] * scale), 1)


def covering_size(size: Size, part: Size) -> Size:
    """Size of the picture that just covers `part`, with the aspect ratio of `size`."""
    scale = max(part[0] / size[0], part[1] / size[1])
    return math.ceil(size[0] * scale - 1e-6), math.ceil(size[1] * scale - 1e-6)


def resize_matrix(size: Size, new_size: Size) -> Matrix:
    """Stretch `size` to `new_size`."""
    return np.diag([new_size[1] / size[1], new_size[0] / size[0], 1.0])


def shift_matrix(x: int | float, y: int | float) -> Matrix:
    """Move by (x, y) pixels."""
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


def flip_matrix(width: int | float) -> Matrix:
    """Mirror left and right on a canvas of `width` pixels."""
    return np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]])


def turn_matrix(height: int | float) -> Matrix:
    """Turn a canvas of `height` pixels clockwise by 90°."""
    return np.array([[0.0, -1, height], [1, 0, 0], [0, 0, 1]])


def upend_matrix(height: int | float) -> Matrix:
    """Mirror top and bottom on a canvas of `height` pixels."""
    return np.array([[1.0, 0, 0], [0, -1, height], [0, 0, 1]])


def whole_picture(size: Size, canvas: Size, resize: Resize = ()) -> tuple[Matrix, Size]:
    """The whole picture at the canvas' top left, by `fit_scale` or stretched; its size there."""
    if resize == "stretch":
        return resize_matrix(size, canvas), canvas
    new_size = scaled_size(size, fit_scale(size, canvas, resize), resize)
    return resize_matrix(size, new_size), new_size


def picture_on_canvas(
    image: UInt8[np.ndarray, "h w 3"], canvas: Size, resize: Resize = ()
) -> tuple[Float32[np.ndarray, "H W 3"], Size]:
    """The whole picture, normalised, as evaluation and prediction see it; and its size there.

    With `resize` its pixels are those of torchvision's detectors: interpolated between the nearest
    four, in floats, however much it shrinks.
    """
    matrix, size = whole_picture(image.shape[:2], canvas, resize)
    if not resize:
        return normalize(warp({"image": image}, matrix, canvas)["image"]), size
    picture = np.empty((*canvas, 3), np.float32)
    picture[:] = normalize(PADDING[None, None].astype(np.uint8))
    picture[: size[0], : size[1]] = cv2.resize(normalize(image), size[::-1])
    return picture, size


def random_turn(
    rng: np.random.Generator, size: Size, *, vertical_flip: bool = False, rotate: bool = False
) -> tuple[Matrix, Size]:
    """A turn by 0, 90, 180 or 270°, and top and bottom exchanged half of the time; for pictures
    without up and down, as a microscope's. And the size afterwards."""
    matrix, (height, width) = np.eye(3), size
    for _ in range(rng.integers(4) if rotate else 0):
        matrix = turn_matrix(height) @ matrix
        height, width = width, height
    if vertical_flip and rng.random() < 0.5:
        matrix = upend_matrix(height) @ matrix
    return matrix, (height, width)


def random_crop(
    rng: np.random.Generator,
    size: Size,
    canvas: Size,
    crop: Size,
    scales: tuple[float, float] = (1.0, 1.0),
    flip: bool = False,
    resize: Resize = (),
    anywhere: bool = True,
) -> Matrix:
    """A crop of a picture that was scaled at random, and mirrored half of the time.

    The scale is uniform in `scales`, times `fit_scale` on `canvas`, or times what stretches it to
    the canvas. Where the scaled picture is smaller than `crop`, it lies anywhere inside, or at the
    top left, and the rest is padding.
    """
    scale = rng.uniform(*scales)
    if resize == "stretch":
        new_size = scaled_size(canvas, scale)
    else:
        new_size = scaled_size(size, fit_scale(size, canvas, resize) * scale, resize)
    room = np.subtract(crop, new_size)  # of the picture inside the crop; negative: it reaches out
    low, high = np.minimum(room, 0), np.maximum(room, 0) * anywhere
    top, left = rng.integers(low, high, endpoint=True).tolist()
    matrix = resize_matrix(size, new_size)
    if flip and rng.random() < 0.5:
        matrix = flip_matrix(new_size[1]) @ matrix
        left = int(low[1] + high[1]) - left
    return shift_matrix(left, top) @ matrix


def reach(matrix: Matrix, size: Size, canvas: Size) -> Size:
    """(height, width) of the canvas' part from its top left to the end of a picture of `size` that
    the matrix puts there: below and right of it is padding."""
    corners = _move(_outlines(np.array([[0, 0, size[1], size[0]]]), 1), matrix)
    width, height = np.ceil(corners[0].max(0) - 1e-6).astype(int).clip(1, canvas[::-1]).tolist()
    return height, width


def crop_around_objects(
    rng: np.random.Generator,
    example: Example,
    overlaps: Sequence[float],
    expand: float = 1.0,
    tries: int = 50,
) -> Example:
    """A part of the picture in which objects remain (Liu et al. 2016, "SSD", section 2.2).

    Its sides are 0.3 to 1 of the picture's, its aspect ratio ½ to 2. It overlaps one of the objects
    with at least the IoU that is drawn from `overlaps`, of which 1 stands for the whole picture,
    and has the centre of an object. Objects whose centre is outside are dropped. Without objects,
    or where none of the `tries` is such a part, the example is left as it is.

    expand: by so much larger than the picture is what the part is taken of; in it the picture lies
        anywhere, and around it is padding.
    """
    overlap = rng.choice(overlaps)
    objects = example["boxes"][~is_crowd(example)]
    if overlap >= 1 or not len(objects):
        return example
    size = np.array(example["image"].shape[:2])
    whole = np.rint(expand * size).astype(int)
    corner = rng.integers(0, whole - size + 1)  # of the picture
    for _ in range(tries):
        sides = np.rint(rng.uniform(0.3, 1, 2) * whole).astype(int)
        height, width = sides.tolist()
        top, left = (rng.integers(0, whole - sides + 1) - corner).tolist()
        part = np.array([[left, top, left + width, top + height]], np.float32)
        if not 0.5 <= width / max(height, 1) <= 2 or not _centres_inside(objects, part).any():
            continue
        common = [np.maximum(objects, part)[:, :2], np.minimum(objects, part)[:, 2:]]
        shared = _areas(np.concatenate(common, axis=1))
        if (shared / (_areas(objects) + _areas(part) - shared)).max() >= overlap:
            kept = _centres_inside(example["boxes"], part) | is_crowd(example)
            return warp(select_objects(example, kept), shift_matrix(-left, -top), (height, width))
    return example


def select_objects(example: Example, kept: Bool[np.ndarray, "M"]) -> Example:
    """The example with some of its objects."""
    return {n: value[kept] if n in OBJECTS else value for n, value in example.items()}


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
    *,
    smooth: bool = True,
    min_visible: float = 0.0,
) -> Example:
    """Everything in `example` moved by `matrix` onto a canvas of `size`.

    With a `field`, a pixel of the canvas shows what the matrix alone would have put where its
    displacement points to. Boxes then enclose their bent outlines.

    Images are interpolated, and smoothed where they shrink unless `smooth` is False; labels and
    masks take the nearest pixel. Beyond the picture lie the mean colour and IGNORE. Objects are
    dropped that are left with less than a pixel's width or height, with no pixel of their mask, or,
    but for crowds, with less than `min_visible` of their pixels (without masks: of their box).
    Areas shrink likewise. Keypoints outside become absent. Where the matrix mirrors, keypoints are
    exchanged by the permutation `keypoint_flip` (left and right eye, …).
    """
    moved = {}
    if "image" in example:
        moved["image"] = _warp_image(example["image"], matrix, size, field, smooth)
    if "segmentation" in example:
        moved["segmentation"] = _warp_labels(example["segmentation"], matrix, size, IGNORE, field)
    if "boxes" not in example:
        return moved
    outlines = _move(_outlines(example["boxes"], 1 if field is None else 32), matrix, field)
    whole = np.concatenate([outlines.min(1), outlines.max(1)], axis=1)
    boxes = whole.clip(0, (size[1], size[0], size[1], size[0]))
    inside = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
    objects = {n: example[n][inside] for n in OBJECTS if n in example}
    objects["boxes"] = boxes[inside].astype(np.float32)
    share = _areas(boxes[inside]) / _areas(whole[inside])  # exactly 1 where nothing is cut
    determinant = np.linalg.det(matrix[:2, :2])
    kept = np.full(len(share), True)
    if "masks" in example:
        before = objects["masks"]
        masks = [_warp_labels(m.astype(np.uint8), matrix, size, 0, field) > 0 for m in before]
        objects["masks"] = np.stack(masks) if masks else np.zeros((0, *size), bool)
        seen, all_of_it = count_pixels(objects["masks"]), count_pixels(before)
        kept = (seen > 0) | (all_of_it == 0)
        by_pixels = (seen / np.maximum(all_of_it * abs(determinant), 1)).clip(0, 1)
        share = np.where((share < 1) & (all_of_it > 0), by_pixels, share)
    if "area" in example:
        area = objects["area"] * abs(determinant) * share
        objects["area"] = area.astype(np.float32)
    if "keypoints" in example:
        points = objects["keypoints"]
        if determinant < 0 and keypoint_flip:
            points = points[:, list(keypoint_flip)]
        objects["keypoints"] = _warp_keypoints(points, matrix, size, field)
    kept &= (share >= min_visible) | is_crowd(objects)
    return {**moved, **select_objects(objects, kept)}


def is_crowd(example: Example) -> Bool[np.ndarray, "M"]:
    """Which of its objects are regions of many; none, where the set knows of no crowds."""
    return example.get("crowd", np.zeros(len(example["boxes"]), bool))


def count_pixels(masks: Bool[np.ndarray, "M H W"]) -> Integer[np.ndarray, "M"]:
    """Of each mask."""
    return np.array([np.count_nonzero(mask) for mask in masks], int)


def jitter_color(
    image: UInt8[np.ndarray, "H W 3"],
    rng: np.random.Generator,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    color_probability: float = 1.0,
    channel_shuffle: float = 0.0,
) -> UInt8[np.ndarray, "H W 3"]:
    """Random brightness, contrast and saturation by factors of 1 ± the given, and a turn of the hue
    by ± `hue` of the whole circle.

    color_probability: of each of the four by itself. Where it is below 1, the contrast is changed
        before saturation and hue or after them, each half of the time, as in SSD's photo-metric
        distortions (Liu et al. 2016, section 2.2).
    channel_shuffle: the probability that red, green and blue are exchanged at random, at last.
    """
    amounts = brightness, contrast, saturation
    factors = [rng.uniform(max(0.0, 1 - amount), 1 + amount) for amount in amounts]
    turn, is_wanted, contrast_last = rng.uniform(-hue, hue), np.full(4, True), False
    if color_probability < 1:
        is_wanted, contrast_last = rng.random(4) < color_probability, rng.random() < 0.5
    bright, contrasted, saturated = np.where(is_wanted[:3], factors, 1.0)
    image = _relevel(image, bright, 1.0 if contrast_last else contrasted)
    if saturation:
        gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        image = cv2.addWeighted(image, saturated, gray, 1 - saturated, 0)
    if hue and is_wanted[3]:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        hsv[..., 0] += np.uint8(round(turn * 256) % 256)  # the circle is 256 levels: it wraps
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    if contrast_last:
        image = _relevel(image, 1.0, contrasted)
    if channel_shuffle and rng.random() < channel_shuffle:
        image = image.take(rng.permutation(3), axis=-1)
    return image


def _relevel(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Levels times `brightness`, then their distance from the mean times `contrast`."""
    if brightness == contrast == 1:
        return image
    mean = brightness * image.mean()
    levels = contrast * (brightness * np.arange(256.0) - mean) + mean
    return cv2.LUT(image, levels.clip(0, 255).round().astype(np.uint8))


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


def pad_objects(example: Example, max_objects: int, name: str = "an image") -> Example:
    """Exactly `max_objects` rows for all that is counted in objects, and `object_mask`.

    Raises ValueError, with the image's name, where there are more.
    """
    count = len(example["boxes"])
    if count > max_objects:
        raise ValueError(f"{name} has {count} objects, data.max_objects is {max_objects}")
    padded = dict(example)
    for field in OBJECTS:
        if field in example:
            rows = [(0, max_objects - count)] + [(0, 0)] * (example[field].ndim - 1)
            padded[field] = np.pad(example[field], rows)
    padded["object_mask"] = np.arange(max_objects) < count
    return padded


def present_classes(example: Example, num_classes: int) -> Example:
    """Add `classes`, bool [K]: which labels its objects, or else its pixels, have."""
    labels = example["labels"] if "labels" in example else example["segmentation"]
    return {**example, "classes": np.isin(np.arange(num_classes), labels)}


def _areas(boxes: np.ndarray) -> np.ndarray:
    """Of boxes [… 4]; 0 where they are inverted."""
    return (boxes[..., 2:] - boxes[..., :2]).clip(0).prod(-1)


def _centres_inside(boxes: np.ndarray, part: np.ndarray) -> np.ndarray:
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.all((centres >= part[:, :2]) & (centres < part[:, 2:]), axis=1)


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


def _warp_image(
    image: np.ndarray, matrix: Matrix, size: Size, field: Field | None, smooth: bool
) -> np.ndarray:
    scale = np.hypot(matrix[:2, 0], matrix[:2, 1]).max()
    if scale < 1 and smooth:  # first average over the area of the new, larger pixels
        small = scaled_size(image.shape[:2], scale)
        matrix = matrix @ resize_matrix(small, image.shape[:2])
        image = cv2.resize(image, small[::-1], interpolation=cv2.INTER_AREA)
    # What is beyond comes last, so that nothing of it is mixed into the picture's border.
    canvas = _sample(image, matrix, size, field, cv2.INTER_LINEAR, None)
    inside = _warp_labels(np.ones(image.shape[:2], np.uint8), matrix, size, 0, field)
    if inside.all():
        return canvas
    return cv2.copyTo(canvas, inside, np.full((*size, 3), PADDING, np.uint8))


def _warp_labels(
    labels: np.ndarray, matrix: Matrix, size: Size, fill: int, field: Field | None
) -> np.ndarray:
    return _sample(labels, matrix, size, field, cv2.INTER_NEAREST, fill)


def _sample(
    image: np.ndarray, matrix: Matrix, size: Size, field: Field | None, flags: int, fill: int | None
) -> np.ndarray:
    """The canvas: what `image` has where each of its pixels comes from. Beyond the image is `fill`,
    or with None what the nearest pixel of the image has."""
    border = cv2.BORDER_REPLICATE if fill is None else cv2.BORDER_CONSTANT
    # OpenCV has pixel centres at whole numbers.
    matrix = shift_matrix(-0.5, -0.5) @ matrix @ shift_matrix(0.5, 0.5)
    if field is not None:
        y, x = np.indices(size, np.float32)
        places = np.stack([x + field[..., 0], y + field[..., 1]], axis=-1)
        x, y = cv2.split(cv2.transform(places, np.linalg.inv(matrix)[:2]))
        return cv2.remap(image, x, y, flags, borderMode=border, borderValue=fill or 0)
    if np.array_equal(matrix, np.eye(3)) and image.shape[:2] == tuple(size):
        return image
    return cv2.warpAffine(
        image, matrix[:2], size[::-1], flags=flags, borderMode=border, borderValue=fill or 0
    )


def _warp_keypoints(
    points: np.ndarray, matrix: Matrix, size: Size, field: Field | None
) -> np.ndarray:
    xy = _move(points[..., :2].astype(np.float64), matrix, field)
    inside = ((xy >= 0) & (xy <= (size[1], size[0]))).all(-1) & (points[..., 2] > 0)
    return np.concatenate([xy, points[..., 2:]], axis=-1, dtype=np.float32) * inside[..., None]
