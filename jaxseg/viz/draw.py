"""Pictures of segmentations for people to look at. Numpy in, uint8 out, all on the host.

    picture       uint8 [H W 3]  RGB
    segmentation  int   [H W]    0 … K-1 and IGNORE
    palette       uint8 [K 3]    the colour of each class

No function here keeps state, opens a window or changes what it is given.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image, ImageDraw, ImageFont

from jaxseg.types import IGNORE

Picture = UInt8[np.ndarray, "H W 3"]
Palette = UInt8[np.ndarray, "K 3"]
Segmentation = Integer[np.ndarray, "H W"]
AnySize = UInt8[np.ndarray, "_ _ 3"]  # pictures that need not be of one size

WHITE, INK, GREY, RED = 255, (40, 40, 40), (150, 150, 150), (214, 39, 40)
_VOID = (224, 224, 192)  # VOC's own colour of label 255


# ---- colours


def default_palette(num_classes: int) -> Palette:
    """The colours of Pascal VOC: black, maroon, green, olive, navy …, all different up to 256.

    The label's bits 0, 1, 2 are the highest bits of red, green, blue; bits 3, 4, 5 the next; and so
    on. Raises ValueError beyond 256 classes.
    """
    if num_classes > 256:
        raise ValueError(f"the palette has 256 colours, not {num_classes}")
    labels = np.arange(num_classes)[:, None]
    colours = np.zeros((num_classes, 3), np.uint8)
    for level in range(3):
        bits = labels >> (3 * level + np.arange(3)) & 1
        colours |= (bits << (7 - level)).astype(np.uint8)
    return colours


def denormalize(
    image: Float[np.ndarray, "H W 3"],
    mean: Float[np.ndarray, "3"] | Sequence[float],
    std: Float[np.ndarray, "3"] | Sequence[float],
) -> Picture:
    """The picture that (picture / 255 - mean) / std was computed from, clipped to 0 … 255."""
    restored = (image * np.asarray(std) + np.asarray(mean)) * 255
    return np.clip(np.rint(restored), 0, 255).astype(np.uint8)


def colorize(segmentation: Segmentation, palette: Palette) -> Picture:
    """Each pixel in its class's colour; IGNORE as a light hatch, which no palette has.

    Raises ValueError for a label that is neither a class nor IGNORE.
    """
    _check(segmentation, palette)
    ignored = segmentation == IGNORE
    y, x = np.indices(segmentation.shape)
    hatch = np.where((x + y) % 6 < 2, 205, 240).astype(np.uint8)[..., None]
    return np.where(ignored[..., None], hatch, palette[np.where(ignored, 0, segmentation)])


# ---- pictures of one segmentation


def overlay(
    image: Picture,
    segmentation: Segmentation,
    palette: Palette,
    opacity: float = 0.5,
) -> Picture:
    """The image tinted by class, with a contour of full colour along each border.

    IGNORE is left untinted, and so are classes that the palette has black, such as VOC's
    background: they would only darken the image.
    Raises ValueError for a label that is neither a class nor IGNORE.
    """
    _check(segmentation, palette)
    colours = palette[np.where(segmentation == IGNORE, 0, segmentation)]
    tinted = (segmentation != IGNORE) & colours.any(axis=-1)
    blend = np.rint(image + opacity * (colours.astype(np.float64) - image)).astype(np.uint8)
    picture = np.where(tinted[..., None], blend, image)
    contours = tinted & _borders(segmentation)
    return np.where(contours[..., None], colours, picture)


def enlarge(picture: np.ndarray, height: int) -> np.ndarray:
    """Small pictures [h w …] or label maps made whole times larger, to at least `height` rows."""
    times = -(-height // picture.shape[0])
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def errors(predicted: Segmentation, labels: Segmentation) -> Picture:
    """Wrong pixels red on grey; pixels whose label is IGNORE are white."""
    picture = np.where((predicted != labels)[..., None], RED, GREY)
    return np.where((labels == IGNORE)[..., None], WHITE, picture).astype(np.uint8)


def _borders(segmentation: Segmentation) -> np.ndarray:
    """bool [H W]: pixels with another label to the left or right, above or below."""
    padded = np.pad(segmentation, 1, mode="edge")
    around = (padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1])
    return np.any([other != segmentation for other in around], axis=0)


def _check(segmentation: Segmentation, palette: Palette) -> None:
    labels = np.unique(segmentation)
    if len(unknown := labels[(labels != IGNORE) & ((labels < 0) | (labels >= len(palette)))]):
        raise ValueError(f"labels {unknown.tolist()} in a palette of {len(palette)} colours")


# ---- arrangements


def legend(classes: Sequence[str], palette: Palette, width: int = 480, size: int = 13) -> Picture:
    """A strip of the given width with a swatch and a name for each class, on one line or more.

    `size` is the height of the letters in pixels. Raises ValueError where names and colours differ
    in number.
    """
    if len(classes) != len(palette):
        raise ValueError(f"{len(classes)} names for {len(palette)} colours")
    letters, line, gap = font(size), 2 * size, size // 2
    x, y, places = gap, 0, []
    for name in classes:
        item = size + gap + round(letters.getlength(name))
        if places and x + item + gap > width:
            x, y = gap, y + line
        places.append((x, y + gap))
        x += item + 2 * gap
    picture = Image.new("RGB", (width, y + line), (WHITE,) * 3)
    draw = ImageDraw.Draw(picture)
    for name, colour, (x, y) in zip(classes, palette, places, strict=True):
        draw.rectangle((x, y, x + size, y + size), tuple(colour.tolist()), outline=INK)
        draw.text((x + size + gap, y + size // 2), name, INK, letters, anchor="lm")
    return np.array(picture)


def panel(
    rows: Sequence[Sequence[AnySize]], titles: Sequence[str] | None = None, margin: int = 6
) -> AnySize:
    """Pictures in rows and columns on white, each column titled if there are titles.

    A column is as wide as its widest picture and a row as high as its highest; smaller ones stand
    in the middle. Rows may be of different lengths. Raises ValueError for more titles than columns.
    """
    columns = max(map(len, rows))
    if titles is not None and len(titles) > columns:
        raise ValueError(f"{len(titles)} titles for {columns} columns")
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    widths = [max(row[k].shape[1] for row in rows if k < len(row)) for k in range(columns)]
    size = 14
    top = margin + (2 * size if titles else 0)
    lefts = margin + np.cumsum([0, *(width + margin for width in widths)])
    tops = top + np.cumsum([0, *(height + margin for height in heights)])
    canvas = np.full((tops[-1], lefts[-1], 3), WHITE, np.uint8)
    for row, y, height in zip(rows, tops[:-1], heights, strict=True):
        for picture, x, width in zip(row, lefts[:-1], widths, strict=False):
            h, w = picture.shape[:2]
            y0, x0 = y + (height - h) // 2, x + (width - w) // 2
            canvas[y0 : y0 + h, x0 : x0 + w] = picture
    if not titles:
        return canvas
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for title, x, width in zip(titles, lefts[:-1], widths, strict=False):
        draw.text((x + width / 2, top / 2), title, INK, font(size), anchor="mm")
    return np.array(image)


def confusion_picture(matrix: Integer[np.ndarray, "K K"], classes: Sequence[str]) -> Picture:
    """The confusion matrix as a heat map: row i says in percent what class i was taken for.

    Cells under half a percent stay empty, and so do the rows of classes that do not occur. Raises
    ValueError where there are not K names.
    """
    if len(classes) != len(matrix):
        raise ValueError(f"{len(classes)} names for a matrix of {len(matrix)} classes")
    pixels = matrix.sum(axis=1, keepdims=True)
    percents = 100 * matrix / np.maximum(pixels, 1)
    side = 2.2 + 0.38 * len(classes)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(side, side), dpi=100, layout=layout)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(percents, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    axes.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.88", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    for (row, column), percent in np.ndenumerate(percents):
        if percent >= 0.5:
            colour = "white" if percent > 55 else "0.15"
            axes.text(column, row, f"{percent:.0f}", ha="center", va="center", color=colour, size=9)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def precision_recall_picture(
    curves: Float[np.ndarray, "R K"], classes: Sequence[str], title: str = ""
) -> Picture:
    """Precision over recall, 0 … 1 in equal steps: a line a class, thick and black their mean.

    Classes whose precision is nan, since there is no object of them, are left out. With more than
    twenty, the lines have no names. Raises ValueError where there are not K names.
    """
    if len(classes) != curves.shape[1]:
        raise ValueError(f"{len(classes)} names for curves of {curves.shape[1]} classes")
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(6.4, 5.2), dpi=100, layout=layout)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    recall = np.linspace(0, 1, len(curves))
    known = [k for k in range(len(classes)) if np.isfinite(curves[:, k]).all()]
    few = len(known) <= 20
    colours = matplotlib.colormaps["tab20"]
    for n, k in enumerate(known):
        name = f"{classes[k]} {100 * curves[:, k].mean():.1f}" if few else None
        width = 1.4 if few else 0.6
        axes.plot(recall, curves[:, k], color=colours(n % 20), linewidth=width, label=name)
    if len(known) > 1:
        mean = curves[:, known].mean(axis=1)
        axes.plot(recall, mean, color="0.1", linewidth=2.6, label=f"mean {100 * mean.mean():.1f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=title)
    axes.grid(color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if known:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def lost_picture(
    lost: Float[np.ndarray, "E K"], errors: Sequence[str], classes: Sequence[str]
) -> Picture:
    """Bars for what each kind of error costs, 0 … 1, in percent of the mean over classes; each
    class adds its part, of a colour of its own up to twenty classes.

    nan, of classes without an object, is left out. Raises ValueError where names and numbers do not
    go together.
    """
    if lost.shape != (len(errors), len(classes)):
        raise ValueError(f"{len(errors)} errors and {len(classes)} classes for {lost.shape}")
    known = [k for k in range(len(classes)) if np.isfinite(lost[:, k]).all()]
    parts = 100 * lost[:, known] / max(len(known), 1)
    figure = Figure(
        figsize=(6.4, 1.2 + 0.34 * len(errors)),
        dpi=100,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
    )
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places, few = np.arange(len(errors)), 1 < len(known) <= 20
    ends = np.zeros(len(errors))
    for n, k in enumerate(known):
        colour = matplotlib.colormaps["tab20"](n) if few else "tab:blue"
        widths = parts[:, n].clip(min=0)  # recalls in steps may make it negative by a hair
        axes.barh(places, widths, left=ends, color=colour, label=classes[k] if few else None)
        ends += widths
    for place, end, total in zip(
        places.tolist(), ends.tolist(), parts.sum(axis=1).tolist(), strict=True
    ):
        axes.text(end, place, f" {total:.1f}", va="center", size=9)
    axes.set_yticks(places, [name.replace("_", " ") for name in errors])
    axes.set(xlabel="AP50 lost, %", xlim=(0, max(1.15 * ends.max(initial=0), 1)))
    axes.invert_yaxis()
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if few:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has the accents of class names."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


# ---- files


def write_png(path: str | Path, picture: Picture) -> None:
    """Write an RGB PNG; whoever opens `path` finds the old file or the whole new one."""
    _write(Path(path), Image.fromarray(picture))


def write_indexed_png(path: str | Path, segmentation: Segmentation, palette: Palette) -> None:
    """Write a palette PNG as Pascal VOC's are: pixel values are labels, IGNORE is 255.

    Raises ValueError for a label that is neither a class nor IGNORE.
    """
    _check(segmentation, palette)
    colours = np.zeros((256, 3), np.uint8)
    colours[IGNORE] = _VOID
    colours[: len(palette)] = palette
    image = Image.fromarray(segmentation.astype(np.uint8), mode="L")
    image.putpalette(colours.tobytes())
    _write(Path(path), image)


def _write(path: Path, image: Image.Image) -> None:
    # Beside the target, since a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        image.save(temporary, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
