"""Runs timm's own tests of models against ours: ``python -m tests.timm_suite scalablevit_nano scalablevit_tiny ...``

The tests are those of the installed version of timm. The wheel has none, so that its source distribution is fetched by
pip; only ``tests/`` is taken out of it, and kept inside the virtual environment for the next time.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import timm

HERE = Path(__file__).parent
FILES = ("tests/test_models.py", "tests/test_model_input.py")


def fetch_tests(version: str) -> Path:
    """The folder with timm's ``tests/`` and ``pyproject.toml``."""
    folder = Path(sys.prefix) / f"timm-tests-{version}"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=sys.prefix) as name:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*download, "--no-binary", "timm", "--dest", name, f"timm=={version}"], check=True)
        [archive] = Path(name).glob("timm-*.tar.gz")
        root = f"timm-{version}"
        with tarfile.open(archive) as opened:
            for member in opened.getmembers():
                if member.isfile() and member.name.startswith((f"{root}/tests/", f"{root}/pyproject.toml")):
                    opened.extract(member, name, filter="data")
        (Path(name) / root).rename(folder)  # in one step, so that no half of it is ever taken for the whole
    return folder


def main(names: list[str]) -> int:
    """Runs the tests of the named models; the exit code is pytest's."""
    tests = fetch_tests(timm.__version__)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.timm_suite.plugin"]
    command += [
        "-W",
        "ignore",
        "-n",
        "auto",
        "--import-mode=importlib",
        "--rootdir",
        str(tests),
        "-c",
        str(tests / "pyproject.toml"),
    ]
    # Test processes share the cores; PyTorch's threads would wait for one another.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TIMM_SUITE_MODELS": " ".join(names)}
    environment.pop("GITHUB_ACTIONS", None)  # there timm leaves some of its tests out
    environment["PYTHONPATH"] = str(HERE.parent.parent)
    return subprocess.run([*command, *(str(tests / file) for file in FILES)], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
