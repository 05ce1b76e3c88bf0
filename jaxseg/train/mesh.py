"""How a pure step runs on many devices: `jit` over a mesh, or `pmap`. Both give the same numbers.

Batches are cut along their first axis, states are whole on every device.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


class Parallel(NamedTuple):
    """One way of running on all devices."""

    axis_name: str | None  # what a step has to sum over by itself
    compile: Callable[[Callable], Callable]  # (state, batch) -> (state, report); donates the state
    put_state: Callable[[Any], Any]  # host tree -> on every device
    put_batch: Callable[[Any], Any]  # this process's rows of the batch -> on the devices
    fetch: Callable[[Any], Any]  # what is whole on every device -> numpy copies on the host


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices, or else all of all processes, in a row."""
    devices = list(jax.devices() if devices is None else devices)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def by_rows(function: Callable[..., Any], mesh: Mesh, *, whole: int = 0) -> Callable[..., Any]:
    """A function of batches, of which each device does its own rows: for loops over the rows, which
    the compiler would not cut. whole: how many arguments come first that all devices share."""

    def mapped(*arguments: Any) -> Any:
        rows = PartitionSpec(AXIS)
        specs = (PartitionSpec(),) * whole + (rows,) * (len(arguments) - whole)
        some = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
        return some(*arguments)

    return mapped


def make_parallel(
    kind: Literal["jit", "pmap"], devices: Sequence[jax.Device] | None = None
) -> Parallel:
    """`jit` over a mesh of the devices, or `pmap` over them; by default over all."""
    if kind not in ("jit", "pmap"):
        raise ValueError(f'parallel={kind!r}, expected "jit" or "pmap"')
    return _jit(data_mesh(devices)) if kind == "jit" else _pmap(devices)


def shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """(whole on every device, cut along the first axis)."""
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))


def put_rows(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch, as part of one global array."""
    _, rows = shardings(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, x), batch)


def _jit(mesh: Mesh) -> Parallel:
    whole, rows = shardings(mesh)

    def compile(step):
        return jax.jit(step, in_shardings=(whole, rows), out_shardings=whole, donate_argnums=0)

    def put_state(tree):
        # A copy of its own, since the step donates it.
        tree = jax.tree.map(lambda x: np.array(x, copy=True), tree)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(whole, x, x.shape), tree
        )

    def fetch(tree):
        return jax.tree.map(lambda x: np.array(x, copy=True), tree)

    return Parallel(None, compile, put_state, lambda batch: put_rows(batch, mesh), fetch)


def _pmap(devices: Sequence[jax.Device] | None) -> Parallel:
    local = jax.local_devices() if devices is None else list(devices)

    def compile(step):
        return jax.pmap(step, axis_name=AXIS, devices=devices, donate_argnums=0)

    def put_state(tree):
        stack = jax.tree.map(lambda x: np.stack([np.asarray(x)] * len(local)), tree)
        return jax.pmap(lambda x: x, devices=devices)(stack)

    def put_batch(batch):
        return jax.tree.map(lambda x: x.reshape(len(local), -1, *x.shape[1:]), batch)

    def fetch(tree):
        def first(x):
            return np.array(x.addressable_shards[0].data, copy=True).reshape(x.shape[1:])

        return jax.tree.map(first, tree)

    return Parallel(AXIS, compile, put_state, put_batch, fetch)
