"""Datasets: how each format is read, and how it is prepared once for fast random access.

A format is a module with one function, `open_source(path, **options) -> Source`; `prepare` finds
it by its name: `camvid`, `voc`, `isbi`, `pets`, `folder`; with boxes or masks of objects `coco`,
`bccd`, `pennfudan`, `dsb2018`, `labelme`; generated, `shapes`; or the dotted path of a module of
yours.
"""

from jaxseg.data.builders.prepare import Dataset, load_prepared, prepare
from jaxseg.data.builders.source import DataError, Example, Source

__all__ = ["DataError", "Dataset", "Example", "Source", "load_prepared", "prepare"]
