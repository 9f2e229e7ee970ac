"""Rewriting a template's syntax tree, so that everything that loops, copies, compares or builds is counted."""

import re
from typing import cast

from jinja2 import TemplateSyntaxError, nodes
from jinja2.visitor import NodeTransformer

WORDS = re.compile(r"\w+")
FILTERS_OF_CHATS = frozenset(
    WORDS.findall("""
        abs capitalize count d default dictsort e escape first float groupby indent int items join last length list
        lower map max min reject rejectattr replace reverse round safe select selectattr sort string title tojson trim
        truncate unique upper urlencode
    """)
)
# What would tell this sandbox from that of transformers, or the first rendering from the second.
FORBIDDEN_NAMES = frozenset({"lipsum", "cycler", "joiner"})


class Metered(NodeTransformer):
    """Visitor that puts the filters that count around everything that loops, copies, compares or builds."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_joined")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_built") if node.items else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_built") if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_built") if node.items else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_measured") if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, "_weighed")
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, "_weighed")
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        if node.name not in FILTERS_OF_CHATS:
            raise TemplateSyntaxError(f"it uses the filter {node.name!r}, which no chat template needs", node.lineno)
        if node.name == "map" and node.args:
            [named, *_] = node.args
            if not isinstance(named, nodes.Const) or named.value not in FILTERS_OF_CHATS - {"map"}:
                raise TemplateSyntaxError("it maps by a filter that no chat template needs", node.lineno)
        self.generic_visit(node)
        if node.node is None:  # of a block, whose text is counted already
            return node
        node.node = _filtered(node.node, "_weighed")
        return _filtered(node, "_measured")

    def visit_Name(self, node: nodes.Name) -> nodes.Node:
        if node.name in FORBIDDEN_NAMES:
            raise TemplateSyntaxError(f"it uses {node.name!r}, which no chat template needs", node.lineno)
        return node


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)
