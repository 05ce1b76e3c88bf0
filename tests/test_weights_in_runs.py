"""Weights from outside into a run, and out again: `init_from`, `export --format=torchvision`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_variables
from runs import get_config

from jaxseg import export, run
from jaxseg.models import unet
from jaxseg.weights.files import read_state_dict, write_state_dict


def fresh(num_classes, channels=3, backbone="resnet18", seed=1):
    network = unet.EncoderUNet(num_classes, backbone, 4, (8, 4, 4, 4, 4))
    return random_variables(network, jnp.zeros((1, 32, 32, channels)), seed)


@pytest.fixture(scope="module")
def variables():
    return fresh(3, seed=0)


@pytest.fixture(params=[".pth", ".safetensors"])
def file(request, variables, tmp_path):
    family, state = export.torchvision_twin(variables)
    assert family == "smp_unet_resnet"
    path = tmp_path / f"unet{request.param}"
    write_state_dict(path, state)
    return path


def test_there_and_back(file, variables):
    config = get_config()
    config.init_from = str(file)
    taken, told = run.take_weights(fresh(3), config, 3)
    jax.tree.map(np.testing.assert_array_equal, taken, variables)
    assert "a smp_unet_resnet" in told


def test_a_head_of_other_classes_is_dropped_and_named(file, variables):
    config = get_config()
    config.init_from = str(file)
    taken, told = run.take_weights(fresh(5), config, 5)
    assert "dropped 2: classifier 2" in told
    assert taken["params"]["classifier"]["kernel"].shape == (3, 3, 4, 5)
    for part in ("params", "batch_stats"):
        ours, theirs = taken[part]["backbone"], variables[part]["backbone"]
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_backbone_alone(file, variables):
    config = get_config()
    config.init_from, config.init_part = str(file), "/backbone/"
    start = fresh(3)
    taken, _ = run.take_weights(start, config, 3)
    ours = taken["params"]
    jax.tree.map(np.testing.assert_array_equal, ours["backbone"], variables["params"]["backbone"])
    jax.tree.map(np.testing.assert_array_equal, ours["up1"], start["params"]["up1"])
    config.init_part = "/spine/"
    with pytest.raises(ValueError, match=r"init_part: '/spine/' is found in no path"):
        run.take_weights(start, config, 3)


def test_other_channels_are_taken_when_asked(file, variables):
    config = get_config()
    config.init_from = str(file)
    with pytest.raises(ValueError, match="reads 3 channels, the network 1: adapt_input is off"):
        run.take_weights(fresh(3, channels=1), config, 3)
    config.init_adapt_input = True
    taken, _ = run.take_weights(fresh(3, channels=1), config, 3)
    kernel = variables["params"]["backbone"]["stem"]["conv"]["kernel"]
    summed = taken["params"]["backbone"]["stem"]["conv"]["kernel"]
    np.testing.assert_allclose(summed, kernel.sum(2, keepdims=True), rtol=1e-5)


def test_another_network_and_a_broken_file_are_refused(file, tmp_path):
    config = get_config()
    config.init_from = str(file)
    with pytest.raises(ValueError, match=r"another backbone: it lacks .*stage1_block3"):
        run.take_weights(fresh(3, backbone="resnet34"), config, 3)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=file.name):
        run.take_weights(fresh(3), config, 3)


def test_torch_reads_what_is_exported(variables, tmp_path):
    torch = pytest.importorskip("torch")
    _, state = export.torchvision_twin(variables)
    write_state_dict(tmp_path / "unet.pth", state)
    loaded = torch.load(tmp_path / "unet.pth", weights_only=True)
    assert list(loaded) == list(read_state_dict(tmp_path / "unet.pth"))
    kernel = variables["params"]["backbone"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(
        loaded["encoder.conv1.weight"].numpy(), kernel.transpose(3, 2, 0, 1)
    )


def test_a_network_without_a_twin_is_refused():
    variables = random_variables(unet.UNet(3, width=4, depth=2), jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(ValueError, match="has no twin in torchvision"):
        export.torchvision_twin(variables)
