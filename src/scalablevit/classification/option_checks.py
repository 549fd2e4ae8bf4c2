"""What is checked of the options of a run: one by one, and that they go together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalablevit.classification.learning_rates import LEARNING_RATES
from scalablevit.suggestions import nearest_name

if TYPE_CHECKING:
    from scalablevit.classification.configuration import TrainConfig


def check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises a ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        hint = nearest_name(str(value), map(str, allowed))
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}{hint}")


def check_range(name: str, value: float, lowest: float, highest: float | None = None, *, above: bool = False) -> None:
    """Raises a ValueError unless `value` is a number from `lowest`, or `above` it, up to `highest`."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and (value > lowest or (value == lowest and not above)) and (highest is None or value <= highest):
        return
    low = f"above {lowest}" if above else f"of at least {lowest}"
    raise ValueError(
        f"{name} is {value!r}; it must be a number {low}{'' if highest is None else f' and at most {highest}'}"
    )


def check_optimizer(name: str) -> None:
    """Raises a ValueError unless the optimiser is ours or one of timm's that a run can use."""
    if name in LEARNING_RATES:
        return
    from timm.optim import list_optimizers

    known = [*LEARNING_RATES, *list_optimizers()]
    if name not in known:
        raise ValueError(
            f"optimizer is {name!r}; it must be one of {', '.join(map(repr, LEARNING_RATES))}, or one of timm's"
            f" (timm.optim.list_optimizers() lists them){nearest_name(str(name), known)}"
        )
    if name == "adahessian":
        raise ValueError("optimizer is 'adahessian', which needs second derivatives, which are not computed here")


def check_together(config: TrainConfig) -> None:
    """Raises a ValueError if options contradict each other."""
    if config.keep == "last" and config.patience:
        raise ValueError(
            f"keep is 'last' and patience {config.patience}: with the first, validation images choose nothing, with the"
            " second, when the run ends; leave one of them out"
        )
    if config.optimizer not in LEARNING_RATES and config.learning_rate is None:
        raise ValueError(
            f"optimizer is {config.optimizer!r}, for which no learning rate is known here: give --learning-rate"
        )
    if config.learning_rate_rule == "linear" and config.learning_rate is None and config.optimizer != "adamw":
        raise ValueError(
            f"learning_rate_rule is 'linear' and optimizer {config.optimizer!r}: that rule is known for adamw alone;"
            " use --optimizer adamw, or give --learning-rate"
        )
    if config.freeze_backbone and config.weights is None:
        raise ValueError("freeze_backbone is True, but there are no trained weights to keep: give --weights")
    if config.freeze_backbone and config.layer_decay < 1:
        raise ValueError(
            f"freeze_backbone is True and layer_decay {config.layer_decay}: below the head nothing learns; leave one of"
            " them out"
        )
