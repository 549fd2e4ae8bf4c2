"""Norms and linear layers of an ONNX graph on lists of positions instead of maps: the same numbers, sooner.

ONNX Runtime adds a bias within a product only where that is of two axes, and OpenVINO has a norm over the last axis of
three axes, but takes one over the last of four to pieces. Changing the shape costs neither anything.

Axes: b batch, h height, w width, c channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_all_uses_with


def put_on_lists(graph: ir.Graph) -> None:
    """Rewrites a graph in its place: norms of maps (b, h, w, c), and products with a bias of maps and of lists."""
    shapes: dict[ir.Value, ir.Value] = {}  # of what is read several times, found once
    for node in list(graph):
        if node.op_type == "LayerNormalization" and _rank(node.inputs[0]) == 4:
            _put_norm(graph, node)
        elif node.op_type == "MatMul" and (add := _sum_with_bias(node)) is not None:
            _put_product(graph, node, add, shapes)


def _put_norm(graph: ir.Graph, norm: ir.Node) -> None:
    """(b, h, w, c) as (b, h * w, c)."""
    x, scale = norm.inputs[0], norm.inputs[1]
    shape = _before(graph, norm, "Shape", [x])
    listed = _before(
        graph, norm, "Reshape", [x, _numbers(graph, f"{norm.outputs[0].name}_list", [0, -1, _length(scale, 0)])]
    )
    attributes = {name: value for name, value in norm.attributes.items() if name != "axis"}
    out = _before(graph, norm, "LayerNormalization", [listed, *norm.inputs[1:]], {**attributes, "axis": -1})
    _replace(graph, norm, _before(graph, norm, "Reshape", [out, shape]), norm)


def _put_product(graph: ir.Graph, product: ir.Node, add: ir.Node, shapes: dict[ir.Value, ir.Value]) -> None:
    """(..., c) as (positions, c), with the bias in it."""
    x, weight = product.inputs
    bias = _constant_of(add)
    assert x is not None
    if x not in shapes:
        shapes[x] = _before(graph, product, "Shape", [x], {"start": 0, "end": -1})
    listed = _before(
        graph, product, "Reshape", [x, _numbers(graph, f"{product.outputs[0].name}_list", [-1, _length(weight, 0)])]
    )
    out = _before(graph, product, "Gemm", [listed, weight, bias])
    width = _numbers(graph, f"{product.outputs[0].name}_width", [_length(weight, 1)])
    shape = _before(graph, product, "Concat", [shapes[x], width], {"axis": 0})
    _replace(graph, add, _before(graph, product, "Reshape", [out, shape]), product)


def _sum_with_bias(product: ir.Node) -> ir.Node | None:
    """The node that adds a constant to a product with a constant, if nothing else reads the product."""
    weight, uses = product.inputs[1], list(product.outputs[0].uses())
    if weight is None or weight.const_value is None or len(uses) != 1:
        return None
    add = uses[0].node
    return add if add.op_type == "Add" and _constant_of(add) is not None else None


def _constant_of(add: ir.Node) -> ir.Value | None:
    """What is added, (c)."""
    for value in add.inputs:
        if value is not None and value.const_value is not None and len(value.const_value.shape) == 1:
            return value
    return None


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _length(constant: ir.Value | None, axis: int) -> int:
    assert constant is not None
    assert constant.const_value is not None
    return constant.const_value.numpy().shape[axis]


def _numbers(graph: ir.Graph, name: str, numbers: list[int]) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(np.array(numbers, np.int64), name=name))
    graph.register_initializer(value)
    return value


def _before(graph: ir.Graph, place: ir.Node, kind: str, inputs: Any, attributes: Any = None) -> ir.Value:
    """What a new node gives, which stands before another."""
    node = ir.node(kind, inputs, attributes)
    graph.insert_before(place, node)
    return node.outputs[0]


def _replace(graph: ir.Graph, last: ir.Node, value: ir.Value, first: ir.Node) -> None:
    """Has what read a node read a value, and takes away the node, and the one before it."""
    value.shape, value.type = last.outputs[0].shape, last.outputs[0].type
    replace_all_uses_with(last.outputs[0], value)
    graph.remove([last] if last is first else [last, first], safe=True)
