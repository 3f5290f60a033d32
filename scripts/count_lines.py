"""Counts lines per folder: all lines, and code without blank lines, comments and docstrings.

    python -m scripts.count_lines [--root=DIR]

Fails if a file has more than 400 lines, or a function outside of tests more than 80.
"""

from __future__ import annotations

import argparse
import ast
import io
import pathlib
import subprocess
import sys
import tokenize

MAX_FILE, MAX_FUNCTION = 400, 80
_NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def count(path: pathlib.Path) -> tuple[int, int, int, list[str]]:
    """Lines, lines of code, lines of docstrings, and what is too long."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    problems = [f"{path}: {len(lines)} lines"] if len(lines) > MAX_FILE else []
    if path.suffix != ".py":
        code = sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines)
        return len(lines), code, 0, problems
    code, docstrings = set(), set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            code |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        if isinstance(node, ast.FunctionDef) and "tests" not in path.parts:
            length = node.end_lineno - node.lineno + 1
            problems += [f"{path}: {node.name} has {length} lines"] if length > MAX_FUNCTION else []
    return len(lines), len(code - docstrings), len(docstrings), problems


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.count_lines", description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(), help="a checkout; defaults to this one")
    root = parser.parse_args().root
    listed = subprocess.run(["git", "-C", root, "ls-files"], check=True, capture_output=True, text=True).stdout
    folders: dict[str, list[int]] = {}
    problems = []
    for path in (root / name for name in listed.splitlines()):
        if path.suffix not in (".py", ".sh") or not path.exists():
            continue
        *counts, too_long = count(path)
        problems += too_long
        parts = path.relative_to(root).parts
        for folder in {"/".join(parts[:depth]) or "." for depth in range(min(len(parts), 3))}:
            before = folders.get(folder, [0, 0, 0, 0])
            folders[folder] = [a + b for a, b in zip(before, (1, *counts), strict=True)]
    print(f"{'folder':28}{'files':>7}{'lines':>8}{'code':>8}{'docstrings':>12}")
    for folder, (files, lines, code, docstrings) in sorted(folders.items()):
        print(f"{folder:28}{files:7}{lines:8}{code:8}{docstrings:12} ({100 * docstrings / lines:.0f} %)")
    if problems:
        sys.exit("too long:\n  " + "\n  ".join(problems))


if __name__ == "__main__":
    main()
