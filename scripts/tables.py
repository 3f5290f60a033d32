"""Markdown tables."""

from collections.abc import Sequence


def number(value: float | None, decimals: int, error: float | None = None) -> str:
    """A number with its error, such as "18.31 ± 0.12"; a dash for None."""
    text = "–" if value is None else f"{value:.{decimals}f}"
    return text if error is None else f"{text} ± {error:.{decimals}f}"


def table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the first of which is the header."""
    texts = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([texts[0], f"|{' --- |' * len(lines[0])}", *texts[1:]])
