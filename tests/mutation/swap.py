"""Mutants inside functions are switched by exchanging code objects: every holder of the function sees the mutant."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from inspect import CO_NEWLOCALS, CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FunctionType

_HIT = "__hit__"
Place = tuple[str, int]  # qualified name and first line in the original


def pairs(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """The code objects of two versions of a file, side by side, as far as they have the same shape."""
    yield old, new
    inside = ([c for c in code.co_consts if isinstance(c, CodeType)] for code in (old, new))
    for a, b in zip(*inside, strict=False):
        if a.co_name == b.co_name:
            yield from pairs(a, b)


def _shape(code: CodeType) -> tuple[object, ...]:
    consts = tuple(c.co_name if isinstance(c, CodeType) else (type(c), repr(c)) for c in code.co_consts)
    return code.co_code, consts, code.co_names, code.co_varnames, code.co_freevars, code.co_exceptiontable


def _is_function(code: CodeType) -> bool:
    return code.co_flags & (CO_NEWLOCALS | CO_OPTIMIZED) == CO_NEWLOCALS | CO_OPTIMIZED


def changed(old: CodeType, new: CodeType) -> tuple[bool, bool]:
    """(anything, only inside functions)."""
    differ = [(a, b) for a, b in pairs(old, new) if _shape(a) != _shape(b)]
    return bool(differ), all(_is_function(a) and len(a.co_freevars) == len(b.co_freevars) for a, b in differ)


def functions(paths: set[str]) -> dict[str, list[FunctionType]]:
    """Live functions of these files."""
    found: dict[str, list[FunctionType]] = {path: [] for path in paths}
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType) and thing.__code__.co_filename in found:
            found[thing.__code__.co_filename].append(thing)
    return found


def exchange(live: list[FunctionType], old: CodeType, new: CodeType) -> None:
    """Every live function of the file gets its new code. ValueError when a closure lost or gained a variable."""
    codes = {(a.co_qualname, a.co_firstlineno): b for a, b in pairs(old, new) if changed(a, b)[0]}
    for function in live:
        code = codes.get((function.__code__.co_qualname, function.__code__.co_firstlineno))
        if code is not None:
            function.__code__ = code


class _Marker(ast.NodeTransformer):
    """Calls __hit__(number of the statement) before each statement of a function."""

    def __init__(self) -> None:
        self.inside = False

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        before, self.inside = self.inside, True
        self.generic_visit(node)
        self.inside = before
        return node

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if self.inside and isinstance(body, list) and body and isinstance(body[0], ast.stmt):
                setattr(node, field, [x for s in body for x in (_hit(s.lineno), s)])
        return node


def _hit(line: int) -> ast.stmt:
    statement = ast.parse(f"{_HIT}({line})").body[0]
    return ast.increment_lineno(statement, line - 1)


def mark(path: str, live: list[FunctionType], hits: set[tuple[str, int]], root: str) -> None:
    """From now on `hits` collects (path, line) of every statement that runs in this file's functions."""
    text = Path(root, path).read_text()
    old = compile(text, str(Path(root, path)), "exec")
    new = compile(_Marker().visit(ast.parse(text)), str(Path(root, path)), "exec")
    for function in live:
        function.__globals__[_HIT] = lambda line: hits.add((path, line))
    exchange(live, old, new)


def statement(text: str, line: int) -> int:
    """First line of the innermost statement that covers a line."""
    around = [
        n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.stmt) and n.lineno <= line <= (n.end_lineno or 0)
    ]
    return max((n.lineno for n in around), default=line)
