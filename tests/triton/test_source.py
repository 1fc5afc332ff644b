"""Rules of the Triton kernels that a reader of the source can check: fla's, see docs/triton.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import lepton_kernels

FOLDER = Path(lepton_kernels.__file__).parent / "triton"
FILES = sorted(FOLDER.glob("*.py"))
BANNED = ("make_block_ptr", "advance", "make_tensor_descriptor")


def kernels(tree: ast.Module) -> list[ast.FunctionDef]:
    """Functions that Triton compiles."""

    def compiled(decorator: ast.expr) -> bool:
        return ast.unparse(decorator).split("(")[0] in ("triton.jit", "triton.autotune")

    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [f for f in functions if any(compiled(d) for d in f.decorator_list)]


def is_tl(call: ast.AST, *names: str) -> bool:
    return isinstance(call, ast.Call) and ast.unparse(call.func) in {f"tl.{n}" for n in names}


def faults(source: str) -> list[str]:
    """What breaks a rule, with its line."""
    found = []
    for function in kernels(ast.parse(source)):
        wide = {}
        for node in ast.walk(function):
            if is_tl(node, *BANNED):
                found.append(f"{node.lineno}: block pointers or descriptors are not used")
            if is_tl(node, "load"):
                keywords = {k.arg for k in node.keywords}
                if "mask" in keywords and "other" not in keywords:
                    found.append(f"{node.lineno}: tl.load has a mask without other=")
            if is_tl(node, "load", "store") and len(node.args) > (2 if is_tl(node, "store") else 1):
                found.append(f"{node.lineno}: mask and other are given by keyword")
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    wide[ast.unparse(target)] = ast.unparse(node.value)
        found += _narrow_products(function, wide)
    return found


def _narrow_products(function: ast.FunctionDef, assigned: dict[str, str]) -> list[str]:
    """Products with a stride whose other factor is not int64."""
    found = []
    for node in ast.walk(function):
        if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
            continue
        sides = [ast.unparse(side) for side in (node.left, node.right)]
        for stride, other in (sides, sides[::-1]):
            if not stride.isidentifier() or "stride" not in stride:
                continue
            text, seen = other, set()
            for _ in range(8):
                names = [n for n in assigned if n.isidentifier() and n not in seen]
                grown = " ".join(assigned[n] for n in names if _mentions(text, n))
                seen |= {n for n in names if _mentions(text, n)}
                if "int64" in text or not grown:
                    break
                text = f"{text} {grown}"
            wide_stride = "int64" in text
            if not wide_stride and not other.isdigit():
                found.append(f"{node.lineno}: {ast.unparse(node)}: {other} is not int64")
    return found


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", text) is not None


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_kernels_keep_the_rules(file):
    assert faults(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "tl.load(x + at, mask=at < n)",
        "tl.load(x + at, at < n, 0)",
        "tl.make_block_ptr(x, (n,), (1,), (0,), (16,), (0,))",
        "tl.load(x + tl.program_id(0) * row_stride, mask=True, other=0)",
    ],
)
def test_the_check_finds_faults(line):
    assert len(faults(f"@triton.jit\ndef kernel(x, n, at, row_stride):\n    {line}\n")) == 1


def test_the_check_takes_wide_products():
    body = "row = tl.program_id(0).to(tl.int64)\n    tl.load(x + row * stride, mask=True, other=0)"
    assert faults(f"@triton.jit\ndef kernel(x, stride):\n    {body}\n") == []
