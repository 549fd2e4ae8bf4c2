"""ScalableViT-nano, a ResNet-18 and a Swin of its size on all of Fashion-MNIST, by one recipe; scores of some seeds.

    python benchmarks/fashion_mnist.py DATA --out benchmarks/results/fashion_mnist.json --runs runs/fashion --seeds 0 1

DATA is Fashion-MNIST in any form that `scalablevit train` takes; idx files and torchvision's set need
val_split=test. Each network is trained on the 60,000 images by the
recipe small-images, and scored on the 10,000 test images after its last epoch: those choose nothing. Options of
`TrainConfig` in place of the recipe's may be given as NAME=VALUE, for example epochs=5.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from torch import nn

import scalablevit
from scalablevit.benchmarking.comparison import machine
from scalablevit.benchmarking.cost import count_macs, count_parameters
from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.fitting import fit
from scalablevit.classification.preparation import prepare
from scalablevit.classification.run_folder import RunFolder
from scalablevit.classification.stopping import StopSignals
from scalablevit.classification.task import ClassificationTask
from scalablevit.recipes import read_recipe


def nano(classes: int, channels: int, drop_path: float) -> nn.Module:
    return scalablevit.scalablevit_nano(classes, channels=channels, drop_path=drop_path)


def resnet18(classes: int, channels: int, drop_path: float) -> nn.Module:
    """ResNet-18 as for CIFAR (a 3x3 convolution at full size in place of the stem), a third as wide."""
    model = ResNet(BasicBlock, (2, 2, 2, 2), classes, channels, channels=(20, 40, 80, 160), drop_path_rate=drop_path)
    model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return spare_vectors(model)


def swin(classes: int, channels: int, drop_path: float) -> nn.Module:
    """A Swin with patches of 2, windows of 7, three stages of 14, 7 and 4 positions a side."""
    model = SwinTransformer(
        img_size=28, patch_size=2, in_chans=channels, num_classes=classes, embed_dim=32, depths=(2, 4, 4),
        num_heads=(1, 2, 4), window_size=7, drop_path_rate=drop_path,
    )  # fmt: skip
    return spare_vectors(model)


def spare_vectors(model: nn.Module) -> nn.Module:
    """Has norms, biases and tables of positions go without weight decay, as ours do."""
    spared = {
        name for name, value in model.named_parameters() if value.ndim < 2 or name.endswith("position_bias_table")
    }
    model.no_weight_decay = lambda: spared
    return model


NETWORKS: dict[str, Callable[[int, int, float], nn.Module]] = {"nano": nano, "resnet18": resnet18, "swin": swin}


class AnyNetworkTask(ClassificationTask):
    """Training of networks that are not ours, whose averages take the statistics of batch norms along."""

    @property
    def trained_model(self) -> Any:
        return self.model if self.average is None else self.average.module

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        for mean, own in zip(self.trained_model.buffers(), self.model.buffers(), strict=True):
            mean.copy_(own)


def train(name: str, data: str, config: TrainConfig, run: Path) -> dict[str, Any]:
    """Trains a network and scores it on the validation images, those of the test set."""
    prepared = prepare(data, config)
    config, classes = prepared.config, prepared.data.training.classes
    torch.manual_seed(config.seed)
    model = NETWORKS[name](len(classes), config.channels, config.drop_path)
    model.in_chans = config.channels
    task = AnyNetworkTask(model, config, prepared.preprocessing, classes, prepared.unreadable)
    folder = RunFolder.create(run, overwrite=True)
    started = time.perf_counter()
    rows, _ = fit(task, *prepared.loaders, config, folder, StopSignals())
    found = {
        "network": name,
        "seed": config.seed,
        "epochs": len(rows),
        "top1": rows[-1].val_score,
        "best_top1": max(row.val_score for row in rows),
        "seconds": round(time.perf_counter() - started),
        "parameters": count_parameters(model),
        "macs": count_macs(model.eval(), *config.size),
    }
    print(json.dumps(found), flush=True)
    return found


def summary(results: list[dict[str, Any]]) -> str:
    """A line for each network: mean and standard deviation of its seeds."""
    lines = []
    for name in dict.fromkeys(result["network"] for result in results):
        own = [result for result in results if result["network"] == name]
        scores = [result["top1"] for result in own]
        spread = f" +- {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        size = f"{own[0]['parameters'] / 1e6:.2f} M, {own[0]['macs'] / 1e6:.0f} MMACs"
        lines.append(f"{name} ({size}): {statistics.mean(scores):.2f}{spread} %, {own[0]['epochs']} epochs")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("options", nargs="*", metavar="NAME=VALUE", help="options in place of the recipe's")
    parser.add_argument("--out", type=Path, required=True, help="the file for the figures")
    parser.add_argument("--runs", type=Path, required=True, help="a folder for the run folders")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, help="of PyTorch; default: as many as there are cores")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    given = {name: yaml.safe_load(value) for name, value in (each.split("=", 1) for each in options.options)}
    recipe = {**read_recipe("small-images"), **given}
    results = []
    for seed in options.seeds:
        for name in options.networks:
            config = TrainConfig(**{**recipe, "seed": seed})
            results.append(train(name, options.data, config, options.runs / f"{name}-{seed}"))
            found = {
                "command": " ".join(["python", "benchmarks/fashion_mnist.py", *sys.argv[1:]]),
                "machine": machine(),
                "recipe": recipe,
                "results": results,
            }
            options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(summary(results))


if __name__ == "__main__":
    main()
