"""A pytest plugin that turns timm's tests to the models that the environment variable TIMM_SUITE_MODELS names.

Before timm's test modules are imported it registers our models, and has `timm.list_models` list none but those named.
What is collected for any other model is dropped.
"""

import os
from collections.abc import Iterable
from typing import Any

import pytest
import timm
import timm.models

import scalablevit.timm_models
from tests.timm_suite.cases import LISTED, cases

NAMES = os.environ.get("TIMM_SUITE_MODELS", "").split()
MODULE = scalablevit.timm_models.__name__.rpartition(".")[2]
CASES = cases(NAMES)
FEATURE_MODULES = 10  # a longer list of modules is timm's list of those with `forward_intermediates`, which ours has


def architecture(name: object) -> str:
    """Of ``architecture.tag``."""
    return str(name).partition(".")[0]


def pytest_configure() -> None:
    """Has timm list the named models only."""
    unknown = [name for name in NAMES if not timm.is_model(name)]
    if unknown or not NAMES:
        known = ", ".join(timm.list_models(module=MODULE))
        raise pytest.UsageError(f"give names of models out of {known}, not {', '.join(unknown) or 'none'}")
    list_all, list_pretrained = timm.list_models, timm.list_pretrained

    def list_ours(filter: str = "", module: str | Iterable[str] = "", *args: Any, **kwargs: Any) -> list[str]:
        if not isinstance(module, str):
            module = list(module)
            module += [MODULE] if len(module) > FEATURE_MODULES else []
        return [name for name in list_all(filter, module, *args, **kwargs) if architecture(name) in NAMES]

    def list_ours_pretrained(*args: Any, **kwargs: Any) -> list[str]:
        return [name for name in list_pretrained(*args, **kwargs) if architecture(name) in NAMES]

    for namespace in (timm, timm.models):
        namespace.list_models, namespace.list_pretrained = list_ours, list_ours_pretrained


def pytest_report_header() -> str:
    """What is tested with what."""
    return f"timm {timm.__version__}: {', '.join(NAMES)}"


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Puts our models in the place of the few that a test names."""
    values = CASES.get(metafunc.function.__name__)
    if values is None:
        return
    marks = metafunc.definition.own_markers
    for index, mark in enumerate(marks):
        if mark.name == "parametrize" and first_argument(mark.args[0]) in ("model_name", "name"):
            marks[index] = pytest.mark.parametrize(mark.args[0], values).mark
            return
    raise pytest.UsageError(f"{metafunc.function.__name__} is no longer parametrised by the name of a model")


def first_argument(names: str | Iterable[str]) -> str:
    """Of the names that a parametrisation gives values to."""
    return (names.split(",") if isinstance(names, str) else list(names))[0].strip()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drops what is not about our models."""
    kept, dropped = [], []
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        name = parameters.get("model_name", parameters.get("name"))
        (kept if architecture(name) in NAMES else dropped).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)
    found = {(item.originalname, architecture(item.callspec.params.get("model_name"))) for item in kept}
    missing = sorted({test for test in {*CASES, *LISTED} for name in NAMES if (test, name) not in found})
    if missing:
        raise pytest.UsageError(f"timm {timm.__version__} runs no {', '.join(missing)} for ours: see cases.py")
