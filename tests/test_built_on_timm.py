"""Packages that take timm's models take ours: segmentation, detection, transformers."""

from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from scalablevit import load_model, save_model
from scalablevit.images import read_image
from scalablevit.preprocessing import Preprocessing
from scalablevit.sample import sample_images
from scalablevit.timm_models import TimmScalableViT
from scalablevit.weights import read_config
from tests.networks import randomise

NAME = "scalablevit_tiny"

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the other packages


def train_one_step(model, loss):
    """Takes a step; every parameter has a gradient, and the backbone moves."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    backbone = next(module for module in model.modules() if isinstance(module, TimmScalableViT))
    before = nn.utils.parameters_to_vector(backbone.parameters()).detach()
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not torch.equal(nn.utils.parameters_to_vector(backbone.parameters()), before)


# segmentation_models_pytorch


@pytest.mark.parametrize("decoder", ["FPN", "UPerNet", "Unet"])
def test_segmentation_trains(decoder):
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = getattr(smp, decoder)(f"tu-{NAME}", encoder_weights=None, in_channels=4, classes=3).train()
    logits = model(torch.randn(2, 4, 64, 96))
    assert logits.shape == (2, 3, 64, 96)
    train_one_step(model, nn.functional.cross_entropy(logits, torch.randint(3, (2, 64, 96))))


def test_segmentation_sees_our_feature_maps():
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.FPN(f"tu-{NAME}", encoder_weights=None).eval()
    images = torch.randn(1, 3, 64, 96)
    maps = model.encoder(images)
    assert [feature.shape[1] for feature in maps] == model.encoder.out_channels == [3, 0, 64, 128, 192, 384]
    network = timm.create_model(NAME).eval()
    # The encoder's model has no head.
    network.load_state_dict(model.encoder.model.model.state_dict(), strict=False)
    for one, other in zip(maps[2:], network.forward_intermediates(images, intermediates_only=True), strict=True):
        assert torch.equal(one, other)


def test_segmentation_of_sizes_that_32_does_not_divide():
    smp = pytest.importorskip("segmentation_models_pytorch")
    images = torch.randn(1, 3, 70, 101)
    for decoder in (smp.FPN, smp.UPerNet):
        with pytest.raises(RuntimeError, match=r"pad your images to shape \(96, 128\)"):
            decoder(f"tu-{NAME}", encoder_weights=None)(images)
    assert smp.Unet(f"tu-{NAME}", encoder_weights=None).eval()(images).shape == (1, 1, 70, 101)


def test_segmentation_on_nano_whose_first_map_has_half_the_size():
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.Unet("tu-scalablevit_nano", encoder_weights=None, encoder_depth=4, decoder_channels=(32, 16, 8, 8))
    assert model.encoder.out_channels == [3, 32, 64, 96, 128]
    assert model(torch.randn(2, 3, 32, 48)).shape == (2, 1, 32, 48)


# torchvision


class Pyramid(nn.Module):
    """Feature maps of a timm model, at 32 channels each, and one or two coarser ones."""

    out_channels = 32

    def __init__(self, out_indices, extra_blocks):
        super().__init__()
        self.body = timm.create_model(NAME, features_only=True, out_indices=out_indices)
        self.pyramid = FeaturePyramidNetwork(self.body.feature_info.channels(), self.out_channels, extra_blocks)

    def forward(self, images):
        return self.pyramid(OrderedDict((str(level), feature) for level, feature in enumerate(self.body(images))))


def generated_images(seed=0):
    """Two images of different sizes, each with bright boxes on noise, and what a detector should find there."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for (height, width), corners in [((90, 128), [(10, 20, 60, 80)]), ((101, 77), [(5, 5, 50, 90), (40, 30, 70, 95)])]:
        image = 0.3 * torch.rand(3, height, width, generator=generator)
        masks = torch.zeros(len(corners), height, width, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, corners, strict=True):
            mask[top:bottom, left:right] = 1
            image[:, top:bottom, left:right] += 0.5
        labels = torch.arange(1, 1 + len(corners))
        images.append(image)
        targets.append({"boxes": torch.tensor(corners, dtype=torch.float32), "labels": labels, "masks": masks})
    return images, targets


