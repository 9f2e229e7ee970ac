"""A folder to run a training in, with the model and the data that a test file's `start` has."""

import pytest


@pytest.fixture
def folder(start, tmp_path):
    for name in ("model", "data"):
        (tmp_path / name).symlink_to(start / name, target_is_directory=True)
    return tmp_path
