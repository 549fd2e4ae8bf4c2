"""Pictures of benchmarks."""

from scalablevit.benchmarking.plots import _ticks


def test_sizes_of_about_as_many_pixels_share_a_label():
    labels = _ticks({(1024, 1024), (224, 224), (800, 1344), (448, 448)})
    assert list(labels.values()) == ["224x224", "448x448", "1024x1024,\n800x1344"]
    assert list(labels) == [224 * 224 / 1e6, 448 * 448 / 1e6, 1024 * 1024 / 1e6]
