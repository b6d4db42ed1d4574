"""What chat templates compile to: loops, ~, comparisons, literals and collected text go through filters."""

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.visitor import NodeTransformer

# Jinja compiles these straight to Python, where no environment could count them. The names hold spaces, so no
# template can spell them.
TURNS = "turns of phyla"
CONCAT = "concat of phyla"
BUILT = "built of phyla"
KEY = "key of phyla"
COMPARE = "compare of phyla"
COMPARED = "compared of phyla"
SEARCHED = "searched of phyla"
LITERAL = "literal of phyla"
MARK = "mark of phyla"

COMPARISONS = frozenset(("eq", "ne", "lt", "lteq", "gt", "gteq"))
MARKS = ("\x02phyla assistant\x03", "\x02phyla end of assistant\x03")


def counted(node: nodes.Expr, name: str, *args) -> nodes.Filter:
    """The node sent through the filter of that name."""
    return nodes.Filter(node, name, [nodes.Const(arg) for arg in args], [], None, None, lineno=node.lineno)


class Rewriter(NodeTransformer):
    """Rewrites a parsed template."""

    def __init__(self):
        self.collecting = 0

    def _collected(self, node):
        self.collecting += 1
        self.generic_visit(node)
        self.collecting -= 1
        return node

    visit_Macro = visit_CallBlock = visit_FilterBlock = visit_AssignBlock = visit_Block = _collected

    def visit_For(self, node):
        self._collected(node) if node.recursive else self.generic_visit(node)
        node.iter = counted(node.iter, TURNS)
        return node

    def visit_Output(self, node):
        self.generic_visit(node)
        literal = sum(len(child.data) for child in node.nodes if isinstance(child, nodes.TemplateData))
        if self.collecting and literal:
            node.nodes.insert(0, counted(nodes.Const(literal, lineno=node.lineno), LITERAL))
        return node

    def visit_Concat(self, node):
        self.generic_visit(node)
        return counted(nodes.Tuple(node.nodes, "load", lineno=node.lineno), CONCAT)

    def visit_List(self, node):
        self.generic_visit(node)
        return counted(node, BUILT)

    def visit_Tuple(self, node):
        self.generic_visit(node)
        return counted(node, BUILT) if node.ctx == "load" else node

    def visit_Dict(self, node):
        self.generic_visit(node)
        for pair in node.items:
            if not isinstance(pair.key, nodes.Const):
                pair.key = counted(pair.key, KEY)
        return counted(node, BUILT)

    def visit_Getitem(self, node):
        self.generic_visit(node)
        return counted(node, BUILT) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node):
        self.generic_visit(node)
        if len(node.ops) == 1 and node.ops[0].op in COMPARISONS:
            sides = nodes.Tuple([node.expr, node.ops[0].expr], "load", lineno=node.lineno)
            return counted(sides, COMPARE, node.ops[0].op)
        # `in` compares the left side with what the right one holds; chains are rare.
        node.expr = counted(node.expr, COMPARED)
        for op in node.ops:
            op.expr = counted(op.expr, SEARCHED if len(node.ops) == 1 else COMPARED)
        return node


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: text that the assistant wrote, in a scope of its own."""

    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        start, end = (
            nodes.Output([counted(nodes.Const(i, lineno=lineno), MARK)], lineno=lineno)
            for i in range(len(MARKS))
        )
        return [start, nodes.Scope(body, lineno=lineno), end]