@pytest.mark.parametrize(
    ("detector", "out_indices", "extra_blocks"),
    [
        pytest.param(RetinaNet, (1, 2, 3), lambda: LastLevelP6P7(32, 32), id="RetinaNet"),
        pytest.param(MaskRCNN, (0, 1, 2, 3), LastLevelMaxPool, id="Mask R-CNN"),
    ],
)
def test_detectors_train_and_find_boxes_inside_the_image(detector, out_indices, extra_blocks):
    torch.manual_seed(0)
    model = detector(Pyramid(out_indices, extra_blocks()), num_classes=3, min_size=96, max_size=160).train()
    images, targets = generated_images()
    train_one_step(model, sum(model(images, targets).values()))
    with torch.no_grad():
        found = model.eval()(images)
    for image, result in zip(images, found, strict=True):
        height, width = image.shape[1:]
        assert bool((result["boxes"] >= 0).all())
        assert bool((result["boxes"] <= torch.tensor([width, height, width, height])).all())


# transformers


@pytest.fixture
def saved(tmp_path):
    """A folder by `save_model`, and the model in it."""
    model = randomise(timm.create_model("scalablevit_nano", num_classes=3, global_pool="max")).eval()
    save_model(model, tmp_path / "saved", labels=["cat", "dog", "owl"])
    return tmp_path / "saved", model


def test_transformers_classifies_as_we_do(saved):
    transformers = pytest.importorskip("transformers")
    folder, model = saved
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    classifier = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    assert classifier.config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    preprocessing = Preprocessing.from_pretrained_cfg(read_config(folder)["pretrained_cfg"])
    [path] = sample_images(1)
    photo = read_image(path, channels=3).resize((90, 60))
    inputs = processor(photo)["pixel_values"]
    expected = preprocessing.normalise(preprocessing.to_pixels(photo))
    torch.testing.assert_close(inputs[0], expected, rtol=0, atol=1e-6)
    output = classifier(inputs, labels=torch.tensor([1]), output_hidden_states=True)
    assert torch.equal(output.logits, model(inputs))
    assert output.loss.isfinite()
    for one, other in zip(output.hidden_states, model.forward_intermediates(inputs)[1], strict=True):
        assert torch.equal(one, other)


def test_transformers_saves_what_timm_and_we_read(saved, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder, model = saved
    transformers.AutoModelForImageClassification.from_pretrained(folder).save_pretrained(tmp_path / "again")
    images = torch.randn(1, 3, 50, 40)
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path}/again", pretrained=True).eval()(images), model(images))
    assert torch.equal(load_model(tmp_path / "again")(images), model(images))


def test_transformers_takes_backbones_and_other_classes(saved, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder, model = saved
    images = torch.randn(2, 3, 50, 40)
    backbone = transformers.TimmBackbone.from_pretrained(f"local-dir:{folder}", out_indices=(0, 3)).eval()
    expected = model.forward_intermediates(images, [0, 3], intermediates_only=True)
    for one, other in zip(backbone(images).feature_maps, expected, strict=True):
        assert torch.equal(one, other)
    assert backbone.channels == [32, 128]
    encoder = transformers.AutoModel.from_pretrained(folder).eval()
    assert torch.equal(encoder(images).last_hidden_state, model.forward_features(images))
    other = transformers.AutoModelForImageClassification.from_pretrained(
        folder, num_labels=5, ignore_mismatched_sizes=True
    ).eval()
    assert other(images).logits.shape == (2, 5)
    assert torch.equal(other.timm_model.forward_features(images), model.forward_features(images))
    other.timm_model.reset_classifier(5, "avg")
    other.config.model_args["global_pool"] = "avg"
    other.save_pretrained(tmp_path / "other")
    assert torch.equal(load_model(tmp_path / "other")(images), other(images).logits)
