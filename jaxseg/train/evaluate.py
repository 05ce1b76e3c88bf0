"""Evaluation: measure every example once, on all devices."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxseg.train.mesh import by_rows, put_rows, shardings
from jaxseg.types import Array, Batch, Task, Variables

Evaluate = Callable[..., Any]


def make_evaluate(predict: Callable, task: Task, mesh: Mesh) -> Evaluate:
    """`evaluate(variables, batches, check=None) -> (counts, shown)`.

    batches: this process's rows, filled up to a fixed size (`valid` tells the real ones).
    counts: `task.add` over all batches of what `task.compact` makes of `task.measure`, which every
    process has of all rows. shown: the first batch of this process with its predictions, on the
    host, for pictures. check: called before each batch; may raise.
    """
    whole, rows = shardings(mesh)
    predict = by_rows(predict, mesh, whole=1)

    def measure(variables: Variables, batch: Batch):
        predictions = predict(variables, batch["image"])
        return task.measure(predictions, batch), predictions

    measure = jax.jit(measure, in_shardings=(whole, rows), out_shardings=(whole, rows))

    def evaluate(variables: Variables, batches: Iterable[Batch], check: Callable | None = None):
        variables = jax.device_put(variables, whole)
        counts, shown = None, None
        for batch in batches:
            if check is not None:
                check()
            new, predictions = measure(variables, put_rows(batch, mesh))
            new = task.compact(jax.tree.map(np.asarray, new))
            counts = new if counts is None else task.add(counts, new)
            if shown is None:
                shown = batch, jax.tree.map(_local_rows, predictions)
        if counts is None:
            raise ValueError("evaluation: there is nothing to evaluate")
        return counts, shown

    return evaluate


def _local_rows(x: Array) -> np.ndarray:
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
