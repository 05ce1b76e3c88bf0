"""Checkpoints of a run: the last few, and the best by a score.

    checkpoints/last/STEP   params, model_state, ema, rest (what else a state holds), notes
    checkpoints/best/STEP   the same of the best evaluation

Saving is asynchronous and atomic: a folder gets its final name when it is whole. `notes` is JSON:
the loop's own small things, and a checksum by which a damaged checkpoint is told from a sound one.
The position in the data needs no saving: a pipeline starts at any step (see data/pipeline.py).
"""

import warnings
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxseg.train.step import State

Notes = dict[str, Any]


class Checkpoints:
    """The open checkpoints of one run. States are trees of numpy arrays."""

    def __init__(self, folder: Path, keep: int = 2):
        def manager(name, keep):
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
            return ocp.CheckpointManager(Path(folder).resolve() / name, options=options)

        self._last, self._best = manager("last", keep), manager("best", 1)

    def save(self, state: State, notes: Notes, *, best: bool = False) -> None:
        """Write `state` under its step, in the background. `best` writes it as the best, too, and
        before: a run that goes on from the last finds the best it remembers."""
        step, items = int(state.step), _pack(state)
        notes = {**notes, "checksum": _checksum(items)}
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        composite = ocp.args.Composite(**args, notes=ocp.args.JsonSave(notes))
        if best:
            if step in self._best.all_steps():
                self._best.delete(step)
            self._best.save(step, args=composite, force=True)
            self._best.wait_until_finished()
        if step not in self._last.all_steps():
            self._last.save(step, args=composite, force=True)

    def restore(self, like: State) -> tuple[State, Notes] | None:
        """The last sound checkpoint, in the structure of `like`; None where there is none.

        A damaged one is passed over with a warning and removed; ValueError where all are damaged,
        or where the last was made by another model or optimiser.
        """
        steps = sorted(self._last.all_steps(), reverse=True)
        for step in steps:
            try:
                state, notes = _restore(self._last, step, like)
            except _Mismatch:
                raise
            except Exception as error:
                folder = self._last.directory / str(step)
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                warnings.warn(
                    f"checkpoint {folder} is damaged ({reason}); falling back to the one before",
                    stacklevel=2,
                )
                continue
            for damaged in steps[: steps.index(step)]:
                self._last.delete(damaged)
            return state, notes
        if steps:
            raise ValueError(f"every checkpoint in {self._last.directory} is damaged: {steps}")
        return None

    def wait(self) -> None:
        """Wait for what is being written."""
        self._last.wait_until_finished()
        self._best.wait_until_finished()

    def close(self) -> None:
        """Wait, and be done."""
        self.wait()
        self._last.close()
        self._best.close()


def load_variables(folder: Path, *, which: str = "best") -> tuple[dict[str, Any], int]:
    """(variables, step) of a run, with the averaged params where there are any.

    which: "best" (the last where nothing has been scored) or "last". FileNotFoundError where there
    is no checkpoint.
    """
    if which not in ("best", "last"):
        raise ValueError(f'which checkpoint: {which!r}, expected "best" or "last"')
    for name in ("best", "last") if which == "best" else ("last",):
        path = Path(folder).resolve() / name
        if not path.is_dir():
            continue
        with ocp.CheckpointManager(path) as manager:
            step = manager.latest_step()
            if step is None:
                continue
            present = {p.name for p in (path / str(step)).iterdir() if p.is_dir()}
            wanted = ["ema" if "ema" in present else "params"]
            wanted += ["model_state"] if "model_state" in present else []
            args = {name: ocp.args.StandardRestore() for name in wanted}
            items = manager.restore(step, args=ocp.args.Composite(**args))
        return {"params": items[wanted[0]], **(items.get("model_state") or {})}, step
    raise FileNotFoundError(f"no checkpoint in {folder}")


class _Mismatch(ValueError):
    """The checkpoint is sound, but of something else."""


def _pack(state: State) -> dict[str, Any]:
    """State -> items; those without arrays are left out."""
    # Optimiser states are nested tuples, of which orbax would give back dicts in another order.
    leaves = jax.tree.leaves(state.opt_state)
    opt_state = {f"{i:05d}": leaf for i, leaf in enumerate(leaves)}
    rest = {"step": state.step, "skipped": state.skipped, "opt_state": opt_state}
    items = {
        "params": state.params,
        "model_state": state.model_state,
        "ema": state.ema,
        "rest": rest,
    }
    return {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}


def _restore(manager: ocp.CheckpointManager, step: int, like: State) -> tuple[State, Notes]:
    template = _pack(like)
    present = {p.name for p in (manager.directory / str(step)).iterdir() if p.is_dir()}
    missing = sorted(set(template) ^ (present - {"notes"}))
    if missing:
        raise _Mismatch(
            f"{manager.directory / str(step)}: only one of it and this run has {missing}"
        )
    notes = manager.restore(step, args=ocp.args.Composite(notes=ocp.args.JsonRestore()))["notes"]
    args = {name: ocp.args.StandardRestore() for name in template}
    raw = manager.restore(step, args=ocp.args.Composite(**args))
    raw = {name: raw[name] for name in template}
    if _checksum(raw) != notes["checksum"]:
        raise ValueError("its checksum is another")
    items = {name: _fit(raw[name], tree, name) for name, tree in template.items()}
    rest = items["rest"]
    opt_state = jax.tree.unflatten(
        jax.tree.structure(like.opt_state), jax.tree.leaves(rest["opt_state"])
    )
    model_state, ema = items.get("model_state", {}), items.get("ema")
    state = State(rest["step"], rest["skipped"], items["params"], model_state, opt_state, ema)
    return state, notes


def _fit(raw: Any, like: Any, name: str) -> Any:
    """The leaves of `raw` (plain dicts and lists) in the structure of `like`."""
    leaves, expected = jax.tree.leaves(raw), jax.tree.leaves(like)
    shapes = [np.shape(x) for x in leaves], [np.shape(x) for x in expected]
    if shapes[0] != shapes[1]:
        raise _Mismatch(
            f"the checkpoint's {name} has {len(leaves)} arrays of other shapes than the "
            f"{len(expected)} of this configuration"
        )
    return jax.tree.unflatten(jax.tree.structure(like), [np.asarray(x) for x in leaves])


def _checksum(items: dict[str, Any]) -> int:
    """A CRC of all arrays, in the order of their names."""
    code = 0
    for name in sorted(items):
        for leaf in jax.tree.leaves(items[name]):
            code = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), code)
    return code
