"""Several processes: who they are, what each sees, and that together they learn what one learns."""

import json
import os
from itertools import chain
from pathlib import Path

import pytest
import safetensors.torch
import torch
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy
from torch.utils.data import SequentialSampler

from scalablevit.classification import devices, launching
from scalablevit.classification.configuration import MAY_CHANGE, TrainConfig
from scalablevit.classification.data import BatchParts, EpochSampler, UnreadableImages
from scalablevit.classification.devices import Processes, find_processes, make_environment, make_strategy, own_rank
from scalablevit.classification.faults import explain
from scalablevit.classification.run_folder import RunFolder
from scalablevit.classification.task import ClassificationTask
from scalablevit.classification.training import _check_changes, train
from scalablevit.stages import Layer, Stage
from scalablevit.variants import scalablevit_nano
from tests.conftest import write_images
from tests.faults.command import Command

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1"}
SLURM = {
    "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "6", "SLURM_NTASKS_PER_NODE": "4", "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1", "SLURM_JOB_NAME": "train",
}  # fmt: skip
NAMES = {*TORCHRUN, *SLURM, "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_NODES"}

# What can be the same to rounding: nothing is drawn per part. 21 validation images cannot be halved.
OPTIONS = {"epochs": 2, "batch_size": 9, "seed": 3, "accelerator": "cpu", "erasing": 0.3, "ema": 0.9, "workers": 0}

# Writes down what each process has at the end.
NOTE = """
import os, torch
from scalablevit.classification.task import ClassificationTask
def note(self):
    values = {**self.state_dict(), "losses": self.trainer.callback_metrics["val_loss"]}
    torch.save(values, os.path.join(os.environ["NOTES"], os.environ["LOCAL_RANK"]))
ClassificationTask.on_fit_end = note
"""


