"""Which of timm's tests that name their models run for ours as well.

timm parametrises most tests by `list_models`, and some by a few names. Of the latter these are about what any
hierarchical backbone should do. Those left out are about single models of timm, or about what ours has no use for:

- `test_catavgmax_unsupported`: the pooling is supported, when the model is built with it.
- `test_pruned_features_torchscript`: builds with `img_size`. Ours takes any size and has no such argument;
  `tests/test_timm_models.py` scripts pruned features.
- `test_model_features_output_stride`: there is no `output_stride`; strides are those of the published networks.
- `test_relpos_family_set_input_size`, `test_relpos_non_square_*`, `test_default_resize_hub_roundtrip`: there is no
  `set_input_size`, since nothing in the network depends on the size of images.
"""

from typing import Any

# Those that timm parametrises by lists of models, of which ours must be found in each.
LISTED = frozenset(
    {
        "test_model_forward",
        "test_model_backward",
        "test_model_default_cfgs",
        "test_model_forward_torchscript",
        "test_model_forward_features",
        "test_model_forward_intermediates_features",
        "test_model_forward_intermediates",
        "test_prune_intermediate_layers_contract",
        "test_model_forward_fx",
        "test_model_backward_fx",
        "test_model_forward_fx_torchscript",
    }
)


def cases(names: list[str]) -> dict[str, list[Any]]:
    """For each test the values of its list that begins with the name of the model."""
    with_arguments = [(name, {}) for name in names]
    return {
        # tests/test_models.py
        "test_features_only_grad_checkpointing_backward": names,
        "test_feature_getter_stage_ends_torchscript": names,
        "test_prune_intermediate_layers_params_used": names,
        "test_prune_intermediate_layers_last_feature": [(name, True) for name in names],
        "test_forward_after_prune_intermediate_layers": names,
        "test_reset_classifier_keeps_pool": names,
        "test_head_hidden_size": with_arguments,
        "test_forward_intermediates_stop_early_final_norm": with_arguments,
        "test_headless_checkpoint_reload": with_arguments,
        "test_model_init_weights_after_to_empty": with_arguments,
        # tests/test_model_input.py
        "test_export_tracks_reset_pool_in_head": [
            (name, n, pool) for name in names for n, pool in [(3, "max"), (0, "")]
        ],
        "test_export_tracks_reset_classifier_structure": [(name, {}, None, None) for name in names],
    }
