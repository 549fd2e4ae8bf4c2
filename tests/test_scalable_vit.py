import copy
import pickle

import pytest
import timm.models
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from scalablevit import ScalableViT
from scalablevit.design import PAPER
from scalablevit.kernels import use_native
from tests.networks import MIXED_DESIGNS, all_designs, randomise, small_network

DESIGNS = pytest.mark.parametrize("design", all_designs())


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96)


@DESIGNS
def test_features_head_and_logits(design, images):
    model = small_network(design).eval()
    maps = model.forward_features(images)
    assert maps.shape == (2, 32, 2, 3)
    torch.testing.assert_close(model.forward_head(maps), model(images), rtol=0, atol=0)
    pre_logits = model.forward_head(maps, pre_logits=True)
    assert pre_logits.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.get_classifier()(pre_logits), model(images), rtol=0, atol=0)


@DESIGNS
def test_every_parameter_gets_a_gradient(design, images):
    model = randomise(small_network(design))
    model(images).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("field", MIXED_DESIGNS)
def test_each_field_of_a_design_alone_makes_another_network_that_works(field, images):
    model = randomise(small_network(MIXED_DESIGNS[field], dropout=0.1))
    names = {name: tuple(p.shape) for name, p in model.named_parameters()}
    reference = {name: tuple(p.shape) for name, p in small_network("vit-pytorch").named_parameters()}
    same_parameters = field in ("layer_order", "norm_eps", "patch_dropout", "initialisation")
    assert (names == reference) == same_parameters
    model(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    rebuilt = ScalableViT(**model.config)
    rebuilt.load_state_dict(model.state_dict())
    torch.testing.assert_close(rebuilt.eval()(images), model.eval()(images), rtol=0, atol=0)
    if field in ("layer_order", "norm_eps"):  # no parameter tells, but the numbers do
        plain = small_network("vit-pytorch").eval()
        plain.load_state_dict(model.state_dict())
        assert not torch.equal(plain(images), model(images))


def test_the_head_can_be_the_other_designs(images):
    assert small_network("paper", head="linear").head_hidden_size == 32
    assert small_network("vit-pytorch", head="hidden")(images).shape == (2, 5)


@DESIGNS
def test_feature_info_says_what_intermediates_are(design, images):
    model = small_network(design).eval()
    final, maps = model.forward_intermediates(images)
    for info, feature in zip(model.feature_info, maps, strict=True):
        assert feature.shape == (2, info["num_chs"], 64 // info["reduction"], 96 // info["reduction"])
        assert model.get_submodule(info["module"]) is not None
    torch.testing.assert_close(final, model.forward_features(images), rtol=0, atol=0)
    last = model.forward_intermediates(images, indices=1, intermediates_only=True, norm=True)
    torch.testing.assert_close(last[0], final, rtol=0, atol=0)
    channels_last = model.forward_intermediates(images, indices=[1], output_fmt="NHWC", intermediates_only=True)
    assert torch.equal(channels_last[0].permute(0, 3, 1, 2), maps[1])
    early, chosen = model.forward_intermediates(images, indices=[0, 1], stop_early=True)
    assert torch.equal(early, maps[1])
    assert torch.equal(chosen[0], maps[0])
    with pytest.raises(ValueError, match="output_fmt is NLC"):
        model.forward_intermediates(images, output_fmt="NLC")


@DESIGNS
@pytest.mark.parametrize("norm", [False, True])
def test_the_last_map_is_normed_whether_it_is_asked_for_or_not(design, norm, images):
    model = randomise(small_network(design)).eval()
    last = model.forward_intermediates(images, indices=1, intermediates_only=True, norm=norm)[0]
    assert torch.equal(last, model.forward_features(images))
    model.prune_intermediate_layers(1, prune_norm=True)
    assert torch.equal(model.forward_features(images), last)


@DESIGNS
def test_chosen_maps_come_once_and_in_running_order(design, images):
    model = small_network(design).eval()
    maps = model.forward_intermediates(images, intermediates_only=True)
    chosen = model.forward_intermediates(images, [2, -4, 2], intermediates_only=True)
    assert [torch.equal(*pair) for pair in zip(chosen, [maps[0], maps[2]], strict=True)] == [True, True]


@DESIGNS
@pytest.mark.parametrize("indices", [1, [0, 2], [1]])
def test_pruned_models_have_no_unused_parameters(design, indices, images):
    model = small_network(design)
    expected = small_network(design)
    expected.load_state_dict(model.state_dict())
    before = expected.eval().forward_intermediates(images, indices, intermediates_only=True)
    taken = model.eval().prune_intermediate_layers(indices, prune_norm=True)
    after = model.forward_intermediates(images, taken, intermediates_only=True)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    model(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.num_classes == 0
    assert model.forward_features(images).shape[1] == model.num_features
    rebuilt = ScalableViT(**model.config)
    assert len(rebuilt.stages) == len(model.stages) == len(model.feature_info)


@DESIGNS
@pytest.mark.parametrize("num_classes", [0, 5])
def test_a_new_classifier_is_frozen_if_the_old_one_was(design, num_classes):
    model = small_network(design, num_classes=num_classes)
    model.reset_classifier(3)
    assert all(p.requires_grad for p in model.get_classifier().parameters())
    model.requires_grad_(False)
    model.reset_classifier(0)
    model.reset_classifier(4)
    assert not any(p.requires_grad for p in model.parameters())
    model.get_classifier().requires_grad_()
    model.reset_classifier(5)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "head.classifier.weight",
        "head.classifier.bias",
    ]


@DESIGNS
@pytest.mark.parametrize("prune_head", [False, True])
def test_a_head_of_another_width_goes_with_the_stage_it_belongs_to(design, prune_head, images):
    model = small_network(design, head_dropout=0.5).eval()
    logits = model(images)
    model.prune_intermediate_layers([3], prune_head=False)
    assert torch.equal(model(images), logits)
    model.prune_intermediate_layers((0, 2), prune_head=prune_head)
    assert model(images).shape == (2, 24, 4, 6)
    assert not any(module.training for module in model.modules())
    model.reset_classifier(3, "avg")
    assert model(images).shape == (2, 3)
    assert model.head_hidden_size == 24
    assert model.head.dropout.p == 0.5
    assert not any(module.training for module in model.modules())


@DESIGNS
def test_reset_classifier_keeps_the_hidden_layer(design, images):
    model = small_network(design).eval()
    before = model.forward_head(model.forward_features(images), pre_logits=True)
    model.reset_classifier(9)
    assert model(images).shape == (2, 9)
    assert model.num_classes == 9
    torch.testing.assert_close(model.forward_head(model.forward_features(images), pre_logits=True), before)
    model.reset_classifier(0)
    torch.testing.assert_close(model(images), before)
    with pytest.raises(ValueError, match="num_classes is -2"):
        model.reset_classifier(-2)


@DESIGNS
@pytest.mark.parametrize(("native", "part"), [(False, 3), ("auto", 2)])  # PyTorch's dropout keeps masks
def test_checkpointing_changes_nothing_but_memory(design, images, native, part):
    model = randomise(small_network(design, dropout=0.1, drop_path=0.2))

    def gradients(enable):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(3)
        saved = 0

        def pack(tensor):
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(images).square().sum()
        loss.backward()
        return [p.grad.clone() for p in model.parameters()], saved

    with use_native(native):
        (plain, much), (checkpointed, little) = gradients(False), gradients(True)
    for one, other in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert little < much / part


@DESIGNS
def test_drop_path_grows_linearly_over_attention_blocks(design):
    model = small_network(design, drop_path=0.9)
    rates = []
    for stage in model.stages:
        for layer in stage.layers:
            rates += [block.drop_path.rate for name, block in layer.named_children() if name != "peg"]
    expected = [0.1 * block for block in range(10) for _ in range(2)]  # a feed-forward has its attention's rate
    assert rates == pytest.approx(expected)
    assert all(type(rate) is float for rate in rates)
    model.set_drop_path(0.0)
    assert model.config["drop_path"] == 0.0
    with pytest.raises(ValueError, match="drop_path is 1"):
        model.set_drop_path(1)


def test_dropout_sits_where_the_design_says(images):
    for design, patches in (("vit-pytorch", 0.0), ("paper", 0.3)):
        model = small_network(design, dropout=0.3, head_dropout=0.1)
        assert model.stages[0].patch_embedding.dropout.p == patches
        layer = model.stages[1].layers[0]
        assert layer.ssa.branch.attention_dropout == layer.iwsa.branch.attention.attention_dropout == 0.3
        assert layer.ff1.branch.dropout.p == layer.ssa.branch.dropout.p == layer.iwsa.branch.dropout.p == 0.3
        assert model.head.dropout.p == 0.1
        assert not torch.equal(model(images), model(images))
        assert torch.equal(model.eval()(images), model(images))
    assert small_network(dropout=0.3, attention_dropout=0.0).stages[0].layers[0].ssa.branch.attention_dropout == 0.0


@DESIGNS
def test_weight_decay_leaves_peg_norms_and_biases_alone(design):
    model = small_network(design)
    spared = model.no_weight_decay()
    for name, parameter in model.named_parameters():
        assert (name in spared) == (parameter.ndim == 1 or ".peg." in name), name


@DESIGNS
def test_group_matcher_orders_parameters_by_depth(design):
    model = small_network(design)
    names = [name for name, _ in model.named_parameters()]
    fine = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    coarse = timm.models.group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    for groups, count in ((fine, 7), (coarse, 6)):  # the stem, five layers or four stages, the head
        depths = [groups[name] for name in names]
        assert depths == sorted(depths)
        assert len(set(depths)) == count


@DESIGNS
def test_copies_and_pickles_are_the_same_network(design, images):
    model = small_network(design).eval()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(images), model(images), rtol=0, atol=0)


@DESIGNS
def test_deterministic_algorithms(design, images):
    model = small_network(design)
    torch.use_deterministic_algorithms(True)
    try:
        gradients = []
        for _ in range(2):
            model.zero_grad()
            model(images).sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@DESIGNS
def test_from_the_meta_device_to_real_weights(design, images):
    model = small_network(design, device="meta")
    assert all(p.is_meta for p in model.parameters())
    torch.manual_seed(0)
    model.to_empty(device="cpu").init_weights()
    torch.manual_seed(0)
    reference = small_network(design)
    torch.manual_seed(0)
    reference.init_weights()
    reference.eval(), model.eval()
    torch.testing.assert_close(model(images), reference(images), rtol=0, atol=0)


def test_dtype_and_device_reach_every_parameter(images):
    model = small_network(PAPER, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(images.bfloat16()).dtype == torch.bfloat16


@DESIGNS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_near_float32_and_finite(design, dtype, images):
    torch.manual_seed(0)
    model = small_network(design)
    exact = model.forward_features(images)
    with torch.autocast("cpu", dtype=dtype):
        maps, logits = model.forward_features(images), model(images)
    logits.float().square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    assert ((maps - exact).norm() / exact.norm()).item() < (0.05 if dtype == torch.bfloat16 else 0.01)
    large = model.eval()(images * 1e3)  # nothing overflows where float32 does not
    with torch.autocast("cpu", dtype=dtype):
        assert bool(model(images * 1e3).isfinite().all())
    assert bool(large.isfinite().all())


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.zeros(3, 32, 32), ["[3, 32, 32]", "images[None]"]),
        (torch.zeros(32, 32), ["[32, 32]", "stack"]),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ["torch.uint8", "images.float() / 255"]),
        (torch.zeros(1, 32, 32, 3), ["[1, 32, 32, 3]", "32 channels", "built for 3", "permute"]),
    ],
)
def test_unusable_images_get_an_error_that_says_what_to_do(bad, words):
    for call in (small_network(), small_network().forward_intermediates):
        with pytest.raises(ValueError, match="images") as error:
            call(bad)
        for word in words:
            assert word in str(error.value)


