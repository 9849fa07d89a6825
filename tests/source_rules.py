"""What product and scripts must not say, found in the syntax tree: nothing pickled, no code from text, no bare folder names."""

from __future__ import annotations

import ast
from collections.abc import Iterator

FORBIDDEN_MODULES = frozenset(
    {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "multiprocessing", "shelve", "pickle5"}
)
FORBIDDEN_NAMES = frozenset({"eval", "exec"})
"""Of builtins; a method of that name, such as `model.eval()`, is another thing."""
FORBIDDEN_ATTRIBUTES = frozenset({"recv_pyobj", "send_pyobj", "ProcessPoolExecutor"})
FORBIDDEN_OF_MODULE = {
    "torch": frozenset({"load", "multiprocessing"}),
    "builtins": FORBIDDEN_NAMES,
}
OUR_FOLDERS = frozenset({"engine", "frontend", "ipc", "kernels"})


def violations(source: str) -> list[str]:
    """One line for each forbidden thing: "LINE: what"."""
    tree = ast.parse(source)
    aliases = dict(_module_aliases(tree))
    found = [
        (node.lineno, what)
        for node in ast.walk(tree)
        if isinstance(node, ast.expr | ast.stmt)
        for what in _wrong_in(node, aliases)
    ]
    return [f"{line}: {what}" for line, what in sorted(set(found))]


def imported_modules(source: str, *, at_import_time: bool = False) -> set[str]:
    """Absolute names of the modules that are imported, `from a import b` as `a`; those only that importing the file imports."""
    tree = ast.parse(source)
    nodes = _run_at_import(tree.body) if at_import_time else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


def _run_at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from _run_at_import(node.orelse)
            continue
        yield node
        for inner in ("body", "orelse", "finalbody"):
            yield from _run_at_import(getattr(node, inner, []))


def _module_aliases(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Name in the file -> module it stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.asname or alias.name, alias.name) for alias in node.names)


def _wrong_in(node: ast.AST, aliases: dict[str, str]) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            for alias in names:
                yield from _wrong_module(alias.name)
        case ast.ImportFrom(module=str(module), names=names, level=0):
            yield from _wrong_module(module)
            for alias in names:
                yield from _wrong_module(f"{module}.{alias.name}")
                yield from _wrong_member(module, alias.name)
        case ast.Name(id=name) if name in FORBIDDEN_NAMES:
            yield name
        case ast.Attribute(value=owner, attr=attribute):
            yield from _wrong_member(aliases.get(ast.unparse(owner), ""), attribute)
        case ast.Call():
            yield from _wrong_call(node)


def _wrong_call(call: ast.Call) -> Iterator[str]:
    match call:
        case ast.Call(
            func=ast.Name(id="__import__") | ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(module)), *_]
        ):
            yield from _wrong_module(module)
    if any(word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in call.keywords):
        yield "allow_pickle"


def _wrong_member(module: str, name: str) -> Iterator[str]:
    if name in FORBIDDEN_ATTRIBUTES:
        yield name
    elif name in FORBIDDEN_OF_MODULE.get(module, ()):
        yield f"{module}.{name}"


def _wrong_module(name: str) -> Iterator[str]:
    top = name.partition(".")[0]
    if top in FORBIDDEN_MODULES:
        yield f"import of {top}"
    elif name.startswith("torch.multiprocessing"):
        yield "torch.multiprocessing"
    elif top in OUR_FOLDERS:
        yield f"import of {top} without penstock"
