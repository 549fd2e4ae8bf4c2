"""Kernels in Triton's interpreter, on the CPU. A variable chooses it before triton is imported, for a whole process:
`tests/kernels/test_interpreted.py` runs these files in processes of their own. To run one by hand:

    TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted
"""

import os

import pytest

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch):
    """The kernels switched on, and bfloat16 products of numbers: the interpreter multiplies the bits."""
    import triton.language as tl
    from triton.runtime import interpreter

    from scalablevit.kernels import use_triton

    builder = interpreter.InterpreterBuilder
    create_dot = builder.create_dot

    def create_dot_of_numbers(self, a, b, *rest):
        if a.dtype.scalar == tl.bfloat16:
            a, b = (self.create_fp_ext(x, tl.block_type(tl.float32, list(x.data.shape))) for x in (a, b))
        return create_dot(self, a, b, *rest)

    monkeypatch.setattr(builder, "create_dot", create_dot_of_numbers)
    with use_triton(True):
        yield
