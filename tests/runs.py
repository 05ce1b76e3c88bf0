"""A run that takes seconds: a tiny U-Net on eight small pictures of `shapes`."""

import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config


def get_config() -> ConfigDict:
    config = jaxseg_config.default()
    config.steps = 12
    config.eval_every = 4
    config.checkpoint_every = 3
    config.log_every = 2
    config.model.update(width=4, depth=2, padding="same", norm="batch", dropout=0.5)
    config.data.options.update(num_train=24, num_val=10, image_size=(32, 32))
    config.data.image_size = config.data.crop_size = (32, 32)
    config.augment.scales = (0.5, 2.0)
    config.augment.flip = True
    config.augment.brightness = 0.2
    config.optim.learning_rate = 1e-2
    config.optim.warmup_steps = 2
    config.optim.clip_norm = 1.0
    config.optim.weight_decay = 1e-4
    config.optim.ema_decay = 0.9
    return config


def read_lines(workdir: Path) -> list[dict]:
    """metrics.jsonl without the times."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "time"} for row in rows]


def raw_leaves(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint by name."""
    with ocp.CheckpointManager(workdir.resolve() / "checkpoints" / "last") as manager:
        names = ("params", "model_state", "ema", "rest")
        args = {name: ocp.args.StandardRestore() for name in names}
        found = manager.restore(manager.latest_step(), args=ocp.args.Composite(**args))
    flat, _ = jax.tree_util.tree_flatten_with_path({name: found[name] for name in names})
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def assert_same_end(workdir: Path, other: Path) -> None:
    """Two runs wrote the same lines and ended with the same arrays, bit for bit."""
    assert read_lines(workdir) == read_lines(other)
    ours, theirs = raw_leaves(workdir), raw_leaves(other)
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        assert leaf.tobytes() == theirs[name].tobytes(), name
