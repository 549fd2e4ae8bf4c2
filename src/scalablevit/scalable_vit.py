"""The network.

Axes: b batch, h height, w width, c channels. Images and feature maps are (b, c, h, w) outside, (b, h, w, c) inside.
"""

# No annotations as strings here: FX copies them into the code of its graphs, which TorchScript then cannot read.
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from scalablevit.configuration import StageConfig, check_count, check_probability, stage_configs, take_indices
from scalablevit.design import Design, HeadKind, resolve_design
from scalablevit.heads import ClassifierHead
from scalablevit.initialisation import initialise
from scalablevit.layers import PatchEmbedding
from scalablevit.stages import Layer, Stage


class ScalableViT(nn.Module):
    """ScalableViT (Yang et al., ECCV 2022, arXiv:2203.10790), in either published form.

    Takes images of any height and width. Nothing is lost at the borders where a size is a multiple of each stage's
    stride times its reduction factor (of 32, in the paper's variants); see `ScalableSelfAttention`.

    Args:
        num_classes: Number of logits; 0 for a model whose head gives features.
        dim: Channels of the first stage, which double from stage to stage; or one value per stage.
        depth: Layers of each stage. A layer has an SSA and an IWSA, so the paper's depths are twice these.
        heads: Attention heads; one value, or one per stage, as all that follow up to `ff_expansion_factor`.
        reduction_factor: How many positions, along each axis, SSA reduces to one key.
        window_size: Height and width of IWSA's windows, in positions; None for the whole map.
        iwsa_dim_key: Width of IWSA's query and key heads.
        iwsa_dim_value: Width of IWSA's value heads.
        ssa_dim_key: Width of SSA's query and key heads.
        ssa_dim_value: Width of SSA's value heads.
        ff_expansion_factor: How many times wider the feed-forward's hidden layer is.
        channels: Channels of the images.
        dropout: Probability that an activation is zeroed, in training, after each output projection and in the
            feed-forward (and after each patch embedding, where the design says so).
        design: ``"vit-pytorch"``, ``"paper"``, or a `scalablevit.design.Design`.
        attention_dropout: Probability that an attention weight is zeroed, in training; None: as `dropout`.
        head_dropout: Probability that a feature is zeroed before the classifier, in training.
        drop_path: Rate of stochastic depth of the last attention block; it grows linearly from 0 in the first.
        global_pool: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""`` for logits at each position.
        head: ``"linear"``, ``"hidden"`` (a layer of 4096 units before the classifier), or None for the design's.
        patch_size: Stride of the first patch embedding, in pixels; its kernel is ``2 * patch_size - 1`` wide.
        device: Where parameters are made.
        dtype: Type of the parameters.

    Attributes:
        num_classes: As given.
        num_features: Channels of the last stage.
        head_hidden_size: Width of what `forward_head` gives with ``pre_logits=True``.
        in_chans: Channels of the images (`channels`, under the name that timm uses).
        feature_info: For each stage its channels (``num_chs``), stride in pixels (``reduction``) and ``module``.
        pretrained_cfg: What is known of the weights (timm's fields: image size, mean, names of classes ...), set by
            `scalablevit.load_model` and by timm, and kept by `scalablevit.save_model`; None for a new network.
        has_new_classifier: Whether `reset_classifier` has put another in its place, so that names of classes are void.
        config: The arguments that make this network again, unless it was pruned; strings, numbers, booleans and lists,
            fit for JSON.

    Raises:
        ValueError: If an argument has no sense, alone or with the others; it names the argument, value and fix.
    """

    __jit_unused_properties__ = ("config",)

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int | Sequence[int],
        depth: int | Sequence[int],
        heads: int | Sequence[int],
        reduction_factor: int | Sequence[int],
        window_size: int | Sequence[int | None] | None = None,
        iwsa_dim_key: int | Sequence[int] = 32,
        iwsa_dim_value: int | Sequence[int] = 32,
        ssa_dim_key: int | Sequence[int] = 32,
        ssa_dim_value: int | Sequence[int] = 32,
        ff_expansion_factor: int | Sequence[int] = 4,
        channels: int = 3,
        dropout: float = 0.0,
        design: str | Design | dict[str, Any] = "vit-pytorch",
        attention_dropout: float | None = None,
        head_dropout: float = 0.0,
        drop_path: float = 0.0,
        global_pool: str = "avg",
        head: HeadKind | None = None,
        patch_size: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        design = resolve_design(design)
        stages = stage_configs(
            depth=depth,
            dim=dim,
            heads=heads,
            reduction_factor=reduction_factor,
            window_size=window_size,
            iwsa_dim_key=iwsa_dim_key,
            iwsa_dim_value=iwsa_dim_value,
            ssa_dim_key=ssa_dim_key,
            ssa_dim_value=ssa_dim_value,
            ff_expansion_factor=ff_expansion_factor,
        )
        dropout = check_probability("dropout", dropout)
        attention_dropout = dropout if attention_dropout is None else attention_dropout
        attention_dropout = check_probability("attention_dropout", attention_dropout)
        head_dropout = check_probability("head_dropout", head_dropout)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}

        self.design = design
        self.num_classes = check_count("num_classes", num_classes, minimum=0)
        self.in_chans = check_count("channels", channels)
        self.num_features = stages[-1].dim
        self.pretrained_cfg: dict[str, Any] | None = None
        self.has_new_classifier = False
        self.global_pool = global_pool
        self.patch_size = check_count("patch_size", patch_size)
        self.drop_path = check_probability("drop_path", drop_path)

        self.stages = nn.Sequential()
        self.feature_info: list[dict[str, Any]] = []
        dim_in = channels
        for index, stage in enumerate(stages):
            stride = patch_size if index == 0 else 2
            is_last = index == len(stages) - 1
            normed = is_last if design.output_norm == "last stage" else not is_last
            patch_embedding = PatchEmbedding(
                dim_in,
                stage.dim,
                stride=stride,
                norm=nn.LayerNorm(stage.dim, eps=design.norm_eps, **factory) if design.patch_norm else nn.Identity(),
                dropout=dropout if design.patch_dropout else 0.0,
                **factory,
            )
            layers = [
                Layer(
                    stage,
                    design,
                    peg=layer == 0,
                    dropout=dropout,
                    attention_dropout=attention_dropout,
                    **factory,
                )
                for layer in range(stage.depth)
            ]
            norm = nn.LayerNorm(stage.dim, eps=design.norm_eps, **factory) if normed else nn.Identity()
            self.stages.append(Stage(patch_embedding, layers, norm))
            reduction = patch_size * 2**index
            self.feature_info.append({"num_chs": stage.dim, "reduction": reduction, "module": f"stages.{index}"})
            dim_in = stage.dim

        self.head = ClassifierHead(
            self.num_features,
            num_classes,
            kind=design.head if head is None else head,
            norm_eps=design.norm_eps if design.output_norm == "every stage" else None,
            pooling=global_pool,
            dropout=head_dropout,
            **factory,
        )
        columns = {name: [getattr(stage, name) for stage in stages] for name in StageConfig.__dataclass_fields__}
        self._arguments: dict[str, Any] = {
            **columns,
            "channels": channels,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "head_dropout": head_dropout,
            "patch_size": patch_size,
        }
        self.set_drop_path(drop_path)
        if design.initialisation == "paper":  # PyTorch's own has been drawn where the modules were made
            self.init_weights()

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make this network again, unless it was pruned."""
        return {
            "num_classes": self.num_classes,
            **self._arguments,
            "drop_path": self.drop_path,
            "global_pool": self.global_pool,
            "head": self.head.kind,
            "design": self.design.to_dict(),
        }

    @property
    def head_hidden_size(self) -> int:
        """Width of what `forward_head` gives with ``pre_logits=True``."""
        return self.head.features

    def forward(self, images: Tensor) -> Tensor:
        """Logits (b, num_classes) of images (b, channels, height, width)."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """The last feature map, (b, num_features, h, w), of images (b, channels, height, width).

        Raises:
            ValueError: If the images have another rank, type or number of channels.
        """
        check_images(images, self.in_chans)
        return self.stages(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (b, num_classes) of a feature map; with `pre_logits` the classifier's input (b, head_hidden_size)."""
        return self.head(maps, pre_logits)

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The feature maps of chosen stages.

        Args:
            images: (b, channels, height, width).
            indices: Which stages: the last n for an integer n, all for None, or their positions in any order.
            norm: Changes nothing: a norm that ends a stage belongs to it, and its map is always normed. timm asks for
                the argument.
            stop_early: Whether to stop after the last chosen stage.
            output_fmt: ``"NCHW"``, (b, c, h, w), or ``"NHWC"``.
            intermediates_only: Whether to leave out the last feature map.

        Returns:
            The maps of the chosen stages in running order; before them, unless `intermediates_only`, what
            `forward_features` gives (with `stop_early`: the map of the last stage that ran).

        Raises:
            ValueError: If `indices` or `output_fmt` is not possible, or the images are not.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt is {output_fmt}; it must be NCHW or NHWC")
        taken = take_indices(len(self.stages), indices)
        check_images(images, self.in_chans)
        last = taken[-1] if stop_early else len(self.stages) - 1
        x = images.permute(0, 2, 3, 1)
        maps: list[Tensor] = []
        for index, stage in enumerate(self.stages):
            if index <= last:
                x = stage(x)
                if index in taken:
                    maps.append(x.permute(0, 3, 1, 2) if output_fmt == "NCHW" else x)
        if intermediates_only:
            return maps
        return x.permute(0, 3, 1, 2), maps

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the stages after the last of `indices`, and on request the head.

        Args:
            indices: As in `forward_intermediates`.
            prune_norm: Changes nothing: a norm that ends a stage goes with it, and stays with it.
            prune_head: Whether to remove the classifier and the pooling. They go in any case with the last stage, of
                whose width they are.

        Returns:
            The positions of the stages that `indices` means.

        Raises:
            ValueError: If an index lies outside the stages.
        """
        taken = take_indices(len(self.stages), list(indices) if isinstance(indices, Iterable) else indices)
        kept = taken[-1] + 1
        is_shortened = kept < len(self.stages)
        self.stages = self.stages[:kept]
        self.stages.training = self.training  # the sequence is new, what it holds is not
        self.feature_info = self.feature_info[:kept]
        self.num_features = self.feature_info[-1]["num_chs"]
        for name in StageConfig.__dataclass_fields__:
            self._arguments[name] = self._arguments[name][:kept]
        if prune_head or is_shortened:
            dropout = self.head.dropout.p
            head = ClassifierHead(self.num_features, 0, kind="linear", norm_eps=None, pooling="", dropout=dropout)
            self.head = head.train(self.training)
            self.num_classes, self.global_pool = 0, ""
        return taken

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or a `torch.nn.Identity` if there are no classes."""
        return self.head.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a new linear layer (none for 0 classes) in the classifier's place. A hidden layer of the head stays.

        The new layer has the device and type of the model, and is frozen if the old one was; where there was none, if
        all of the model is. So a linear layer on a frozen model is thawed by ``get_classifier().requires_grad_()``.

        Args:
            num_classes: Number of logits from now on.
            global_pool: New pooling; None: unchanged.

        Raises:
            ValueError: If `num_classes` is negative, or the pooling unknown or of another width than the head's layers.
        """
        check_count("num_classes", num_classes, minimum=0)
        like = next(self.parameters())
        old = list(self.head.classifier.parameters()) or list(self.parameters())
        requires_grad = any(parameter.requires_grad for parameter in old)
        self.head.reset(num_classes, global_pool, requires_grad=requires_grad, device=like.device, dtype=like.dtype)
        self.num_classes = num_classes
        self.global_pool = self.head.pool.pooling
        self.has_new_classifier = True

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether each layer is computed again in the backward pass instead of keeping its activations."""
        for stage in self._stages():
            stage.grad_checkpointing = enable

    def set_drop_path(self, rate: float) -> None:
        """Sets stochastic depth: linear from 0 in the first attention block to `rate` in the last.

        Raises:
            ValueError: If `rate` is no number from 0 up to, and without, 1.
        """
        self.drop_path = check_probability("drop_path", rate)
        layers = [layer for stage in self._stages() for layer in stage.layers if isinstance(layer, Layer)]
        last = max(2 * len(layers) - 1, 1)
        for index, layer in enumerate(layers):
            layer.set_drop_path([self.drop_path * block / last for block in (2 * index, 2 * index + 1)])

    def init_weights(self) -> None:
        """Draws all parameters anew, as the design's `initialisation` says."""
        initialise(self, self.design.initialisation)

    def _stages(self) -> list[Stage]:
        return [stage for stage in self.stages if isinstance(stage, Stage)]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort parameter names by depth, for layer-wise learning rates (timm's convention)."""
        if coarse:
            return {"stem": r"^stages\.0\.patch_embedding", "blocks": r"^stages\.(\d+)"}
        layers = [
            (r"^stages\.(\d+)\.patch_embedding", (0,)),
            (r"^stages\.(\d+)\.layers\.(\d+)", None),
            (r"^stages\.(\d+)\.norm", (99999,)),
        ]
        return {"stem": r"^stages\.0\.patch_embedding", "blocks": layers}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone: PEG's, norms' and biases."""
        return {name for name, p in self.named_parameters() if p.ndim <= 1 or ".peg." in name}


def check_images(images: Tensor, channels: int) -> None:
    """Checks that images are a floating-point tensor (b, channels, height, width).

    Raises:
        ValueError: If they are not; the message says what to do.
    """
    shape = list(images.shape)
    if images.dim() != 4:
        fix = "add a batch axis with images[None]" if images.dim() == 3 else "stack images along a first axis"
        raise ValueError(f"images have the shape {shape}; it must be (batch, {channels}, height, width): {fix}")
    if not images.is_floating_point():
        raise ValueError(
            f"images are of type {images.dtype}; convert them with images.float() / 255 and normalise them"
            " with the mean and standard deviation that the model was trained with"
        )
    if shape[1] != channels:
        raise ValueError(
            f"images have the shape {shape}, which is {shape[1]} channels, but the model was built for {channels}:"
            " build it with the images' number of channels, or permute images that have their channels last"
        )


torch.fx.wrap("check_images")
