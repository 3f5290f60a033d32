"""Sections of the paper that docstrings cite are in docs/method.md."""

import pathlib
import re

REPOSITORY = pathlib.Path(__file__).parents[1]
# "[7.1]" and "[2.3, 6, 7.1]": at least one number with a decimal, or a single digit that ends a sentence or clause.
CITATION = re.compile(r"\[(\d(?:\.\d)?(?:, \d(?:\.\d)?)*)\](?=[.:;,)]|\s|$)")


def cited_sections():
    """(section, file) of every citation in docstrings and comments."""
    for folder in ("threedim", "configs", "scripts"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            prose = re.findall(r'"""(.*?)"""', text, re.DOTALL) + re.findall(r"#(.*)", text)
            for citation in (match for part in prose for match in CITATION.findall(part)):
                numbers = citation.split(", ")
                if "0" not in numbers and (len(numbers) == 1 or any("." in number for number in numbers)):
                    yield from ((number, str(path.relative_to(REPOSITORY))) for number in numbers)


def test_cited_sections_exist():
    headings = set(re.findall(r"^## \[([\d.]+)\]", (REPOSITORY / "docs/method.md").read_text(encoding="utf-8"), re.M))
    cited = set(cited_sections())
    assert {"2.2", "7.1", "7.4"} <= {section for section, _ in cited}
    assert not {(section, path) for section, path in cited if section not in headings}
