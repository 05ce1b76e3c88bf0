"""jaxseg: image segmentation and object detection in JAX, as pure functions."""

__version__ = "0.1.0"
