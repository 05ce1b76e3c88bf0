"""U-Net's map of pixel weights, which makes a network learn the gaps between touching cells.

    instances  int  [H W]    0 is background, each other value is one object
    masks      bool [M H W]  one mask an object; empty ones are padding
    weights    float32 [H W] what each pixel counts in the loss, batch["pixel_weights"]

Distances are between pixel centres, in pixels. Numpy, on the host: it belongs to data loading.
"""

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.ndimage import distance_transform_edt


def border_weights(
    instances: Integer[np.ndarray, "H W"] | Bool[np.ndarray, "M H W"],
    w0: float = 10.0,
    sigma: float = 5.0,
    class_weights: tuple[float, float] = (1.0, 1.0),
) -> Float[np.ndarray, "H W"]:
    """w_c + w0 exp(-(d1 + d2)² / (2 σ²)): Ronneberger et al. 2015, "U-Net", eq. 2.

    d1 and d2 are the distances to the nearest and to the second nearest object, and w_c is
    class_weights[0] on background and class_weights[1] on objects. The second term is added on
    background only, where the paper's figure 3d shows it. With fewer than two objects there is
    nothing to separate, and w_c alone remains.
    """
    masks = instances if instances.ndim == 3 else _masks(instances)
    foreground = masks.any(axis=0)
    background_weight, object_weight = class_weights
    weights = np.where(foreground, object_weight, background_weight)
    # Only the two smallest so far, and only as far from an object as they could matter.
    d1, d2 = np.full((2, *foreground.shape), np.inf)
    reach = int(np.ceil(sigma * np.sqrt(2 * np.log(max(1.0, w0) * 1e7))))
    for mask in masks[masks.any(axis=(1, 2))]:
        near = tuple(
            slice(max(0, places.min() - reach), places.max() + reach + 1)
            for places in np.nonzero(mask)
        )
        distance = np.asarray(distance_transform_edt(~mask[near]))
        farther = np.maximum(d1[near], distance)
        d1[near], d2[near] = np.minimum(d1[near], distance), np.minimum(d2[near], farther)
    border = w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2))
    return np.where(foreground, weights, weights + border).astype(np.float32)


def _masks(instances: Integer[np.ndarray, "H W"]) -> Bool[np.ndarray, "M H W"]:
    objects = np.unique(instances[instances != 0])
    return instances == objects[:, None, None]
