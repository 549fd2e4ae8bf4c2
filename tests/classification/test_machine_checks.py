"""What a machine cannot do is said before anything is read."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from scalablevit import Predictor
from scalablevit.classification.checking import check
from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.machine_checks import check_machine
from scalablevit.classification.preparation import prepare
from scalablevit.serving import ServingOptions
from scalablevit.serving.server import application


def test_half_precision_is_refused_on_a_cpu(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    for accelerator in ("cpu", "auto"):
        with pytest.raises(ValueError, match=r"precision is '16-mixed', which a CPU .* give --precision bf16-mixed"):
            prepare("nowhere", TrainConfig(precision="16-mixed", accelerator=accelerator))
    check_machine(TrainConfig(precision="bf16-mixed", accelerator="cpu"))
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    check_machine(TrainConfig(precision="16-mixed"))


@pytest.mark.parametrize(
    "use",
    [
        lambda data: Predictor("fashion", device="cpu")(data / "val"),
        lambda data: check(data),
        lambda data: application(Predictor("fashion", device="cpu"), ServingOptions(page=False)),
    ],
    ids=["predict", "check", "serve"],
)
def test_there_are_no_more_threads_than_cores_that_the_process_may_use(data, monkeypatch, use):
    threads, begin = [], ThreadPoolExecutor.__init__

    def noted(pool, count=None, **options):
        threads.append(count or options["max_workers"])
        begin(pool, count, **{name: value for name, value in options.items() if name != "max_workers"})

    monkeypatch.setattr(ThreadPoolExecutor, "__init__", noted)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {4, 5, 6}, raising=False)
    use(data)
    assert max(threads) == 3
