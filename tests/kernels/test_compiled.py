"""The kernels compiled for GPUs that need not be there: registers, spills and shared memory, as ptxas reports them.

It shows what the interpreter cannot: types that Triton's compiler refuses, and kernels that do not fit.
"""

import os
import re
import subprocess

import pytest
import torch

from scalablevit.kernels.triton_selection import LIMITS, MAX_KEYS, MAX_LIST_WIDTH

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
SHARED_BYTES = 99 * 1024  # of a block, on the smallest GPUs of compute capability 8 and above

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(kernel, constants, dtype, capability):
    """The kernel as its launcher would have it compiled for maps of `dtype`, all aligned and without gaps."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = dict(constants)
    names = {"num_warps", "num_stages", "enable_fp_fusion"} & set(constants)
    options = {name: constants.pop(name) for name in names}
    signature, aligned = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name == "scale":
            signature[name] = "fp32"
        elif name in kernel.do_not_specialize:
            signature[name] = "i32"
        else:
            signature[name] = "i32" if "stride" in name else POINTERS[dtype]
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def assert_fits(binary, tmp_path):
    import triton

    assert binary.metadata.shared <= SHARED_BYTES
    file = tmp_path / "kernel.cubin"
    file.write_bytes(binary.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
    assert 0 < registers <= 255
    assert (stack, local) == (0, 0), f"{binary.name} spills: {usage}"


def window_constants(dtype, tokens, width):
    from scalablevit.kernels import window_attention as launcher

    side = int(tokens**0.5)
    query_key, value = (torch.empty(1, side, side, channels, dtype=dtype) for channels in (4 * width, 2 * width))
    return {**launcher.constants(query_key, value, 2, side), "HAS_LIM": True}


# Float32 spills on GPUs before 9.0, whose tensor cores take all their operands from registers.
LARGEST = [(dtype, *pair, 90) for dtype in (torch.float32, torch.bfloat16) for pair in LIMITS[dtype]]
LARGEST += [(torch.bfloat16, *pair, 80) for pair in LIMITS[torch.bfloat16]]


@pytest.mark.parametrize("kernel", ["forward_kernel", "backward_kernel"])
@pytest.mark.parametrize(("dtype", "tokens", "width", "capability"), LARGEST)
def test_the_largest_windows_that_are_taken_fit(dtype, tokens, width, capability, kernel, tmp_path):
    from scalablevit.kernels import window_kernels

    constants = window_constants(dtype, tokens, width)
    assert_fits(compiled(getattr(window_kernels, kernel), constants, dtype, capability), tmp_path)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("widths", [(40, 32), (MAX_LIST_WIDTH, MAX_LIST_WIDTH)], ids=str)
def test_the_longest_lists_that_are_taken_fit(widths, capability, tmp_path):
    from scalablevit.kernels import short_attention as launcher
    from scalablevit.kernels import short_kernels

    query, value = (torch.empty(1, 2, MAX_KEYS, width, dtype=torch.bfloat16) for width in widths)
    for kernel, queries in [
        (short_kernels.forward_kernel, launcher.FORWARD_QUERIES),
        (short_kernels.backward_kernel, launcher.BACKWARD_QUERIES),
    ]:
        constants = launcher.constants(query, value, queries)
        assert_fits(compiled(kernel, constants, torch.bfloat16, capability), tmp_path)


def test_strides_are_not_held_to_32_bits():
    from scalablevit.kernels import short_kernels, window_kernels

    for module in (window_kernels, short_kernels):
        for kernel in (module.forward_kernel, module.backward_kernel):
            strides = [parameter for parameter in kernel.params if "stride" in parameter.name]
            assert strides
            assert not any(parameter.annotation_type for parameter in strides)


def test_a_kernel_that_spills_is_found(tmp_path):
    from scalablevit.kernels import window_kernels

    constants = window_constants(torch.float32, 64, 64)
    with pytest.raises(AssertionError, match="spills"):
        assert_fits(compiled(window_kernels.backward_kernel, constants, torch.float32, 90), tmp_path)
