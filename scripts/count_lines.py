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
SUFFIXES = (".py", ".sh")
_NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def docstring_lines(tree: ast.Module) -> set[int]:
    """Numbers of the lines that docstrings occupy."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            lines |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def count(path: pathlib.Path) -> tuple[int, int, int, list[str]]:
    """Lines, lines of code, lines of docstrings, and what is too long."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    problems = [f"{path}: {len(lines)} lines"] if len(lines) > MAX_FILE else []
    if path.suffix != ".py":
        code = sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines)
        return len(lines), code, 0, problems
    tree = ast.parse(text)
    docstrings = docstring_lines(tree)
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            code |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and "tests" not in path.parts:
            length = node.end_lineno - node.lineno + 1
            if length > MAX_FUNCTION:
                problems.append(f"{path}: {node.name} has {length} lines")
    return len(lines), len(code - docstrings), len(docstrings), problems


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.count_lines", description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(), help="a checkout; defaults to this one")
    root = parser.parse_args().root
    listed = subprocess.run(["git", "-C", root, "ls-files"], check=True, capture_output=True, text=True).stdout
    folders: dict[str, list[int]] = {}
    problems = []
    for name in listed.splitlines():
        path = root / name
        if path.suffix not in SUFFIXES or not path.exists():
            continue
        lines, code, docstrings, too_long = count(path)
        problems += too_long
        parts = pathlib.Path(name).parts
        for folder in {"/".join(parts[:depth]) or "." for depth in range(min(len(parts), 3))}:
            row = folders.setdefault(folder, [0, 0, 0, 0])
            for index, value in enumerate((1, lines, code, docstrings)):
                row[index] += value
    print(f"{'folder':28}{'files':>7}{'lines':>8}{'code':>8}{'docstrings':>12}")
    for folder, (files, lines, code, docstrings) in sorted(folders.items()):
        print(f"{folder:28}{files:7}{lines:8}{code:8}{docstrings:12} ({100 * docstrings / lines:.0f} %)")
    if problems:
        sys.exit("too long:\n  " + "\n  ".join(problems))


if __name__ == "__main__":
    main()
