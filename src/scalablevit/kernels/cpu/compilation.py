"""Compiles the C++ kernels for this machine's processor, once, and loads them.

The library lies in a folder of the user's (``scalablevit`` in ``$XDG_CACHE_HOME`` or ``~/.cache``), under a name made
from everything that it depends on. Nothing of PyTorch is compiled in, so that it serves any version.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
FLAGS = (
    *("-std=c++17", "-O3", "-shared", "-fPIC"),
    # Sums may be fused with products, and nothing asks for errno or floating-point traps. Not -ffast-math: what is no
    # number must stay none.
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
# What not every compiler takes, from best to last: Apple's has no OpenMP, some know no native architecture.
VARIANTS = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",), ())
TIMEOUT_S = 120


@cache
def library() -> ctypes.CDLL | None:
    """The kernels; None, with the reason in the log, where they cannot be compiled or loaded."""
    compiler = find_compiler()
    if compiler is None:
        logger.info("no C++ compiler was found (set CXX, or install g++): attention runs through PyTorch")
        return None
    try:
        return _load(f"kernels-{_key(compiler)}.so", compiler)
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(getattr(error, "stderr", None) or error).strip()
        logger.warning("the CPU kernels could not be compiled, so that attention runs through PyTorch: %s", reason)
        return None


def _load(name: str, compiler: str) -> ctypes.CDLL:
    kept = _user_folder()
    if kept is not None and (kept / name).exists():  # a folder that can only be read serves as well
        try:
            return ctypes.CDLL(str(kept / name))
        except OSError as error:
            logger.info("%s cannot be loaded and is compiled anew: %s", kept / name, error)
    path = cache_folder() / name
    compile_to(path, compiler)
    return ctypes.CDLL(str(path))


def find_compiler() -> str | None:
    """The C++ compiler: ``$CXX``, or the first there is."""
    named = os.environ.get("CXX")
    return next(
        (path for name in ([named] if named else ["g++", "c++", "clang++"]) if (path := shutil.which(name))), None
    )


def cache_folder() -> Path:
    """Where libraries are kept; a temporary folder of this process where the user's cannot be written to."""
    folder = _user_folder()
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
    except OSError:
        pass
    temporary = tempfile.mkdtemp(prefix="scalablevit-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return Path(temporary)


def _user_folder() -> Path | None:
    """None for a user without a home, as containers have them."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "scalablevit"
    except RuntimeError:
        return None


def compile_to(path: Path, compiler: str) -> None:
    """Compiles the kernels with the first variant of flags that works.

    Raises:
        subprocess.SubprocessError: If none does; of the last.
    """
    logger.info("compiling the CPU kernels, once: %s", path)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        for variant in VARIANTS:
            command = [compiler, *FLAGS, *variant, str(SOURCES / "kernels.cpp"), "-o", str(made)]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIMEOUT_S, check=variant == VARIANTS[-1]
            )
            if done.returncode == 0:
                break
        made.replace(path)  # at once, so that another process sees all of it or nothing


def _key(compiler: str) -> str:
    """A name for what a library depends on: source, flags, compiler, processor."""
    digest = hashlib.sha256()
    for source in sorted((*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp"))):
        digest.update(source.read_bytes())
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    ).stdout
    for text in (*FLAGS, repr(VARIANTS), compiler, version, platform.machine(), _processor()):
        digest.update(text.encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What the native architecture stands for: a home folder may be shared by machines with different processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        sorted({line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))})
    )
