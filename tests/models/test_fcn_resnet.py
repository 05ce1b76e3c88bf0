"""FCN on dilated ResNets is torchvision's."""

import published
import pytest

from jaxseg.models.fcn import DilatedFCN


def load(fixtures, backbone):
    reference = published.read(fixtures, f"seg/fcn_{backbone}")
    return reference, DilatedFCN(21, backbone, dropout=0.0)


@pytest.mark.parametrize(
    "backbone", ["resnet50", pytest.param("resnet101", marks=pytest.mark.slow)]
)
def test_published_logits(fixtures, backbone):
    published.check_logits(*load(fixtures, backbone))


@pytest.mark.slow
@pytest.mark.parametrize("batch_statistics", [False, True])
@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
def test_published_training(fixtures, backbone, batch_statistics):
    published.check_training(*load(fixtures, backbone), batch_statistics=batch_statistics)