@DESIGNS
def test_torchscript_and_symbolic_traces(design, images):
    model = randomise(small_network(design)).eval()
    traced = torch.fx.symbolic_trace(model)
    for x in (images, images[..., :7, :5]):  # to rounding: eager code may take attention and LIM in one kernel
        torch.testing.assert_close(traced(x), model(x), rtol=1e-5, atol=1e-5)


@DESIGNS
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:The TorchScript type system:UserWarning")
def test_torchscript_serves_every_size(design):
    model = randomise(small_network(design)).eval()
    scripted = torch.jit.script(model)
    for size in [(97, 131), (7, 5), (64, 64)]:
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(scripted(x), model(x), rtol=1e-5, atol=1e-5)


@DESIGNS
def test_hooks_and_adapters_on_any_linear_layer_take_part(design, images):
    model = small_network(design)
    linear_layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    seen = set()
    for grad in (False, True):
        seen.clear()
        handles = [layer.register_forward_hook(lambda module, *_: seen.add(module)) for layer in linear_layers]
        with torch.set_grad_enabled(grad):
            hooked = model(images)
        assert seen == set(linear_layers)
        for handle in handles:
            handle.remove()
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(model(images), hooked, rtol=1e-5, atol=1e-6)


@DESIGNS
def test_parameters_are_contiguous(design):
    assert all(p.is_contiguous() for p in small_network(design).parameters())