@pytest.fixture
def environment(monkeypatch):
    """Sets the variables of a launcher, and no others."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return lambda variables: [monkeypatch.setenv(*each) for each in variables.items()]


@pytest.mark.parametrize(
    ("variables", "options", "expected"),
    [
        ({}, {}, Processes()),
        ({}, {"devices": 3}, Processes(per_node=3)),
        ({}, {"devices": "auto", "accelerator": "cpu"}, Processes()),
        ({"LOCAL_RANK": "2"}, {"devices": 3}, Processes(per_node=3, rank=2, launcher="environment")),
        (TORCHRUN, {}, Processes(per_node=4, nodes=2, rank=5, launcher="torchrun")),
        (TORCHRUN, {"devices": "auto", "nodes": 2}, Processes(per_node=4, nodes=2, rank=5, launcher="torchrun")),
        (SLURM, {}, Processes(per_node=4, nodes=2, rank=6, launcher="slurm")),
        ({**SLURM, "SLURM_NTASKS": "1"}, {"devices": 2}, Processes(per_node=2)),
        ({**SLURM, "SLURM_JOB_NAME": "bash"}, {}, Processes()),
    ],
)
def test_processes_are_those_of_the_launcher_or_of_the_options(environment, variables, options, expected):
    environment(variables)
    assert find_processes(TrainConfig(**options)) == expected
    assert own_rank() == expected.rank


def test_options_that_do_not_fit_the_launcher_are_refused(environment):
    with pytest.raises(ValueError, match="nodes is 2, but neither torchrun nor srun has started this process"):
        find_processes(TrainConfig(nodes=2))
    environment(TORCHRUN)
    with pytest.raises(ValueError, match="devices is 2, but torchrun has started 4: leave --devices out"):
        find_processes(TrainConfig(devices=2))
    with pytest.raises(ValueError, match="nodes is 3, but torchrun has started 2"):
        find_processes(TrainConfig(nodes=3))


def test_a_run_of_fewer_processes_than_the_script_has_is_refused(environment):
    environment({"LOCAL_RANK": "2"})
    with pytest.raises(ValueError, match="LOCAL_RANK is 2, but a run with devices 2 has no such process"):
        find_processes(TrainConfig(devices=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "devices is 0; it must be an integer of at least 1"),
        ({"devices": "all"}, "devices is 'all'"),
        ({"nodes": 0}, "nodes is 0"),
        ({"strategy": "dp"}, "strategy is 'dp'; it must be one of 'auto', 'ddp', 'fsdp'"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_fsdp_says_what_it_needs(environment, monkeypatch):
    with pytest.raises(ValueError, match=r"'fsdp', which needs CUDA GPUs, .*: use --strategy ddp"):
        find_processes(TrainConfig(strategy="fsdp", optimizer="adamw", accelerator="cpu"))
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: True)
    for options, fix in (({}, "use --optimizer adamw"), ({"optimizer": "adamw", "ema": 0.9}, "use --ema 0")):
        with pytest.raises(ValueError, match=fix):
            find_processes(TrainConfig(strategy="fsdp", **options))
    with pytest.raises(ValueError, match="use --precision bf16-mixed"):
        find_processes(TrainConfig(strategy="fsdp", optimizer="adamw", precision="16-mixed"))
    find_processes(TrainConfig(strategy="fsdp", optimizer="adamw", precision="bf16-mixed"))


def test_the_command_refuses_fsdp_on_a_cpu_and_leaves_nothing(environment, data, tmp_path):
    with pytest.raises(ValueError, match="needs CUDA GPUs"):
        train(data, tmp_path / "run", strategy="fsdp", optimizer="adamw", accelerator="cpu")
    assert not (tmp_path / "run").exists()


def test_strategies_and_environments():
    two = Processes(per_node=2)
    assert make_strategy(TrainConfig(), Processes()) == "auto"
    assert (
        type(make_strategy(TrainConfig(), two)) is type(make_strategy(TrainConfig(strategy="ddp"), two)) is DDPStrategy
    )
    sharded = make_strategy(TrainConfig(strategy="fsdp"), two)
    assert isinstance(sharded, FSDPStrategy)
    assert sharded._state_dict_type == "full"  # so that any number of processes can go on
    assert sharded.kwargs["auto_wrap_policy"]._module_classes == {Layer, Stage}
    assert sharded.kwargs["use_orig_params"]


def test_a_slurm_job_of_one_task_is_lightnings_own_and_none_is_requeued_by_it(environment):
    environment(SLURM)
    slurm = make_environment(Processes(per_node=4, nodes=2, rank=6, launcher="slurm"))
    assert slurm.auto_requeue is False
    assert (slurm.global_rank(), slurm.world_size()) == (6, 8)
    assert type(make_environment(Processes(per_node=4))).__name__ == "LightningEnvironment"
    os.environ.pop("SLURM_NTASKS_PER_NODE")
    with pytest.raises(ValueError, match=r"Slurm's variables do not fit: .*--ntasks-per-node"):
        make_environment(Processes(launcher="slurm"))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_parts_of_batches_make_up_the_batches_of_one_process(count):
    """Also where a batch has fewer images than there are processes: 11 in batches of 4 leave 3."""
    whole = list(BatchParts(SequentialSampler(range(11)), 4, drop_last=False, processes=Processes()))
    assert whole == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    parts = [
        list(
            BatchParts(SequentialSampler(range(11)), 4, drop_last=False, processes=Processes(per_node=count, rank=rank))
        )
        for rank in range(count)
    ]
    assert {len(each) for each in parts} == {3}
    assert [list(chain(*pieces)) for pieces in zip(*parts, strict=True)] == whole
    sizes = [[len(piece) for piece in pieces] for pieces in zip(*parts, strict=True)]
    assert all(max(each) - min(each) <= 1 for each in sizes)


def test_parts_go_on_where_all_processes_were():
    sampler = EpochSampler(10, seed=1)
    sampler.start_at(2, 8)
    (only,) = BatchParts(sampler, 4, drop_last=False, processes=Processes(per_node=2, rank=1))
    assert only == [(2, index) for index in sampler.order(2)[9:]]


@pytest.mark.parametrize("message", ["[x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"])
def test_the_loss_of_a_process_is_told_in_words(message, tmp_path):
    fault = explain(RuntimeError(message), TrainConfig(), tmp_path)
    assert "another process of the run has ended, and has said why" in str(fault)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folders of a run in one process, and of the same in two; what the two had at the end; what they printed."""
    folder = tmp_path_factory.mktemp("pair")
    write_images(folder / "data/train", 12, seed=0, side=16)
    write_images(folder / "data/val", 7, seed=1, side=16)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NOTES", str(folder))
        options = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
        command = Command(folder / "data", "--out", folder / "two", "--devices=2", *options, patch=NOTE)
        train(folder / "data", folder / "one", **OPTIONS)
        code, printed, errors = command.end()
    assert (code, errors) == (0, "")
    ends = [torch.load(folder / str(rank)) for rank in range(2)]
    return RunFolder(folder / "one"), RunFolder(folder / "two"), ends, printed


