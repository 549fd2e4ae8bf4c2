import pytest

pytest.register_assert_rewrite(
    "tests.kernels.maps", "tests.kernels.window_contract", "tests.kernels.list_contract"
)  # before anything imports them
