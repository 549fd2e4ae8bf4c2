"""Every option of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from scalablevit.classification.augmentation import ErasingMode, RandomCrop
from scalablevit.classification.learning_rates import LearningRateRule
from scalablevit.classification.option_checks import check_choice, check_optimizer, check_range, check_together
from scalablevit.classification.policies import check_policy
from scalablevit.configuration import check_count, check_probability
from scalablevit.variants import VARIANTS

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
NonFinite = Literal["stop", "skip"]
Keep = Literal["best", "last"]
Balance = Literal["none", "weights", "sampling"]
Log = Literal["tensorboard", "wandb"]
Strategy = Literal["auto", "ddp", "fsdp"]
Normalisation = Literal["measured", "imagenet"]

# Options that a run may be resumed with other values of: its weights are the same whatever they are, but for rounding
# on other or more devices or compiled, and for steps that would have ended it.
MAY_CHANGE = (
    "accelerator",
    "devices",
    "nodes",
    "strategy",
    "workers",
    "memory_mb",
    "max_unreadable",
    "grad_checkpointing",
    "compile",
    "channels_last",
    "log",
    "checkpoint_every_steps",
    "checkpoint_every_minutes",
    "non_finite",
    "max_non_finite",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained. What is left out is chosen from the images; `planning.decide` says how.

    Args:
        model: Name of a variant; ``scalablevit models`` lists them. Default: that of the weights, or by the size.
        weights: What training starts from: a run folder, a folder in timm's layout by `save_model`, or a file of
            vit-pytorch or of the paper's authors. Default: from scratch.
        heads: For a file of vit-pytorch, which does not say it: the number of heads, one or one per stage. Default: as
            many as make them 32 wide.
        window_size: For such a file: the size of the windows, one or one per stage; None for the whole map. Default: no
            windows.
        size: Height and width that images are given to the model in, in pixels; one number for both. Default: what the
            images have (the median of the shorter sides), but at most 224.
        channels: 1 for grey, 3 for colour. Default: what the images have.
        normalisation: Mean and deviation that pixels are normalised by: "measured", those of the images, or, from
            weights, what they were trained with; "imagenet", ImageNet's.
        crop_fraction: Outside training, how much of an image is seen along its shorter side, in the centre. 0.875 is to
            resize to 256 and to cut out 224.
        train_split: Of a set by its name, or of idx files: the part to train on. Default: the one called train, or the
            only one.
        val_split: The part of it to validate with. Default: the one called val, validation, or the like; where there
            is none, images are drawn from those to train on.
        target_key: The column, or the field, that holds the label. Default: the only one of classes, or label.
        val_fraction: Of each class, where the data do not tell validation images apart.
        epochs: How often the model sees each image. Default: by the number of images.
        batch_size: Images per step, or, with `accumulate`, per part of a step, of all devices together. Default: 64,
            less for few images.
        accumulate: Batches whose gradients are added up for a step; more of them, and smaller, need less memory.
        optimizer: "muon" learns faster; "adamw" is what the paper's authors used. Or another of timm's, by its name,
            such as "sgd" or "lamb", with a `learning_rate`.
        learning_rate: The highest of the run; it is reached after the warm-up, and falls along a cosine from then on.
            Default: 0.005 for Muon, 0.001 for AdamW, times the square root of `batch_size` * `accumulate` / 64; a
            fifth of that from weights.
        learning_rate_rule: How that default grows with the images in a step: "root", as above; "linear", for AdamW
            alone, 0.0005 * `batch_size` * `accumulate` / 512, as the paper's authors have it.
        final_learning_rate: At the last step, as a fraction of the highest.
        first_learning_rate: Where the warm-up begins, as a fraction of the highest. A fraction, as groups of parameters
            have learning rates of their own.
        warmup_epochs: For how many epochs the learning rate rises. Default: 1, or a twentieth of all,
            but at most half of all.
        weight_decay: Per step, as a fraction of the learning rate. Norms, biases and PEG have none.
        layer_decay: Each layer learns so many times as fast as the one above it, for example 0.85 from weights; 1: all
            alike.
        freeze_backbone: Whether the head alone learns, and all else stays as the weights have it.
        clip: The norm of all gradients together is cut to this; 0 for no limit.
        label_smoothing: How much of each label is spread evenly over the classes.
        drop_path: Rate of stochastic depth of the last attention block.
        random_crop: "pad" moves the image by up to `padding` pixels; "resize" cuts out a random part and resizes it.
            Default: "pad" up to 64 pixels, "resize" above.
        padding: For the random crop "pad", in pixels. Default: a 28th of the size.
        smallest_area: For the random crop "resize", the smallest part, as a fraction of the image's area.
        flip: Probability that left and right are exchanged.
        rand_augment: A policy of RandAugment in timm's notation, for example rand-m9-mstd0.5-inc1; "none" for none.
        color_jitter: Brightness, contrast and saturation change by up to this part of them; 0 for not at all.
        erasing: Probability that a rectangle of the image is filled with something else.
        erasing_mode: With what: "noise", evenly from black to white; "pixel", a normal distribution with the images'
            mean and deviation; "const", their mean.
        mixup: Images are mixed in pairs, with a weight from the Beta distribution with this parameter; 0 for never.
        cutmix: Rectangles are exchanged in pairs, of an area from the Beta distribution with this parameter; 0 for
            never. With mixup too, each step draws one of both.
        cutmix_share: The probability that it is CutMix then.
        mix_probability: In so many of the steps images are mixed at all.
        balance: For classes of unequal size: "weights" weighs their losses, "sampling" shows images of each class as
            often.
        ema: Decay per step of an average of the weights, which is evaluated and saved in their place; less in the first
            steps, (1 + step) / (10 + step); 0 for none.
        keep: Which weights are saved at the end: those of the "best" epoch by the validation images, or of the "last".
        patience: After so many epochs that were no better than the best before, the run ends; 0 for never.
        seed: Of all that is random.
        accelerator: Where to train: "auto", "cpu", "gpu", "mps", or another that Lightning knows.
        devices: How many to train on, on each machine; "auto" for all. Default: one, or as many as torchrun or srun
            has started processes for.
        nodes: Machines. Default: one, or as many as torchrun or srun has started processes on.
        strategy: What the devices share: with "ddp" each holds the whole network, with "fsdp" (GPUs and adamw alone) a
            part of it. "auto": "ddp" for several.
        precision: Of the arithmetic.
        workers: Processes that read images; 0: the training process does. Default: 0 for small images in memory, else
            one per processor core, up to 8.
        memory_mb: Images that take up to so many megabytes when decoded are kept in memory.
        max_unreadable: The fraction of the images that may be unreadable. They are skipped, and listed in the report.
        grad_checkpointing: Whether activations are computed again on the way back instead of kept: less memory, longer.
        compile: Whether the network is compiled for the machine (`torch.compile`): some minutes at first, faster then.
        channels_last: Whether images and the weights of convolutions lie in memory with their channels last.
        log: Where metrics go beside metrics.csv: "tensorboard", "wandb" (Weights & Biases), or both.
        checkpoint_every_steps: After so many steps the state is saved, as it is after each epoch; 0 for no such limit.
        checkpoint_every_minutes: After so many minutes it is saved; 0 for no such limit.
        non_finite: Where the loss or a gradient is no finite number, "stop" ends the run, "skip" leaves the step out.
        max_non_finite: So many steps of a run may be left out.

    Raises:
        ValueError: If an option has no sense.
    """

    model: str | None = None
    weights: str | None = None
    heads: tuple[int, ...] | None = None
    window_size: tuple[int | None, ...] | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None
    normalisation: Normalisation = "measured"
    crop_fraction: float = 1.0
    train_split: str | None = None
    val_split: str | None = None
    target_key: str | None = None
    val_fraction: float = 0.2
    epochs: int | None = None
    batch_size: int | None = None
    accumulate: int = 1
    optimizer: str = "muon"
    learning_rate: float | None = None
    learning_rate_rule: LearningRateRule = "root"
    first_learning_rate: float = 0.0
    final_learning_rate: float = 0.01
    warmup_epochs: float | None = None
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    freeze_backbone: bool = False
    clip: float = 1.0
    label_smoothing: float = 0.1
    drop_path: float = 0.0
    random_crop: RandomCrop | None = None
    padding: int | None = None
    smallest_area: float = 0.35
    flip: float = 0.5
    rand_augment: str = "none"
    color_jitter: float = 0.0
    erasing: float = 0.0
    erasing_mode: ErasingMode = "noise"
    mixup: float = 0.0
    cutmix: float = 0.0
    cutmix_share: float = 0.5
    mix_probability: float = 1.0
    balance: Balance = "none"
    ema: float = 0.0
    keep: Keep = "best"
    patience: int = 0
    seed: int = 0
    accelerator: str = "auto"
    devices: int | Literal["auto"] | None = None
    nodes: int | None = None
    strategy: Strategy = "auto"
    precision: Precision = "32-true"
    workers: int | None = None
    memory_mb: int = 1024
    max_unreadable: float = 0.01
    grad_checkpointing: bool = False
    compile: bool = False
    channels_last: bool = False
    log: tuple[str, ...] = ()
    checkpoint_every_steps: int = 0
    checkpoint_every_minutes: float = 10.0
    non_finite: NonFinite = "stop"
    max_non_finite: int = 10

    def __post_init__(self) -> None:
        # YAML and the command line have lists, and a number where one is enough.
        size, heads, windows = (_as_tuple(getattr(self, name)) for name in ("size", "heads", "window_size"))
        object.__setattr__(self, "size", size * 2 if size is not None and len(size) == 1 else size)
        object.__setattr__(self, "heads", heads)
        object.__setattr__(self, "log", tuple(dict.fromkeys(_as_tuple(self.log) or ())))
        for log in self.log:
            check_choice("log", log, get_args(Log))
        object.__setattr__(self, "window_size", windows)
        check_optimizer(self.optimizer)
        check_choice("precision", self.precision, get_args(Precision))
        check_choice("strategy", self.strategy, get_args(Strategy))
        if self.devices is not None and self.devices != "auto":
            check_count("devices", self.devices)
        if self.nodes is not None:
            check_count("nodes", self.nodes)
        check_choice("non_finite", self.non_finite, get_args(NonFinite))
        check_choice("keep", self.keep, get_args(Keep))
        check_choice("erasing_mode", self.erasing_mode, get_args(ErasingMode))
        check_choice("balance", self.balance, get_args(Balance))
        check_choice("normalisation", self.normalisation, get_args(Normalisation))
        check_choice("learning_rate_rule", self.learning_rate_rule, get_args(LearningRateRule))
        if self.rand_augment != "none":
            check_policy(self.rand_augment)
        for name in ("grad_checkpointing", "freeze_backbone", "compile", "channels_last"):
            check_choice(name, getattr(self, name), (False, True))
        if self.model is not None:
            check_choice("model", self.model, tuple(VARIANTS))
        if self.random_crop is not None:
            check_choice("random_crop", self.random_crop, get_args(RandomCrop))
        for name, minimum in (("epochs", 1), ("batch_size", 1), ("padding", 0), ("workers", 0)):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), minimum=minimum)
        check_count("accumulate", self.accumulate)
        for name in ("seed", "memory_mb", "checkpoint_every_steps", "max_non_finite", "patience"):
            check_count(name, getattr(self, name), minimum=0)
        for name in ("label_smoothing", "drop_path", "ema"):
            check_probability(name, getattr(self, name))
        for name in (
            "flip",
            "erasing",
            "first_learning_rate",
            "final_learning_rate",
            "max_unreadable",
            "cutmix_share",
            "mix_probability",
        ):
            check_range(name, getattr(self, name), 0, 1)
        for name in ("weight_decay", "clip", "color_jitter", "mixup", "cutmix", "checkpoint_every_minutes"):
            check_range(name, getattr(self, name), 0)
        if self.learning_rate is not None:
            check_range("learning_rate", self.learning_rate, 0, above=True)
        if self.warmup_epochs is not None:
            check_range("warmup_epochs", self.warmup_epochs, 0, self.epochs)
        for name in ("smallest_area", "layer_decay", "crop_fraction"):
            check_range(name, getattr(self, name), 0, 1, above=True)
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction is {self.val_fraction!r}; it must lie between 0 and 1, for example 0.2")
        if self.size is not None:
            if len(self.size) != 2:
                raise ValueError(
                    f"size is {self.size}; it must be a height and a width in pixels, or one number for both"
                )
            for side in self.size:
                check_count("size", side)
            if self.padding is not None and self.padding >= min(self.size):
                raise ValueError(f"padding is {self.padding}; it must be smaller than the size, {min(self.size)}")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels is {self.channels!r}; it must be 1 (grey), 3 (colour), or left out")
        check_together(self)


def _as_tuple(value: Any) -> tuple[Any, ...] | None:
    return None if value is None else tuple(value) if isinstance(value, (list, tuple)) else (value,)
