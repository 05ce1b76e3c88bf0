"""Detected objects drawn into a picture. Numpy in, uint8 out, as in `viz.draw`.

    boxes      float [N 4]    xyxy in pixels of the picture
    masks      N of bool [H W]
    keypoints  float [N J 3]  x, y, visibility; 0 is not drawn
    colours    uint8 [N 3]

Sizes of lines and letters go with the picture's. What comes first lies below.
"""

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from jaxseg.viz.draw import Picture, font

Colours = UInt8[np.ndarray, "N 3"]

INK = (20, 20, 20)
LEFT, RIGHT, MIDDLE = (0, 190, 255), (255, 130, 0), (250, 250, 130)  # sides of a skeleton


def object_colours(count: int) -> UInt8[np.ndarray, "count 3"]:
    """Bright colours, of which those that follow each other are far apart."""
    golden = (5**0.5 - 1) / 2  # of the circle of hues
    colours = [
        colorsys.hsv_to_rgb((0.02 + n * golden) % 1, (0.95, 0.7)[n % 2], (1.0, 0.85)[n // 2 % 2])
        for n in range(count)
    ]
    return np.rint(np.array(colours).reshape(-1, 3) * 255).astype(np.uint8)


def draw_objects(
    picture: Picture,
    objects: Mapping[str, Any],
    classes: Sequence[str],
    *,
    masks: Iterable[Bool[np.ndarray, "H W"]] | None = None,
    keypoint_names: Sequence[str] = (),
    skeleton: Sequence[tuple[int, int]] = (),
) -> Picture:
    """All that is known of the objects: `boxes`, `labels`, and `scores` and `keypoints` where they
    are there, the best last and so on top. Objects with masks have a colour each, others that of
    their class."""
    labels, count = np.asarray(objects["labels"], int), len(objects["labels"])
    order = np.argsort(np.asarray(objects.get("scores", np.zeros(count))), kind="stable")
    if masks is not None:
        colours = object_colours(count)
        picture = draw_masks(picture, masks, colours)
    else:
        colours = object_colours(len(classes))[labels - 1]
    texts = [classes[label] for label in labels]
    if "scores" in objects:
        texts = [f"{t} {s:.2f}" for t, s in zip(texts, objects["scores"], strict=True)]
    boxes = np.asarray(objects["boxes"], float).reshape(-1, 4)
    picture = draw_boxes(picture, boxes[order], colours[order])
    if "keypoints" in objects:
        points = np.asarray(objects["keypoints"], float)[order]
        picture = draw_keypoints(picture, points, keypoint_names, skeleton)
    return write_texts(picture, boxes[order], colours[order], [texts[n] for n in order])


def draw_boxes(
    picture: Picture,
    boxes: Float[np.ndarray, "N 4"],
    colours: Colours,
    width: int | None = None,
) -> Picture:
    """Frames of `width` pixels inside the boxes."""
    drawn = picture.copy()
    line = line_width(picture) if width is None else width
    for (x0, y0, x1, y1), colour in zip(_corners(boxes, picture), colours, strict=True):
        if x1 > x0 and y1 > y0:
            inside = drawn[y0 + line : max(y1 - line, y0), x0 + line : max(x1 - line, x0)]
            within = inside.copy()
            drawn[y0:y1, x0:x1] = colour
            inside[:] = within
    return drawn


def draw_masks(
    picture: Picture,
    masks: Iterable[Bool[np.ndarray, "H W"]],
    colours: Colours,
    opacity: float = 0.45,
) -> Picture:
    """The picture tinted inside the masks, whose outermost pixels have the full colour."""
    drawn = picture.copy()
    reach = np.ones((2 * line_width(picture) + 1,) * 2, np.uint8)
    for mask, colour in zip(masks, colours, strict=True):
        tint = drawn[mask] + opacity * (colour.astype(float) - drawn[mask])
        drawn[mask] = np.rint(tint).astype(np.uint8)
        inner = cv2.erode(mask.astype(np.uint8), reach, borderValue=0)
        drawn[mask & (inner == 0)] = colour
    return drawn


def draw_keypoints(
    picture: Picture,
    keypoints: Float[np.ndarray, "N J 3"],
    names: Sequence[str] = (),
    skeleton: Sequence[tuple[int, int]] = (),
) -> Picture:
    """Dots, and lines between the pairs of joints in `skeleton`. By their names, those of the left
    are blue, of the right orange, others and what joins both sides yellow."""
    drawn, line = np.ascontiguousarray(picture).copy(), line_width(picture)
    sides = [("left" in name) - ("right" in name) for name in names] or [0] * keypoints.shape[1]
    colour = {1: LEFT, -1: RIGHT, 0: MIDDLE}
    # Each is drawn with a dark rim, so that it is seen on any ground.
    for points in keypoints:
        places, seen = _subpixels(points[:, :2]), points[:, 2] > 0
        for rim in (2, 0):
            for a, b in skeleton:
                if seen[a] and seen[b]:
                    of_sides = sides[a] + sides[b]
                    shade = INK if rim else colour[int(np.sign(of_sides))]
                    cv2.line(drawn, places[a], places[b], shade, line + rim, cv2.LINE_AA, BITS)
        for j in np.flatnonzero(seen):
            for radius, shade in ((line + 1.5, INK), (line + 0.5, colour[sides[j]])):
                size = round(radius * 2**BITS)
                cv2.circle(drawn, places[j], size, shade, cv2.FILLED, cv2.LINE_AA, BITS)
    return drawn


BITS = 4  # of OpenCV's coordinates behind the point


def _subpixels(points: np.ndarray) -> list[tuple[int, int]]:
    """As OpenCV wants them: pixel centres at whole numbers, in 16ths; far points brought near."""
    places = np.rint((points.clip(-1e4, 1e4) - 0.5) * 2**BITS).astype(int)
    return [(x, y) for x, y in places.tolist()]


def line_width(picture: Picture) -> int:
    """1 pixel for small pictures, 2 for those of about 480 pixels, 4 for a thousand."""
    return max(1, round(min(picture.shape[:2]) / 260))


def write_texts(
    picture: Picture, boxes: Float[np.ndarray, "N 4"], colours: Colours, texts: Sequence[str]
) -> Picture:
    """Each text on a plate of its colour: above its box where there is room, else inside. Boxes
    smaller than a letter have none, which would hide them."""
    height, width = picture.shape[:2]
    size = max(9, round(min(height, width) / 38))
    image, letters, tall = Image.fromarray(picture), font(size), size + size // 3
    draw = ImageDraw.Draw(image)
    for (x0, y0, x1, y1), colour, text in zip(
        _corners(boxes, picture), colours, texts, strict=True
    ):
        if max(x1 - x0, y1 - y0) < tall:
            continue
        wide = round(letters.getlength(text)) + size // 2
        x = int(np.clip(x0, 0, max(width - wide, 0)))
        y = int(y0 - tall if y0 >= tall else min(y0, max(height - tall, 0)))
        light = colour @ np.array([0.3, 0.6, 0.1]) > 130
        draw.rectangle((x, y, x + wide - 1, y + tall - 1), tuple(colour.tolist()))
        draw.text((x + wide / 2, y + tall / 2), text, INK if light else "white", letters, "mm")
    return np.array(image)


def _corners(boxes: np.ndarray, picture: Picture) -> np.ndarray:
    """int [N 4], whole pixels of the picture."""
    return np.rint(boxes).clip(0, np.array(picture.shape[1::-1] * 2)).astype(int)
