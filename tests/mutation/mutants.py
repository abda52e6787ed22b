"""Mutants of a source file: mutmut's rules and a few of our own, each as the whole text of the changed file.

mutmut's own runner makes no mutant outside functions and none in decorated ones (properties), so only its rules are
used. Texts that only people read (messages of exceptions, names in messages) and annotations are left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import libcst as cst
from libcst._nodes.internal import CodegenState
from libcst.metadata import CodeRange, MetadataWrapper, WhitespaceInclusivePositionProvider
from mutmut.mutation import mutators

MODULE = "module"
Rule = tuple[type, Callable[..., Iterable[cst.CSTNode]]]


def _number_down(node: cst.BaseNumber) -> Iterable[cst.BaseNumber]:
    """mutmut adds one, we also take one away."""
    if isinstance(node, cst.Integer | cst.Float):
        value = node.evaluated_value - 1
        yield (
            node.with_changes(value=repr(abs(value)), lpar=[], rpar=[])
            if value >= 0
            else cst.UnaryOperation(
                cst.Minus(), node.with_changes(value=repr(-value)), [cst.LeftParen()], [cst.RightParen()]
            )
        )  # type: ignore[misc]


def _string(node: cst.SimpleString) -> Iterable[cst.SimpleString]:
    """Another text."""
    if not node.value.startswith(('"""', "'''")) and "b" not in node.prefix.lower():
        yield node.with_changes(value=f"{node.prefix}{node.quote}XX{node.raw_value}{node.quote}")


def _forced(node: cst.If | cst.While) -> Iterable[cst.CSTNode]:
    """A branch that is never taken, and one that always is; in place of its condition."""
    if not isinstance(node.test, cst.Name) or node.test.value != "True":
        yield cst.Name("False")
    if isinstance(node, cst.If):
        yield cst.Name("True")


def _dropped(node: cst.Expr) -> Iterable[cst.CSTNode]:
    """A statement that is forgotten."""
    if not isinstance(node.value, cst.SimpleString | cst.ConcatenatedString):
        yield cst.Pass()


def _swapped(node: cst.Call) -> Iterable[cst.Call]:
    """Two neighbouring arguments in the wrong order; min and max know no order."""
    if isinstance(node.func, cst.Name) and node.func.value in ("min", "max"):
        return
    for i, (a, b) in enumerate(zip(node.args, node.args[1:], strict=False)):
        if not (a.keyword or b.keyword or a.star or b.star) and not a.value.deep_equals(b.value):
            args = [*node.args]
            args[i], args[i + 1] = a.with_changes(value=b.value), b.with_changes(value=a.value)
            yield node.with_changes(args=args)


_THEIRS = {
    "operator_number", "operator_name", "operator_assignment", "operator_augmented_assignment", "operator_arg_removal",
    "operator_remove_unary_ops", "operator_keywords", "operator_swap_op", "operator_match", "operator_if_exp",
    "operator_symmetric_string_methods_swap", "operator_lambda",
}  # fmt: skip
RULES: tuple[Rule, ...] = (
    *((kind, rule) for kind, rule in mutators.mutation_operators if rule.__name__ in _THEIRS),
    (cst.BaseNumber, _number_down), (cst.SimpleString, _string), (cst.If, _forced), (cst.While, _forced),
    (cst.Expr, _dropped), (cst.Call, _swapped),
)  # fmt: skip
_OUTSIDE = (mutators.operator_number, mutators.operator_name, mutators.operator_swap_op, _number_down)
"""Rules for tables and constants: values, not the ways they are built, which fail at import."""


class Mutant(NamedTuple):
    path: str  # of the file, from the root
    where: str  # Class.function, or MODULE
    change: str  # `old` -> `new`, with a number when the same change is possible several times in one function
    line: int
    text: str  # the whole file

    @property
    def key(self) -> str:
        """Stands still when lines move."""
        return f"{self.path} {self.where}: {self.change}"


class _Visitor(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (WhitespaceInclusivePositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int, CodeRange, cst.CSTNode, cst.CSTNode]] = []
        self._scope: list[str] = []
        self._functions = self._depth = 0

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Annotation | cst.Decorator | cst.Raise | cst.Assert | cst.Import | cst.ImportFrom):
            return False
        if isinstance(node, cst.ClassDef | cst.FunctionDef):
            self._scope.append(node.name.value)
            self._functions += isinstance(node, cst.FunctionDef)
        self._depth += isinstance(node, cst.IndentedBlock)
        for kind, rule in RULES:
            if isinstance(node, kind) and (self._functions or rule in _OUTSIDE):
                where = ".".join(self._scope) if self._functions else MODULE
                what = node.test if isinstance(node, cst.If | cst.While) else node
                at = self.get_metadata(WhitespaceInclusivePositionProvider, what)
                self.found += [(where, self._depth, at, what, after) for after in rule(node)]
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.ClassDef | cst.FunctionDef):
            self._scope.pop()
            self._functions -= isinstance(original_node, cst.FunctionDef)
        self._depth -= isinstance(original_node, cst.IndentedBlock)


def _offsets(text: str) -> list[int]:
    found = [0]
    for line in text.splitlines(keepends=True):
        found.append(found[-1] + len(line))
    return found


def _code(module: cst.Module, node: cst.CSTNode, depth: int) -> str:
    state = CodegenState(module.default_indent, module.default_newline)
    for _ in range(depth):
        state.increase_indent(module.default_indent)
    node._codegen(state)
    return "".join(state.tokens)


def _said(before: list[str], after: list[str]) -> str:
    """The lines that differ, as one line."""
    same = [a == b for a, b in zip(before, after, strict=False)]
    first = same.index(False) if False in same else len(same)
    last = 0
    while last < min(len(before), len(after)) - first and before[-1 - last] == after[-1 - last]:
        last += 1
    words = (" ".join(" ".join(x.split("  # ")[0] for x in t[first : len(t) - last]).split()) for t in (before, after))
    return "`{}` -> `{}`".format(*words)


def mutants(root: Path, path: str) -> Iterator[Mutant]:
    """Every mutant of one file, in the file's order."""
    text = (root / path).read_text()
    wrapper = MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
    visitor = _Visitor()
    wrapper.visit(visitor)
    offsets, lines = _offsets(text), text.splitlines()
    seen: Counter[tuple[str, str]] = Counter()
    for where, depth, at, node, after in visitor.found:
        begin, end = offsets[at.start.line - 1] + at.start.column, offsets[at.end.line - 1] + at.end.column
        assert _code(wrapper.module, node, depth) == text[begin:end], f"{path}:{at.start.line} cannot be cut out"
        changed = text[:begin] + _code(wrapper.module, after, depth) + text[end:]
        change = _said(lines, changed.splitlines())
        seen[where, change] += 1
        number = f" ({seen[where, change]})" if seen[where, change] > 1 else ""
        yield Mutant(path, where, change + number, at.start.line, changed)
