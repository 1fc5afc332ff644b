"""Rules that every file of Triton kernels keeps, read from its syntax tree."""

import ast
from pathlib import Path

import pytest

import lepton_kernels as lk

FOLDER = Path(lk.__file__).resolve().parent / "triton"
FILES = sorted(FOLDER.glob("*.py"))
BLOCK_POINTERS = ("make_block_ptr", "advance", "make_tensor_descriptor", "TensorDescriptor")


def name_of(node):
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def is_wide_cast(node):
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "to"
        and any(name_of(a) in ("int64", "uint64") for a in node.args)
    )


def narrowed(node):
    return isinstance(node, ast.Call) and name_of(node.func) == "to" and not is_wide_cast(node)


def is_wide(node, names):
    """Whether an expression holds a 64-bit number: a cast, or a name that got one."""
    if narrowed(node) or isinstance(node, ast.Compare):
        return False
    if is_wide_cast(node) or (isinstance(node, ast.Name) and node.id in names):
        return True
    return any(is_wide(child, names) for child in ast.iter_child_nodes(node))


def jitted(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(
            "jit" in ast.unparse(d) for d in node.decorator_list
        ):
            yield node


def faults(tree):
    for node in ast.walk(tree):
        if name_of(node) in BLOCK_POINTERS:
            yield node.lineno, "block pointers are not used"
    for function in jitted(tree):
        wide, before = set(), None
        while wide != before:
            before = set(wide)
            for node in ast.walk(function):
                targets = []
                if isinstance(node, ast.Assign) and len(node.targets) == 1:
                    targets = [(node.targets[0], node.value)]
                elif isinstance(node, ast.AugAssign):
                    targets = [(node.target, node.value)]
                pairs = []
                for target, value in targets:
                    both = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
                    pairs += (
                        zip(target.elts, value.elts, strict=True) if both else [(target, value)]
                    )
                for target, value in pairs:
                    if isinstance(target, ast.Name) and is_wide(value, wide):
                        wide.add(target.id)
        casts = {id(n.func.value) for n in ast.walk(function) if is_wide_cast(n)}
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and name_of(node.func) == "load":
                given = {*("pointer", "mask", "other")[: len(node.args)]}
                given |= {k.arg for k in node.keywords}
                if "mask" in given and "other" not in given:
                    yield node.lineno, "tl.load with mask= has no other="
            narrow = isinstance(node, ast.Call) and id(node) not in casts
            if narrow and name_of(node.func) == "program_id":
                yield node.lineno, "tl.program_id(...) must be followed by .to(tl.int64)"
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
                sides = (node.left, node.right)
                strides = ["stride" in name_of(s) for s in sides]
                if any(strides) and not any(is_wide(s, wide) for s in sides):
                    yield node.lineno, f"{ast.unparse(node)} is not 64 bits wide"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_rules(file):
    found = [f"{file.name}:{line}: {fault}" for line, fault in faults(ast.parse(file.read_text()))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("x = tl.load(p, mask=m)", "no other="),
        ("x = tl.load(p, m)", "no other="),
        ("x = tl.load(p + tl.load(q, mask=m), mask=m, other=0)", "no other="),
        ("i = tl.program_id(0) * 4", "program_id"),
        ("i = tl.program_id(axis=0).to(tl.int32)", "program_id"),
        ("p = base + rows * stride_row", "not 64 bits wide"),
        ("base += stride_row * 16", "not 64 bits wide"),
        ("p = base + rows[:, None] * stride_row + rows.to(tl.int64)[None, :]", "not 64 bits wide"),
        ("rows = rows.to(tl.int64).to(tl.int32); p = base + rows * stride_row", "not 64 bits wide"),
        ("p = base + tl.program_id(0).to(tl.int64).to(tl.int32) * stride_row", "not 64 bits"),
        ("p = tl.make_block_ptr(base)", "block pointers"),
        ("p = tl.advance(base, (0, 16))", "block pointers"),
        ("p = tl.make_tensor_descriptor(base, [4], [1], [4])", "block pointers"),
    ],
)
def test_the_check_sees(line, fault):
    tree = ast.parse(f"@triton.jit\ndef kernel(base, rows, stride_row):\n    {line}\n")
    assert any(fault in message for _, message in faults(tree))


def test_the_check_accepts():
    source = """
@triton.jit
def kernel(base, rows, stride_row):
    i = tl.program_id(0).to(tl.int64)
    j = i + 1
    at = base + j * stride_row + rows.to(tl.int64)[:, None] * stride_row
    at += tl.load(base + j, rows < 3, 0).to(tl.int64) * stride_row
    return tl.load(at, mask=rows < 3, other=0.0)
"""
    assert not list(faults(ast.parse(source)))
