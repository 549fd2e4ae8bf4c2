"""Networks whose weights stay packed from call to call, against the same networks without."""

import copy
import gc
import io
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import scalablevit
from scalablevit import prepack
from scalablevit.kernels import remembered, use_native
from scalablevit.kernels.cpu import compilation, kept_weights
from scalablevit.kernels.cpu.kept_weights import kept_weight
from tests.networks import all_designs, randomise, small_network

SIZES = [(97, 131), (32, 32), (7, 5)]


@pytest.fixture(autouse=True)
def nothing_else_is_kept(launcher):
    gc.collect()
    kept_weights._entries.clear()
    kept_weights._settle()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture
def network():
    return randomise(small_network()).eval()


def run(model, x, dtype=torch.float32):
    with torch.no_grad(), use_native(True), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model(x)


def expected_of(model, x, dtype=torch.float32):
    """By packing at each call."""
    return run(copy.deepcopy(model), x, dtype)


def assert_agree(found, expected, dtype=torch.float32, tolerance=None):
    tolerance = tolerance or {torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]
    assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("design", all_designs())
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_results_are_what_they_are_without(design, size, dtype):
    model, x = randomise(small_network(design)).eval(), torch.randn(2, 3, *size)
    expected = expected_of(model, x, dtype)
    prepack(model)
    for _ in range(2):
        assert_agree(run(model, x, dtype), expected, dtype)


def test_both_types_are_kept_beside_each_other(network):
    x = torch.randn(2, 3, 64, 64)
    expected = {dtype: expected_of(network, x, dtype) for dtype in (torch.float32, torch.bfloat16)}
    prepack(network)
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        assert_agree(run(network, x, dtype), expected[dtype], dtype)


def test_models_in_bfloat16(network):
    network, x = network.bfloat16(), torch.randn(2, 3, 64, 64).bfloat16()
    expected = expected_of(network, x)
    assert_agree(run(prepack(network), x), expected, torch.bfloat16)


def weights_of(model):
    return [parameter for parameter in model.parameters() if parameter.ndim == 2]


def step_of_training(model):
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    with use_native(True):
        model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    optimiser.step()


def load_another(model):
    model.load_state_dict(randomise(copy.deepcopy(model), seed=1).state_dict())


@torch.no_grad()
def change_one_number(model):
    model.stages[2].layers[0][1].branch.fc1.weight[3, 5] += 5


def change_data(model):
    for weight in weights_of(model):
        weight.data.mul_(1.5)


def change_place(model):
    for weight in weights_of(model):
        weight.data = weight.data * 1.5


def convert_and_back(model):
    model.half().float()


def average(model):
    for weight in weights_of(model):
        weight.data.lerp_(torch.randn_like(weight), 0.1)


