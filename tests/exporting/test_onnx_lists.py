"""Norms and linear layers on lists in ONNX files: what is rewritten, and that nothing else is."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest

ir = pytest.importorskip("onnx_ir")

MODEL = """
<ir_version: 10, opset_import: ["" : 20]>
lists (float[b, h, w, 3] images) => (float[b, h, w, 2] logits) {
    normed = LayerNormalization <axis = -1, epsilon = 0.5> (images, scale, shift)
    product = MatMul (normed, weight)
    biased = Add (bias, product)
    again = MatMul (normed, weight)
    doubled = Add (again, again)
    summed = Add (biased, doubled)
    last = MatMul (normed, weight)
    shared = Add (last, bias)
    more = Add (summed, shared)
    logits = Add (more, last)
}
"""


def model():
    from scalablevit.exporting.onnx_lists import put_on_lists

    random = np.random.default_rng(0)
    numbers = {"scale": (3,), "shift": (3,), "weight": (3, 2), "bias": (2,)}
    found = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(MODEL))
    for name, shape in numbers.items():
        found.graph.initializer.append(onnx.numpy_helper.from_array(random.random(shape, np.float32), name))
    rewritten = ir.from_proto(found)
    put_on_lists(rewritten.graph)
    return found, ir.to_proto(rewritten)


def run(given, images):
    session = onnxruntime.InferenceSession(given.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def test_the_numbers_are_the_same_for_every_size():
    before, after = model()
    onnx.checker.check_model(after)
    for shape in ((2, 4, 5, 3), (1, 1, 1, 3)):
        images = np.random.default_rng(1).random(shape, np.float32)
        np.testing.assert_allclose(run(after, images), run(before, images), rtol=1e-5, atol=1e-6)


def test_only_products_whose_bias_alone_reads_them_are_rewritten():
    _, after = model()
    kinds = Counter(node.op_type for node in after.graph.node)
    assert (kinds["Gemm"], kinds["MatMul"], kinds["Add"]) == (1, 2, 5)


def test_an_export_has_a_bias_in_every_product_and_no_norm_of_four_axes(exports):
    graph = onnx.shape_inference.infer_shapes(onnx.load(exports["onnx"].path)).graph
    constants = {value.name for value in graph.initializer}
    products = {node.output[0] for node in graph.node if node.op_type == "MatMul" and node.input[1] in constants}
    sums = [node for node in graph.node if node.op_type == "Add" and set(node.input) & constants]
    assert not [node for node in sums if set(node.input) & products]
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    norms = [ranks[node.input[0]] for node in graph.node if node.op_type == "LayerNormalization"]
    assert norms
    assert max(norms) == 3


def test_an_export_says_nothing_of_shapes_inside(exports):
    graph = onnx.load(exports["onnx"].path).graph
    assert {value.name for value in graph.value_info} <= {value.name for value in graph.initializer}
