"""How the library comes about. Its compiler is a line of shell that copies the one this machine's tests share."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scalablevit.kernels.cpu import compilation


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compilation.library.cache_clear()
    yield
    compilation.library.cache_clear()


@pytest.fixture(scope="module")
def kept():
    """The library that this machine's tests share."""
    if compilation.find_compiler() is None:
        pytest.skip("no compiler")
    return compilation.library()._name


@pytest.fixture
def compiler(kept, tmp_path, monkeypatch):
    """One that copies the library that is there, and notes each call."""
    script, calls = tmp_path / "compiler", tmp_path / "calls"
    script.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit\n'
        f'echo "$@" >> {calls}\nwhile [ "$1" != -o ]; do shift; done\ncp "{kept}" "$2"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return lambda: calls.read_text().splitlines() if calls.exists() else []


def failing(tmp_path, monkeypatch, condition="true"):
    script = tmp_path / "failing"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit\nif {condition}; then echo no such flag >&2; exit 1; fi\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))


def in_cache(tmp_path):
    return sorted((tmp_path / "cache" / "scalablevit").glob("*"))


def test_a_library_is_compiled_once_and_kept(compiler, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert compilation.library() is not None
    (file,) = in_cache(tmp_path)
    assert f"compiling the CPU kernels, once: {file}" in caplog.text
    compilation.library.cache_clear()
    assert compilation.library()._name == str(file)
    assert len(compiler()) == 1
    assert in_cache(tmp_path) == [file]  # nothing temporary is left


@pytest.mark.parametrize("content", [b"", b"no library at all" * 100])
def test_a_file_that_does_not_load_is_compiled_anew(content, compiler, tmp_path, caplog):
    file = tmp_path / "cache" / "scalablevit" / f"kernels-{compilation._key(os.environ['CXX'])}.so"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with caplog.at_level(logging.INFO):
        assert compilation.library() is not None
    assert "cannot be loaded and is compiled anew" in caplog.text
    assert len(compiler()) == 1
    assert file.stat().st_size > 10_000


def test_what_never_loads_is_given_up(tmp_path, monkeypatch, caplog):
    failing(tmp_path, monkeypatch, condition="! touch $(for last; do :; done; echo $last)")
    assert compilation.library() is None
    assert "could not be compiled" in caplog.text


def test_a_compiler_that_fails_is_told_once_with_its_reason(tmp_path, monkeypatch, caplog):
    failing(tmp_path, monkeypatch)
    assert compilation.library() is None
    assert compilation.library() is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no such flag" in caplog.text
    assert in_cache(tmp_path) == []


def test_without_a_compiler_the_log_says_so(monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.INFO):
        assert compilation.library() is None
    assert "set CXX, or install g++" in caplog.text
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_flags_that_a_compiler_does_not_know_are_left_out(compiler, tmp_path, monkeypatch):
    wrapped = os.environ["CXX"]
    script = tmp_path / "without-openmp"
    script.write_text(f'#!/bin/sh\ncase "$*" in *-fopenmp*) exit 1;; esac\nexec {wrapped} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    assert compilation.library() is not None
    (call,) = compiler()
    assert "-march=native" in call
    assert "-fopenmp" not in call


def test_where_nothing_can_be_written_a_temporary_folder_serves_until_the_end(compiler, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    code = (
        "from scalablevit.kernels.cpu.compilation import library\n"
        "from pathlib import Path\n"
        "print(library()._name, Path(library()._name).exists())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    name, was_there = done.stdout.split()
    assert was_there == "True"
    assert not Path(name).parent.exists()


def test_a_library_in_a_folder_that_can_only_be_read_is_used(compiler, tmp_path, monkeypatch):
    compilation.library()
    compilation.library.cache_clear()

    def refuse(*_, **__):
        raise PermissionError("read only")

    monkeypatch.setattr(compilation.tempfile, "TemporaryFile", refuse)
    assert compilation.library() is not None
    assert len(compiler()) == 1


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    def refuse():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(compilation.Path, "home", refuse)
    assert compilation._user_folder() is None
    assert compilation.cache_folder().name.startswith("scalablevit-")


def test_the_name_depends_on_source_flags_compiler_and_processor(compiler, tmp_path, monkeypatch):
    own, name = os.environ["CXX"], compilation._key(os.environ["CXX"])
    assert compilation._key(own) == name
    sources = tmp_path / "sources"
    sources.mkdir()
    for file in compilation.SOURCES.glob("*.[hc]*"):
        (sources / file.name).write_bytes(file.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(compilation, "SOURCES", sources)
        assert compilation._key(own) == name
        with (sources / "vectors.h").open("a") as file:
            file.write("//\n")
        assert compilation._key(own) != name
    for attribute, value in [("FLAGS", ()), ("VARIANTS", ()), ("_processor", lambda: "another")]:
        with monkeypatch.context() as patch:
            patch.setattr(compilation, attribute, value)
            assert compilation._key(own) != name
    assert compilation._key(compilation.shutil.which("true")) != name


def test_two_processes_may_compile_at_once(compiler, tmp_path):
    code = "from scalablevit.kernels.cpu.compilation import library; assert library() is not None"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(in_cache(tmp_path)) == 1


@pytest.mark.parametrize("switched_off", [True, False])
def test_nothing_is_compiled_before_it_is_wanted(switched_off, compiler):
    code = (
        "import torch, scalablevit, scalablevit.kernels\n"
        f"scalablevit.kernels.use_native({False if switched_off else 'auto'!r})\n"
        "model = scalablevit.scalablevit_nano().eval()\n"
        f"if {switched_off}: model(torch.zeros(1, 3, 32, 32))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert compiler() == []
