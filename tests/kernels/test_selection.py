"""The switch, without triton's interpreter: no kernel can run here, and nothing may depend on one."""

import subprocess
import sys

import pytest
import torch

import scalablevit.kernels
from scalablevit.kernels import selection, triton_selection, use_native, use_triton
from scalablevit.windows import window_attention

GPU = torch.device("cuda")
MAPS = torch.randn(1, 5, 6, 16), torch.randn(1, 5, 6, 8)


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_the_choice_holds_until_it_is_changed_or_its_block_ends():
    pytest.importorskip("triton")
    with use_triton("auto"):
        assert not selection.is_wanted(GPU)
        use_triton(True)
        assert selection.is_wanted(GPU)
        with use_triton(False):
            assert not selection.is_wanted(GPU)
        assert selection.is_wanted(GPU)
        with pytest.raises(RuntimeError, match="inside"), use_triton(False):
            raise RuntimeError("inside")
        assert selection.is_wanted(GPU)
    assert not selection.is_wanted(GPU)


def test_automatic_means_off_while_nothing_is_measured():
    assert selection.choices["triton"] == "auto"
    assert not selection.is_wanted(GPU)


@pytest.mark.parametrize("choice", ["on", None, 2])
def test_another_choice_is_refused(choice):
    with pytest.raises(ValueError, match='it must be True, False or "auto"'):
        use_triton(choice)


def test_tensors_on_the_cpu_fall_back():
    pytest.importorskip("triton")
    expected = window_attention(*MAPS, 2, 3, 0.5)
    with use_triton(True):
        assert not selection.takes_windows(*MAPS, 2, 3)
        assert torch.equal(window_attention(*MAPS, 2, 3, 0.5), expected)
        assert torch.equal(torch.ops.scalablevit.window_attention(*MAPS, 2, 3, 0.5), expected)


def test_native_kernels_stay_off_beside_triton():
    pytest.importorskip("triton")
    with use_triton(True), use_native(False):
        assert selection.rows_kernel(torch.zeros(2, 16), torch.float32) is None


def test_without_triton_all_works_and_only_switching_on_says_so(monkeypatch):
    for module in (selection, triton_selection):
        monkeypatch.setattr(module, "has_triton", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ImportError, match="pip install triton"):
        use_triton(True)
    monkeypatch.setitem(selection.choices, "triton", True)
    assert not selection.takes_windows(*MAPS, 2, 3)
    assert window_attention(*MAPS, 2, 3, 0.5).shape == (1, 5, 6, 8)


def test_neither_the_package_nor_a_forward_imports_triton():
    code = (
        "import sys, torch\n"
        "assert 'triton' not in sys.modules\n"
        "import scalablevit, scalablevit.kernels\n"
        "scalablevit.scalablevit_nano().eval()(torch.zeros(1, 3, 28, 28))\n"
        "print('triton' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_switch_is_public():
    assert scalablevit.kernels.__all__ == ["use_native", "use_triton"]