def test_a_new_classifier_has_the_device_and_type_of_the_model():
    model = small_network("paper", head="linear", num_classes=0, dtype=torch.bfloat16, device="meta")
    model.reset_classifier(4)
    assert model.get_classifier().weight.dtype == torch.bfloat16
    assert model.get_classifier().weight.is_meta


@DESIGNS
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_torchscript_traces_can_be_saved(design, images, tmp_path):
    model = randomise(small_network(design)).eval()
    torch.jit.trace(model, images, check_trace=False).save(str(tmp_path / "traced.pt"))
    loaded = torch.jit.load(str(tmp_path / "traced.pt"))
    torch.testing.assert_close(loaded(images), model(images), rtol=1e-5, atol=1e-5)


def test_second_derivatives_and_many_gradients_at_once():
    model = randomise(small_network()).eval()
    images = torch.randn(1, 3, 20, 24)
    one_by_one = torch.autograd.functional.jacobian(model, images)
    torch.testing.assert_close(torch.autograd.functional.jacobian(model, images, vectorize=True), one_by_one)
    images.requires_grad_()

    def penalty():
        (grad,) = torch.autograd.grad(model(images).square().sum(), images, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), images)[0]

    with use_native(False), sdpa_kernel(SDPBackend.MATH):
        expected = penalty()
    torch.testing.assert_close(penalty(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
