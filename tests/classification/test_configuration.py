"""Options are checked where they are made."""

import pytest

from scalablevit.classification.configuration import TrainConfig


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": "resnet50"}, "model is 'resnet50'; it must be one of 'scalablevit_nano'"),
        ({"epochs": 0}, "epochs is 0; it must be an integer of at least 1"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be a number above 0"),
        ({"flip": 1.1}, "flip is 1.1; it must be a number of at least 0 and at most 1"),
        ({"epochs": 2, "warmup_epochs": 3}, "warmup_epochs is 3; it must be a number of at least 0 and at most 2"),
        (
            {"first_learning_rate": 1e-6 - 1},
            "first_learning_rate is -0.999999; it must be a number of at least 0 and at most 1",
        ),
        ({"smallest_area": 0}, "smallest_area is 0; it must be a number above 0 and at most 1"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0; it must be a number from 0 up to, and without, 1"),
        ({"channels": 4}, r"channels is 4; it must be 1 \(grey\), 3 \(colour\), or left out"),
        ({"random_crop": "zoom"}, "random_crop is 'zoom'; it must be one of 'pad', 'resize', 'none'"),
        ({"optimizer": "nadamv"}, r"optimizer is 'nadamv'; .* 'muon', 'adamw', or one of timm's .*mean nadam"),
        ({"optimizer": "adahessian", "learning_rate": 0.1}, "which needs second derivatives"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd', for which no learning rate is known here: give --learning-rate"),
        ({"keep": "all"}, "keep is 'all'; it must be one of 'best', 'last'"),
        ({"keep": "last", "patience": 3}, "keep is 'last' and patience 3: .* leave one of them out"),
        ({"layer_decay": 0}, "layer_decay is 0; it must be a number above 0 and at most 1"),
        ({"freeze_backbone": True}, "there are no trained weights to keep: give --weights"),
        ({"freeze_backbone": True, "weights": "x", "layer_decay": 0.5}, "below the head nothing learns"),
        ({"precision": "16"}, "precision is '16'; it must be one of"),
        ({"seed": -1}, "seed is -1"),
        ({"size": 0}, "size is 0"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
    ],
)
def test_impossible_options_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**wrong)


def test_limits_themselves_are_possible():
    TrainConfig(flip=0, erasing=1, warmup_epochs=0, clip=0, smallest_area=1.0, final_learning_rate=0, label_smoothing=0)
