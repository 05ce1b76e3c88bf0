import tarfile

import pytest


@pytest.fixture(scope="session")
def references(real_data, tmp_path_factory):
    """The folder of truths and detections with known scores."""
    folder = tmp_path_factory.mktemp("references")
    with tarfile.open(real_data / "metric_references/metric_references.tar.gz") as file:
        file.extractall(folder, filter="data")
    return folder / "metric_references"
