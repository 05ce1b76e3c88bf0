"""Convolutions and pooling with explicit, symmetric padding, as the published networks have them.

x is [B H W C], kernels are [kh kw C F]; stride, padding and dilation are in pixels and the same in
both directions. Nothing here is "SAME": for a stride of 2 that would pad left and right unequally.
"""

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
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_LAYOUT,
    )


def conv_transpose2d(
    x: Float[Array, "B H W C"], kernel: Float[Array, "kh kw C F"], *, stride: int, padding: int = 0
) -> Float[Array, "B H2 W2 F"]:
    """Transposed convolution: each input pixel adds its value times `kernel` to the output, every
    `stride` pixels; then `padding` pixels are cut from each side.

    The output has (H − 1)·stride − 2·padding + kh rows. The kernel is not mirrored, so with C and F
    exchanged it is the gradient of `conv2d` with the same kernel.
    """
    (height, width), (b, h, w, _) = kernel.shape[:2], x.shape
    if (height, width) == (stride, stride) and padding == 0:
        # Footprints do not overlap: a matrix product and a rearrangement.
        y = jnp.einsum("bhwc,yxcf->bhywxf", x, kernel)
        return y.reshape(b, h * stride, w * stride, -1)
    return lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        window_strides=(1, 1),
        padding=((height - 1 - padding,) * 2, (width - 1 - padding,) * 2),
        lhs_dilation=(stride, stride),
        dimension_numbers=_LAYOUT,
    )


def max_pool2x2(x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
    """Maximum over 2×2 pixels, stride 2. An odd last row or column is a window of its own (the
    "ceil mode" of Caffe). Equal maxima share the gradient."""
    b, h, w, c = x.shape
    if h % 2 or w % 2:
        x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    return x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c).max(axis=(2, 4))


def bilinear_kernel(stride: int) -> np.ndarray:
    """[2s 2s] float32 weights with which a transposed convolution of stride s and padding s/2
    interpolates bilinearly (Long et al. 2015, section 3.3)."""
    size = 2 * stride - stride % 2
    center = (size - 1) / 2
    ramp = 1 - np.abs(np.arange(size) - center) / stride
    return np.outer(ramp, ramp).astype(np.float32)


def mirror_pad(x: Array, before: tuple[int, int], after: tuple[int, int]) -> Array:
    """Continue images [B H W C] beyond their borders by mirroring, `before` (top, left) and `after`
    (bottom, right) pixels; mirrors again where the margin is wider than the image."""
    margins = ((0, 0), (before[0], after[0]), (before[1], after[1]), (0, 0))
    return jnp.pad(x, margins, mode="reflect")


def resize_bilinear(x: Array, size: tuple[int, int]) -> Array:
    """[B H W C] resampled to [B *size C], pixel centres at +0.5, without antialiasing."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear", antialias=False)
