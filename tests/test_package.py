"""The package as people get it: what an import loads, and what is in the wheel."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import scalablevit
from scalablevit.sample import sample_images

ROOT = Path(__file__).parent.parent
HEAVY = ("PIL", "jsonargparse", "matplotlib", "onnx", "pytorch_lightning", "rich", "safetensors", "timm", "torchvision")


def test_importing_the_package_loads_torch_and_nothing_heavier():
    code = (
        "import time, torch, sys\n"
        "before, start = set(sys.modules), time.perf_counter()\n"
        "import scalablevit\n"
        "seconds = time.perf_counter() - start\n"
        f"print([name for name in {HEAVY!r} if name in set(sys.modules) - before])\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(len(new - {'torch', 'scalablevit'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, others = done.stdout.splitlines()
    assert loaded == "[]"
    assert int(others) < 30  # of the standard library


def test_every_public_name_is_there():
    for name in scalablevit.__all__:
        assert callable(getattr(scalablevit, name))
        assert name in dir(scalablevit)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = scalablevit.trian


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, capture_output=True, check=True)
    return folder


def test_wheel_and_sdist_hold_the_package_and_nothing_else(wheel):
    (wheel_file,) = wheel.glob("*.whl")
    names = zipfile.ZipFile(wheel_file).namelist()
    assert "scalablevit/py.typed" in names
    assert "scalablevit/sample/fashion-mnist-sample.zip" in names
    assert "scalablevit/sample/LICENSE.txt" in names
    assert "scalablevit/recipes/small-images.yaml" in names
    assert {f"scalablevit/trained/fashion/{file}" for file in ("README.md", "config.json", "model.safetensors")} <= {
        *names
    }
    assert {name.split("/")[0].removesuffix(f"-{scalablevit.__version__}.dist-info") for name in names} == {
        "scalablevit"
    }
    sources = {
        f"scalablevit/kernels/cpu/{file.name}" for file in (ROOT / "src/scalablevit/kernels/cpu").glob("*.[hc]*")
    }
    assert "scalablevit/kernels/cpu/kernels.cpp" in sources
    assert sources <= set(names)
    (sdist,) = wheel.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert sources <= {name.partition("/src/")[2] for name in archive.getnames()}
        assert any(name.endswith("tests/test_package.py") for name in archive.getnames())


def test_the_wheel_works_in_an_empty_environment(wheel, tmp_path):
    """Empty of this package: its dependencies are lent by the environment that runs the tests, for time."""
    (wheel_file,) = wheel.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    purelib = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    with zipfile.ZipFile(wheel_file) as archive:
        archive.extractall(purelib)
    # Sources that whoever runs the tests has put on the path would go before what is installed.
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    there = {"capture_output": True, "text": True, "check": True, "cwd": tmp_path, "env": own}
    (purelib / "lent.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    code = "import sys, scalablevit.cli; print(scalablevit.__file__); sys.exit(scalablevit.cli.main(['models']))"
    done = subprocess.run([python, "-P", "-c", code], **there)
    assert done.stdout.splitlines()[0].startswith(str(purelib))
    assert "scalablevit_small" in done.stdout
    assert "32.0" in done.stdout
    (image,) = sample_images(1)
    code = f"import sys, scalablevit.cli; sys.exit(scalablevit.cli.main(['predict', 'fashion', {str(image)!r}]))"
    done = subprocess.run([python, "-P", "-c", code], **there)
    assert done.stdout.startswith(f"{image}: {image.parent.name} ")


@pytest.mark.slow
def test_the_wheel_installs_with_its_dependencies_into_an_empty_environment(wheel, tmp_path):
    (wheel_file,) = wheel.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    folder = tmp_path / "venv" / "bin"
    subprocess.run([folder / "python", "-m", "pip", "install", "--quiet", wheel_file], check=True)
    done = subprocess.run([folder / "scalablevit", "models"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "scalablevit_large" in done.stdout
