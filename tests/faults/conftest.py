"""A few small images, and a run on them that nothing happened to."""

import pytest

from scalablevit.classification.run_folder import RunFolder
from tests.conftest import write_images
from tests.faults.command import train


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """36 images of 28x28 pixels to train on, and 9 to validate with."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 12, seed=0, side=28)
    write_images(folder / "val", 3, seed=1, side=28)
    return folder


@pytest.fixture(scope="session")
def whole(images, tmp_path_factory):
    """The folder of a run that came to its end undisturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    code, _, errors = train(images, out).end()
    assert (code, errors) == (0, "")
    return out


@pytest.fixture
def folder(tmp_path):
    """Where a run goes."""
    return RunFolder(tmp_path / "run")