def change_middle_lines(model):
    for weight in weights_of(model):
        lines = len(weight)
        weight.data[lines // 3 : 2 * lines // 3] *= 1.5


def change_last_numbers(model):
    for weight in weights_of(model):
        weight.data[:, weight.shape[1] // 2 :] *= 1.5


CHANGES = [
    step_of_training,
    load_another,
    change_one_number,
    change_data,
    change_place,
    convert_and_back,
    average,
    change_middle_lines,
    change_last_numbers,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_are_followed(change, network):
    x = torch.randn(2, 3, 64, 64)
    before = run(prepack(network), x)
    change(network)
    expected = expected_of(network, x)
    assert not torch.allclose(before, expected, rtol=1e-4)
    for _ in range(2):
        assert_agree(run(network, x), expected)


def test_weights_of_which_most_are_zero_are_followed(network):
    for weight in weights_of(network):
        weight.data.view(-1)[torch.arange(weight.numel()) % 10 != 7] = 0
    x = torch.randn(2, 3, 64, 64)
    before = run(prepack(network), x)
    change_data(network)
    expected = expected_of(network, x)
    assert not torch.allclose(before, expected, rtol=1e-4)
    assert_agree(run(network, x), expected)


def test_changes_of_weights_in_bfloat16_are_followed(network):
    network, x = network.bfloat16(), torch.randn(2, 3, 64, 64).bfloat16()
    before = run(prepack(network), x)
    change_data(network)
    expected = expected_of(network, x)
    assert not torch.allclose(before, expected, rtol=1e-1)
    assert_agree(run(network, x), expected, torch.bfloat16)


def test_weights_are_not_read_again(network):
    """What is said about numbers that are written past PyTorch: also, that anything is kept at all."""
    x = torch.randn(2, 3, 64, 64)
    before = run(prepack(network), x)
    network.stages[2].layers[0][1].branch.fc1.weight.data[3, 5] += 5
    expected = expected_of(network, x)
    assert torch.equal(run(network, x), before)
    assert not torch.allclose(before, expected, rtol=1e-4)
    assert_agree(run(prepack(network), x), expected)


def test_what_is_kept_lives_as_long_as_the_weights():
    network = small_network().eval()
    run(prepack(network), torch.randn(1, 3, 64, 64))
    kept = weakref.ref(kept_weight(weights_of(network)[0]))
    assert kept() is not None
    assert kept_weights._entries
    del network
    gc.collect()
    assert kept() is None
    assert not kept_weights._entries
    assert not remembered._settings["counts_changes"]


def test_it_is_let_go(network):
    x = torch.randn(1, 3, 64, 64)
    expected = run(network, x)
    run(prepack(network), x)
    kept = weakref.ref(kept_weight(weights_of(network)[0]))
    assert prepack(network, enabled=False) is network
    assert kept() is None
    assert kept_weight(weights_of(network)[0]) is None
    assert torch.equal(run(network, x), expected)


def test_copies_are_not_prepacked_and_files_hold_nothing_of_it(network):
    prepack(network)
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    for other in (copy.deepcopy(network), torch.load(file, weights_only=False)):
        assert all(kept_weight(weight) is None for weight in weights_of(other))
        assert all(torch.equal(a, b) for a, b in zip(weights_of(other), weights_of(network), strict=True))


def test_gradients_are_what_they_are_without(network):
    x, gradients = torch.randn(2, 3, 64, 64), []
    for model in (copy.deepcopy(network), prepack(network)):
        with use_native(True):
            model(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for expected, found in zip(*gradients, strict=True):
        assert_agree(found, expected, tolerance=1e-5)


def test_threads_may_come_at_once(network):
    x = torch.randn(2, 3, 64, 64)
    expected = expected_of(network, x)
    prepack(network)

    @torch.no_grad()
    def forward(_):
        return network(x)

    with ThreadPoolExecutor(4) as pool, use_native(True):  # the choice is one for all threads
        for found in pool.map(forward, range(12)):
            assert_agree(found, expected)


@torch.inference_mode()
def test_parameters_made_for_inference_are_not_kept_as_they_count_no_changes():
    network = prepack(randomise(small_network()).eval())
    assert all(kept_weight(weight) is None for weight in weights_of(network))


def test_weights_that_lie_in_one_place_and_count_apart_are_not_kept(network):
    first, second = (network.stages[2].layers[i].ff1.branch.fc1 for i in (0, 1))
    second.weight.data = first.weight.data
    assert kept_weight(prepack(network).stages[2].layers[0].ff1.branch.fc1.weight) is None
    x = torch.randn(2, 3, 64, 64)
    run(network, x)
    with torch.no_grad():
        first.weight[3, 5] += 5
    assert_agree(run(network, x), expected_of(network, x))


def test_weights_that_moved_are_let_go(network):
    kept = weakref.ref(kept_weight(weights_of(prepack(network))[0]))
    network.bfloat16()
    assert kept() is None
    assert not kept_weights._entries
    prepack(network)
    network.to_empty(device="meta")
    assert not kept_weights._entries


def test_parameters_can_be_swapped(network):
    prepack(network)
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        network.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    assert weights_of(network)[0].dtype == torch.float64
    assert not kept_weights._entries


def test_layers_that_share_a_weight(network):
    first, second = (network.stages[2].layers[i][1].branch.fc1 for i in (0, 1))
    second.weight = first.weight
    x = torch.randn(2, 3, 64, 64)
    expected = expected_of(network, x)
    assert_agree(run(prepack(network), x), expected)


def test_models_of_others_and_elsewhere_stay_as_they_are():
    sparse = nn.Module()
    sparse.weight = nn.Parameter(torch.eye(3).to_sparse())
    for model in (nn.Conv2d(3, 4, 1), nn.Linear(3, 4), small_network().to("meta"), sparse):
        assert prepack(model) is model
        assert prepack(model, enabled=False) is model
    with pytest.raises(TypeError, match=r"a str: give a torch\.nn\.Module"):
        prepack("scalablevit_small")


@pytest.mark.slow
def test_compiled_networks(network, dtype):
    x, tolerance = torch.randn(2, 3, 64, 64), None if dtype == torch.float32 else 4e-2
    compiled = torch.compile(prepack(network), fullgraph=True)
    for change in (None, change_one_number):
        if change is not None:
            change(network)
        expected = expected_of(network, x, dtype)
        for _ in range(2):
            assert_agree(run(compiled, x, dtype), expected, dtype, tolerance)


def test_published_sizes_agree(dtype, kernels):
    if kernels is not compilation.library():
        pytest.skip("emulated tiles take too long for it")
    model, x = randomise(scalablevit.scalablevit_small()).eval(), torch.randn(1, 3, 224, 224)
    expected = expected_of(model, x, dtype)
    assert_agree(run(prepack(model), x, dtype), expected, dtype)
