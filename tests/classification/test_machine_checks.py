"""What a machine cannot do is said before anything is read."""

import pytest

from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.machine_checks import check_machine
from scalablevit.classification.preparation import prepare


def test_half_precision_is_refused_on_a_cpu(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    for accelerator in ("cpu", "auto"):
        with pytest.raises(ValueError, match=r"precision is '16-mixed', which a CPU .* give --precision bf16-mixed"):
            prepare("nowhere", TrainConfig(precision="16-mixed", accelerator=accelerator))
    check_machine(TrainConfig(precision="bf16-mixed", accelerator="cpu"))
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    check_machine(TrainConfig(precision="16-mixed"))
