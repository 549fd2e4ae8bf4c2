import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import scalablevit
from scalablevit.variants import VARIANTS

# Of the authors' released code; the GMACs count attention's products.
PUBLISHED = {"small": (32_000_472, 4.27), "base": (81_881_624, 8.80), "large": (109_288_840, 14.99)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_variants_have_its_parameters_and_gmacs(name):
    parameters, gmacs = PUBLISHED[name]
    model = getattr(scalablevit, f"scalablevit_{name}")(device="meta").eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.skipif(
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry,
    reason="this PyTorch does not count the operator that runs on a CPU",
)
def test_the_flops_of_fused_attention_are_counted():
    model = scalablevit.scalablevit_nano().eval()
    totals = []
    for device in ("meta", "cpu"):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.to_empty(device=device)(torch.zeros(1, 3, 64, 64, device=device))
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1]


def test_our_own_variants_are_small():
    sizes = {
        name: sum(p.numel() for p in VARIANTS[f"scalablevit_{name}"].build(device="meta").parameters())
        for name in ("nano", "tiny")
    }
    assert sizes["nano"] < 1_500_000
    assert 8_000_000 <= sizes["tiny"] <= 12_000_000


def test_overrides_go_before_the_variants_arguments():
    model = scalablevit.scalablevit_small(10, window_size=14, channels=1, head="linear", device="meta")
    assert model.config["window_size"] == [14] * 4
    assert (model.num_classes, model.in_chans, model.head_hidden_size) == (10, 1, 512)
    assert scalablevit.scalablevit_small(num_classes=0, device="meta").head_hidden_size == 4096
    with pytest.raises(TypeError, match="in_chans"):
        scalablevit.scalablevit_small(in_chans=1)