def test_two_processes_learn_what_one_learns(pair):
    one, two, _, _ = pair
    first, second = (safetensors.torch.load_file(each.path / "model.safetensors") for each in (one, two))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    rows = zip(one.read_metrics(), two.read_metrics(), strict=True)
    for before, after in rows:
        assert after.train_loss == pytest.approx(before.train_loss, rel=1e-5)
        assert after.val_loss == pytest.approx(before.val_loss, rel=1e-5)
        assert (after.epoch, after.val_score, after.learning_rate) == (
            before.epoch,
            before.val_score,
            before.learning_rate,
        )


def test_each_image_is_evaluated_once(pair):
    one, two, ends, _ = pair
    first, second = one.read_evaluation(), two.read_evaluation()
    assert first["images"] == second["images"] == 21
    assert first["confusion"] == second["confusion"]
    assert float(ends[0]["losses"]) == pytest.approx(second["loss"], rel=1e-6)  # of all 21, as one process sees them


def test_processes_have_the_same_weights_bit_for_bit(pair):
    _, _, ends, _ = pair
    assert ends[0].keys() == ends[1].keys()
    assert any(name.startswith("average.") for name in ends[0])
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_the_first_process_alone_prints_and_writes(pair):
    _, two, _, printed = pair
    assert printed.count("scalablevit_nano with ") == printed.count("Report: ") == 1
    assert "on 2 devices (cpu)" in printed
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("epoch ")] == ["1/2", "2/2"]
    assert two.metrics_file.read_text().count("epoch") == 1
    assert json.loads(two.versions_file.read_text())["seed"] == 3
    assert two.read_config()["devices"] == 2


def test_what_is_drawn_in_a_step_depends_on_seed_step_and_process_alone(monkeypatch):
    monkeypatch.setattr(ClassificationTask, "position", lambda self, batch_index: 40 + batch_index)

    def draw(processes, batch):
        config = TrainConfig(seed=3)
        task = ClassificationTask(
            scalablevit_nano(2), config, None, ["a", "b"], UnreadableImages(1, 0), processes=processes
        )
        task.on_train_batch_start(None, batch)
        return float(torch.rand(()))

    with torch.random.fork_rng(devices=[]):
        first, second = Processes(per_node=2), Processes(per_node=2, rank=1)
        assert draw(first, 0) == draw(None, 0) == draw(first, 0)  # the first as one process alone
        assert draw(second, 0) == draw(second, 0)
        assert len({draw(first, 0), draw(second, 0), draw(first, 1), draw(second, 1)}) == 4


def test_several_devices_are_refused_where_python_is_used_interactively(monkeypatch):
    monkeypatch.setattr(launching.sys, "ps1", ">>> ", raising=False)
    message = "devices is 2, which needs a script or the command"
    with pytest.raises(ValueError, match=message), launching.together(Processes(per_node=2)):
        pass
    with launching.together(Processes()):
        pass


def test_devices_may_change_when_a_run_goes_on():
    assert {"devices", "nodes", "strategy"} <= set(MAY_CHANGE)
    own = TrainConfig(optimizer="adamw", devices=2)
    assert _check_changes(own, {"devices": 4, "nodes": 1, "strategy": "ddp"}, Path("run")).devices == 4
    with pytest.raises(ValueError, match="strategy is 'fsdp', but the run in run has 'auto', and fsdp keeps"):
        _check_changes(own, {"strategy": "fsdp"}, Path("run"))
