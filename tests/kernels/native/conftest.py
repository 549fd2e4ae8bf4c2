"""The native kernels, compiled for this machine and for others, whose paths it would not take itself."""

import ctypes
import subprocess

import pytest

from scalablevit.kernels.cpu import attention, compilation, kept_weights

# Vectors of 8 with AVX2, of 8 in two halves without, and of 4 as NEON has them; tiles in plain loops.
VARIANTS = {
    "native": None,
    "avx2": ("-march=haswell",),
    "no architecture": (),
    "four lanes": ("-DSCALABLEVIT_FOUR_LANES",),
    "emulated tiles": ("-O1", "-fopenmp", "-DSCALABLEVIT_EMULATED_TILES", "-Wno-psabi"),
}
QUICK = ("native", "emulated tiles")


@pytest.fixture(
    scope="session",
    params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS if name not in QUICK)],
)
def kernels(request, tmp_path_factory):
    """A loaded library."""
    library = compilation.library()
    if library is None:
        pytest.skip("no compiler")
    flags = VARIANTS[request.param]
    if flags is None:
        return library
    if request.param == "avx2" and "avx2" not in compilation._processor():
        pytest.skip("a processor without AVX2")
    path = tmp_path_factory.mktemp("library") / "kernels.so"
    source = str(compilation.SOURCES / "kernels.cpp")
    command = [compilation.find_compiler(), *compilation.FLAGS, *flags, source, "-o", str(path)]
    subprocess.run(command, capture_output=True, check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture
def launcher(kernels, monkeypatch):
    for module in (attention, kept_weights):
        monkeypatch.setattr(module, "library", lambda: kernels)
    return attention


@pytest.fixture
def calls(monkeypatch, launcher):
    """The names of the kernels that ran."""
    names, call = [], attention.call
    for module in ("attention", "calls", "products", "rows"):
        monkeypatch.setattr(
            f"scalablevit.kernels.cpu.{module}.call", lambda name, *rest: names.append(name) or call(name, *rest)
        )
    return names
