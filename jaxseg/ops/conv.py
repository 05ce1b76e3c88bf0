"""Convolutions and pooling with explicit, symmetric padding, as the published networks have them.

x is [B H W C], kernels are [kh kw C F]; stride, padding and dilation are in pixels and the same in
both directions. Nothing here is "SAME": for a stride of 2 that would pad left and right unequally.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from jaxseg.types import Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv2d(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "kh kw C F"],
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Float[Array, "B H2 W2 F"]:
    """Convolution; dilation r takes every r-th pixel, y[i] = Σ_k x[i + r·k] w[k]."""
    if kernel.shape[:2] == (1, 1) and padding == 0:
        # A matrix product: its weight gradient is several times faster on CPU.
        return _product(x[:, ::stride, ::stride], kernel[0, 0])
    if kernel.shape[:2] == x.shape[1:3] and padding == 0 and dilation == 1:
        # It covers the map: a dense layer.
        return (x.reshape(x.shape[0], -1) @ kernel.reshape(-1, kernel.shape[3]))[:, None, None]
    if dilation == 1 and _is_small(x, kernel, stride, padding):
        return _product_conv(x, kernel, stride, padding)
    if stride == 1 and dilation > 1 and 6 * dilation >= min(x.shape[1:3]):
        return _sparse_conv(x, kernel, padding, dilation)
    return _conv(x, kernel, stride, padding, dilation)


def _product(x: Array, matrix: Array) -> Array:
    """x @ matrix of pixels [B H W C], in one row: a product that sums over several axes, as its
    weight gradient would, is several times slower on CPU."""
    y = lax.collapse(x, 0, -1) @ matrix
    return y.reshape(*x.shape[:-1], matrix.shape[1])


def _is_small(x: Array, kernel: Array, stride: int, padding: int) -> bool:
    """Whether a map, or what the convolution makes of it, is smaller than the kernel. On CPU the
    compiler's convolution is then 20 to 100 times slower than a product of matrices, or its
    gradient is."""
    sizes = zip(x.shape[1:3], kernel.shape[:2], strict=True)
    return any(min(n, (n + 2 * padding - k) // stride + 1) < k for n, k in sizes)


def _product_conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """A convolution as a product of matrices: what is seen at each place, times the kernel."""

    def gather(x: Array, axis: int, size: int) -> Array:
        count = _count(x.shape[axis], size, stride)
        starts = range(size)
        parts = [lax.slice_in_dim(x, i, i + stride * (count - 1) + 1, stride, axis) for i in starts]
        return jnp.concatenate(parts, axis=-1)

    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    seen = gather(gather(x, 2, kernel.shape[1]), 1, kernel.shape[0])
    return _product(seen, kernel.reshape(-1, kernel.shape[3]))


def _sparse_conv(x: Array, kernel: Array, padding: int, dilation: int) -> Array:
    """A convolution so dilated that most of what it sees is margin: each of the kernel's matrices
    is multiplied with the part of the map that it meets, and only that."""
    heights, widths = (
        [_met(n, k, i * dilation, padding, dilation) for i in range(k)]
        for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)
    )

    def tap(i: int, j: int) -> Array:
        (rows, above, below), (columns, left, right) = heights[i], widths[j]
        y = _product(x[:, rows, columns], kernel[i, j])
        return jnp.pad(y, ((0, 0), (above, below), (left, right), (0, 0)))

    return reduce(jnp.add, itertools.starmap(tap, np.ndindex(*kernel.shape[:2])))


def _met(size: int, taps: int, offset: int, padding: int, dilation: int) -> tuple[slice, int, int]:
    """Where along an axis a tap meets the map: the part of the map, and what remains of the result
    before and after it."""
    count = _count(size + 2 * padding, dilation * (taps - 1) + 1, 1)
    first = min(max(padding - offset, 0), count)
    last = max(min(size + padding - offset, count), first)
    return slice(first + offset - padding, last + offset - padding), first, count - last


def _general_conv(
    x: Array, kernel: Array, stride: int, padding: int | tuple[int, int], dilation: int
) -> Array:
    vertical, horizontal = (padding, padding) if isinstance(padding, int) else padding
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((vertical, vertical), (horizontal, horizontal)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_LAYOUT,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x: Array, kernel: Array, stride: int, padding: int, dilation: int) -> Array:
    """A convolution with a weight gradient of its own on CPU, where the compiler's has a third to a
    half of the speed of the convolution itself."""
    return _general_conv(x, kernel, stride, padding, dilation)


def _conv_forward(x: Array, kernel: Array, stride: int, padding: int, dilation: int):
    return _general_conv(x, kernel, stride, padding, dilation), (x, kernel)


def _conv_backward(stride: int, padding: int, dilation: int, saved: tuple[Array, Array], g: Array):
    def conv(x: Array, kernel: Array) -> Array:
        return _general_conv(x, kernel, stride, padding, dilation)

    def of_compiler(x: Array, g: Array) -> Array:
        return jax.vjp(partial(conv, x), kernel)[1](g)[0]

    def by_transposing(x: Array, g: Array) -> Array:
        """As the compiler does it, written so that it finds its fast convolution in a loop, too."""
        dw = lax.conv_general_dilated(
            x.transpose(3, 1, 2, 0),
            g.transpose(1, 2, 0, 3),
            window_strides=(dilation, dilation),
            padding=((padding, padding), (padding, padding)),
            dimension_numbers=_LAYOUT,
        )
        return dw.transpose(1, 2, 0, 3)

    def by_blocks(x: Array, g: Array) -> Array:
        return _weight_gradient(x, g, kernel, stride, padding, dilation)

    x, kernel = saved
    if stride == 1:
        # The compiler's own has the kernel's axes in another order, and is 10 times slower in a
        # loop.
        mirrored = kernel[::-1, ::-1].swapaxes(2, 3)
        margins = [(k - 1) * dilation - padding for k in kernel.shape[:2]]
        dx = _general_conv(g, mirrored, 1, (margins[0], margins[1]), dilation)
    else:
        dx = jax.vjp(lambda x: conv(x, kernel), x)[1](g)[0]
    few_channels = kernel.size < 4096
    if stride == 1 and _is_low(g) and (few_channels or g.size // g.shape[3] < 4 * _PLACES):
        dw = lax.platform_dependent(x, g, cpu=by_transposing, default=of_compiler)
    elif few_channels:  # the compiler's is as fast
        dw = of_compiler(x, g)
    else:
        dw = lax.platform_dependent(x, g, cpu=by_blocks, default=of_compiler)
    return dx, dw


_conv.defvjp(_conv_forward, _conv_backward)
# A block in `_weight_gradient`: rows, or images of so many pixels together, as stay in the
# processor's cache.
_ROWS, _PLACES = 4, 1024


def _is_low(x: Array) -> bool:
    """Whether a map is too low to be cut into rows."""
    return x.shape[1] < 4 * _ROWS


def _weight_gradient(
    x: Array, g: Array, kernel: Array, stride: int, padding: int, dilation: int
) -> Array:
    """dw[i, j] = Σ x[s·y + r·i, s·x + r·j] g[y, x], s the stride, r the dilation, x padded. A few
    rows at a time, or a few images where they are low, the shifted copies of the narrower of x and
    g (of x for a stride) are gathered, and multiplied with the other."""
    kh, kw, inputs, outputs = kernel.shape
    reach = [(k - 1) * dilation for k in (kh, kw)]
    shifts = list(itertools.product(*(range(0, r + 1, dilation) for r in reach)))
    gathers_x = stride > 1 or inputs <= outputs or padding > min(reach)
    if gathers_x:
        gathered, other, margins = x, g, [padding, padding]
    else:  # Σ x[y] g[y + padding − r·i]
        gathered, other, margins = g, x, [r - padding for r in reach]
        shifts = shifts[::-1]
    batch, height, width = other.shape[:3]
    images, count = batch, _ROWS
    if _is_low(g):
        most = max(_PLACES // (height * width), 1)
        images, count = next(n for n in range(most, 0, -1) if batch % n == 0), height
    blocks = -(-height // count)
    filling = blocks * count - height
    other = jnp.pad(other, ((0, 0), (0, filling), (0, 0), (0, 0)))
    (top, left), below = margins, margins[0] + filling * stride
    gathered = jnp.pad(gathered, ((0, 0), (top, below), (left, left), (0, 0)))
    columns = stride * (width - 1) + 1

    def rows(array: Array, block: Array, first: int, stride: int) -> Array:
        start = block // blocks * images, block % blocks * count * stride + first, 0, 0
        some = lax.dynamic_slice(array, start, (images, stride * (count - 1) + 1, *array.shape[2:]))
        return some[:, ::stride]

    def add_block(total: Array, block: Array) -> tuple[Array, None]:
        shifted = [
            rows(gathered, block, i, stride)[:, :, j : j + columns : stride] for i, j in shifts
        ]
        products = jnp.einsum(
            "byxk,byxw->kw",
            jnp.concatenate(shifted, axis=-1),
            rows(other, block, 0, 1),
            preferred_element_type=jnp.float32,
        )
        return total + products, None

    shape = len(shifts) * gathered.shape[-1], other.shape[-1]
    total, _ = lax.scan(
        add_block, jnp.zeros(shape, jnp.float32), jnp.arange(batch // images * blocks)
    )
    total = total.reshape(kh, kw, gathered.shape[-1], other.shape[-1])
    return (total if gathers_x else total.transpose(0, 1, 3, 2)).astype(kernel.dtype)


def depthwise_conv2d(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "kh kw 1 C"],
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Float[Array, "B H2 W2 C"]:
    """Convolution of every channel with a kernel of its own.

    A sum of shifted copies, which the compiler makes one pass of: on CPU 20 to 60 times faster than
    its grouped convolution.
    """
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return _depthwise(x, kernel, stride, dilation)


def _sum_of_taps(x: Array, kernel: Array, stride: int, dilation: int) -> Array:
    taps = _windows(x, kernel.shape[:2], stride, dilation)
    weights = kernel.reshape(-1, 1, 1, 1, kernel.shape[3])
    return reduce(jnp.add, (tap * weight for tap, weight in zip(taps, weights, strict=True)))


# Rows that are added to each other before the next block is read: of fewer than 16 the compiler
# makes no copy, but works out each pixel's address anew.
_TERMS = 20
# With gradients of its own: the compiler's tests for each pixel which taps have met it, and on CPU
# its weight gradient keeps every shifted copy.
_depthwise = jax.custom_vjp(_sum_of_taps, nondiff_argnums=(2, 3))


def _depthwise_forward(x: Array, kernel: Array, stride: int, dilation: int):
    return _sum_of_taps(x, kernel, stride, dilation), (x, kernel)


def _depthwise_backward(stride: int, dilation: int, saved: tuple[Array, Array], g: Array):
    def of_compiler(x: Array, g: Array) -> Array:
        return jax.vjp(lambda kernel: _sum_of_taps(x, kernel, stride, dilation), kernel)[1](g)[0]

    def by_blocks(x: Array, g: Array) -> Array:
        """Some rows of g at a time, with the rows of x that they have met, stay in the processor's
        cache. Rows are added to rows; what is left of each tap, a row, is added up at the end."""
        (height, width), (kh, kw) = g.shape[1:3], kernel.shape[:2]
        blocks = max(height // _TERMS, 1)
        rows = -(-height // blocks)
        images = next(n for n in range(-(-_TERMS // rows), 0, -1) if len(x) % n == 0)
        filling = blocks * rows - height
        x, g = (
            jnp.pad(array, ((0, 0), (0, more), (0, 0), (0, 0)))
            for array, more in ((x, filling * stride), (g, filling))
        )
        met = stride * (rows - 1) + dilation * (kh - 1) + 1

        def rows_of(array: Array, image: Array, row: Array, count: int) -> list[Sequence[Array]]:
            shape = (images, count, *array.shape[2:])
            block = lax.dynamic_slice(array, (image * images, row, 0, 0), shape)
            return [jnp.unstack(picture) for picture in jnp.unstack(block)]

        def add_block(sums: list[Array], block: Array) -> tuple[list[Array], None]:
            image, row = block // blocks, block % blocks * rows
            xs, gs = rows_of(x, image, row * stride, met), rows_of(g, image, row, rows)

            def products(i: int, j: int) -> Iterator[Array]:
                columns = slice(j * dilation, j * dilation + stride * (width - 1) + 1, stride)
                for n, y in np.ndindex(images, rows):
                    yield xs[n][i * dilation + y * stride][columns] * gs[n][y]

            taps = np.ndindex(kh, kw)
            return [sum(products(*tap), total) for tap, total in zip(taps, sums, strict=True)], None

        sums = [jnp.zeros(g.shape[2:], jnp.float32)] * (kh * kw)
        sums, _ = lax.scan(add_block, sums, jnp.arange(len(x) // images * blocks))
        dw = jnp.stack([total.sum(0) for total in sums]).reshape(kernel.shape)
        return dw.astype(kernel.dtype)

    x, kernel = saved
    dx = _input_gradient(x, kernel, stride, dilation, g)
    if kernel[..., 0, 0].size > 81:  # every product is a line of the program
        return dx, of_compiler(x, g)
    return dx, lax.platform_dependent(x, g, cpu=by_blocks, default=of_compiler)


def _input_gradient(x: Array, kernel: Array, stride: int, dilation: int, g: Array) -> Array:
    """Pixels that are a stride apart have met the same taps: for each of their stride² classes a
    convolution of g with these, mirrored."""
    if stride > 1 and (dilation > 1 or stride > min(kernel.shape[:2])):
        return jax.vjp(lambda x: _sum_of_taps(x, kernel, stride, dilation), x)[1](g)[0]
    sizes = [-(-n // stride) for n in x.shape[1:3]]

    def of_class(i: int, j: int) -> Array:
        taps = kernel[i::stride, j::stride][::-1, ::-1]
        counts = zip(sizes, g.shape[1:3], taps.shape[:2], strict=True)
        margins = [(dilation * (k - 1), n - m) for n, m, k in counts]
        return _sum_of_taps(jnp.pad(g, ((0, 0), *margins, (0, 0))), taps, 1, dilation)

    rows = [jnp.stack([of_class(i, j) for j in range(stride)], 3) for i in range(stride)]
    dx = jnp.stack(rows, 2).reshape(len(x), sizes[0] * stride, sizes[1] * stride, -1)
    return dx[:, : x.shape[1], : x.shape[2]]


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def conv_transpose2d(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "kh kw C F"],
    *,
    stride: int,
    padding: int = 0,
    output_padding: int = 0,
) -> Float[Array, "B H2 W2 F"]:
    """Transposed convolution: each input pixel adds its value times `kernel` to the output, every
    `stride` pixels; then `padding` pixels are cut from each side, `output_padding` fewer from the
    last.

    The output has (H − 1)·stride − 2·padding + kh + output_padding rows: convolutions of a stride
    above 1 map several sizes to one, and output_padding says which is meant; ValueError unless it
    is below the stride. The kernel is not mirrored, so with C and F exchanged it is the gradient of
    `conv2d` with the same kernel.
    """
    if not 0 <= output_padding < stride:
        raise ValueError(f"output_padding is {output_padding}, expected less than {stride}")
    (height, width), (b, h, w, _) = kernel.shape[:2], x.shape
    if (height, width) == (stride, stride) and padding == output_padding == 0:
        # Footprints do not overlap: a matrix product and a rearrangement. (As one einsum, the
        # compiler's gradient is twice as slow.)
        y = _product(x, kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1))
        y = y.reshape(b, h, w, stride, stride, -1).swapaxes(2, 3)
        return y.reshape(b, h * stride, w * stride, -1)
    return _conv_transpose(x, kernel, stride, padding, output_padding)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv_transpose(
    x: Array, kernel: Array, stride: int, padding: int, output_padding: int
) -> Array:
    """Its gradients are those of the convolution that it is the adjoint of: on CPU the compiler's
    weight gradient is 30 to 70 times slower for a stride."""
    height, width = kernel.shape[:2]
    if x.shape[1] < height or x.shape[2] < width:  # as in `conv2d`, and most of it is margin

        def add_up(parts: Array, axis: int) -> Array:
            """Σ_k of parts[k], whose value i goes to i·stride + k along the axis."""
            total: Array = jnp.zeros((), parts.dtype)
            for k, part in enumerate(parts):
                gaps = [(0, 0, 0)] * part.ndim
                gaps[axis] = (k, len(parts) - 1 - k + output_padding, stride - 1)
                total = total + lax.pad(part, jnp.zeros((), part.dtype), gaps)
            return lax.slice_in_dim(total, padding, total.shape[axis] - padding, axis=axis)

        exact = jnp.promote_types(x.dtype, jnp.float32)  # until all is added up
        footprints = jnp.einsum("bhwc,yxcf->xybhwf", x, kernel, preferred_element_type=exact)
        return add_up(add_up(footprints, axis=3), axis=1).astype(x.dtype)
    return lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        window_strides=(1, 1),
        padding=[(n - 1 - padding, n - 1 - padding + output_padding) for n in (height, width)],
        lhs_dilation=(stride, stride),
        dimension_numbers=_LAYOUT,
    )


def _conv_transpose_forward(
    x: Array, kernel: Array, stride: int, padding: int, output_padding: int
):
    return _conv_transpose(x, kernel, stride, padding, output_padding), (x, kernel)


def _conv_transpose_backward(
    stride: int, padding: int, output_padding: int, saved: tuple[Array, Array], g: Array
):
    def convolve(kernel: Array) -> Array:
        return conv2d(g, kernel.transpose(0, 1, 3, 2), stride=stride, padding=padding)

    x, kernel = saved
    dx, gradient = jax.vjp(convolve, kernel)
    return dx, gradient(x)[0]


_conv_transpose.defvjp(_conv_transpose_forward, _conv_transpose_backward)


def max_pool2d(
    x: Float[Array, "B H W C"],
    window: int = 2,
    stride: int = 2,
    padding: int = 0,
    *,
    ceil_mode: bool = False,
) -> Float[Array, "B H2 W2 C"]:
    """Maximum over window×window pixels. Equal maxima share the gradient.

    A last window that is not whole is left out, or with `ceil_mode` kept (as Caffe does) if it
    begins inside the image or its margin before. The margin never wins.
    """
    return reduce(jnp.maximum, pool_windows(x, window, stride, padding, ceil_mode=ceil_mode))


def pool_windows(
    x: Float[Array, "B H W C"], window: int, stride: int, padding: int, *, ceil_mode: bool = False
) -> list[Array]:
    """The pixels [B H2 W2 C] at each place of a pooling window, row by row; −inf in the margin."""
    margins = []
    for size in x.shape[1:3]:
        count = 1 + (size + 2 * padding - window) // stride
        if ceil_mode and count * stride < min(size + padding, size + 2 * padding - window + stride):
            count += 1
        after = max((count - 1) * stride + window - size - padding, 0)
        margins.append((padding, after))
    x = jnp.pad(x, ((0, 0), *margins, (0, 0)), constant_values=-jnp.inf)
    return _windows(x, (window, window), stride)


def avg_pool2d(x: Float[Array, "B H W C"], window: int, stride: int) -> Array:
    """Mean over window×window pixels [B H2 W2 C]; a last window that is not whole is left out."""
    return reduce(jnp.add, _windows(x, (window, window), stride)) / window**2


def adaptive_avg_pool2d(x: Float[Array, "B H W C"], size: int) -> Float[Array, "B n n C"]:
    """Mean over a grid of n×n = size×size windows that cover the image: window i of n reaches from
    ⌊i·H/n⌋ to ⌈(i+1)·H/n⌉."""

    def pool(x, axis):
        length = x.shape[axis]
        edges = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
        means = [lax.slice_in_dim(x, a, b, axis=axis).mean(axis) for a, b in edges]
        return jnp.stack(means, axis)

    return pool(pool(x, 1), 2)


def _windows(x: Array, size: tuple[int, ...], stride: int, dilation: int = 1) -> list[Array]:
    """The pixels [B H2 W2 C] at each place of a window that slides over `x`, row by row."""
    reach = [dilation * (k - 1) + 1 for k in size]
    height, width = (_count(n, r, stride) for n, r in zip(x.shape[1:3], reach, strict=True))
    return [
        x[:, i : i + stride * height : stride, j : j + stride * width : stride]
        for i, j in itertools.product(*(range(0, r, dilation) for r in reach))
    ]


def _count(size: int, window: int, stride: int) -> int:
    """How many places a window has on `size` pixels; ValueError where it does not fit."""
    if size < window:
        raise ValueError(f"a window of {window} pixels does not fit into a map of {size}")
    return (size - window) // stride + 1


def bilinear_kernel(stride: int, size: int | None = None) -> np.ndarray:
    """[size size] float32 weights with which a transposed convolution of stride s interpolates
    bilinearly (Long et al. 2015, section 3.3).

    size: 2s puts the new values beside the old ones, 2s − 1 puts some upon them; None takes the
    even one for an even stride, the odd one for an odd stride, as Caffe's initialisation does.
    """
    size = size or 2 * stride - stride % 2
    ramp = 1 - np.abs(np.arange(size) - (size - 1) / 2) / stride
    return np.outer(ramp, ramp).astype(np.float32)


def mirror_pad(x: Array, before: tuple[int, int], after: tuple[int, int]) -> Array:
    """Continue images [B H W C] beyond their borders by mirroring, `before` (top, left) and `after`
    (bottom, right) pixels; mirrors again where the margin is wider than the image."""
    margins = ((0, 0), (before[0], after[0]), (before[1], after[1]), (0, 0))
    return jnp.pad(x, margins, mode="reflect")


def resize_bilinear(x: Array, size: tuple[int, int], *, align_corners: bool = False) -> Array:
    """[B H W C] resampled to [B *size C] without antialiasing. Pixel centres lie at +0.5, and the
    pictures' edges coincide; with `align_corners` the centres of their corner pixels do."""
    shape = (x.shape[0], *size, x.shape[3])
    if not align_corners:
        return jax.image.resize(x, shape, "bilinear", antialias=False)
    sizes = zip(x.shape[1:3], size, strict=True)
    matrices = [jnp.asarray(_interpolation(n, m), x.dtype) for n, m in sizes]
    return jnp.einsum("yh,bhwc,xw->byxc", matrices[0], x, matrices[1], optimize=True)


def _interpolation(source: int, target: int) -> np.ndarray:
    """[target source] weights of linear interpolation between the first and the last sample."""
    places = np.linspace(0, source - 1, target)
    ramp = 1 - np.abs(places.reshape(-1, 1) - np.arange(source).reshape(1, -1))
    return np.maximum(ramp, 0).astype(np.float32)
