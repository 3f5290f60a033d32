"""Programs that kill the command line, and damage what it reads, by a seed; see docs/reliability.md."""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # the helpers of the tests


class Log:
    """The results of a campaign, a line of JSON each. A campaign that was interrupted goes on after the last one."""

    def __init__(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.jsonl"
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        self.entries = [json.loads(line) for line in lines if line.endswith("\n")]
        self.path.write_text("".join(line for line in lines if line.endswith("\n")))

    def add(self, *entries):
        self.entries += entries
        with self.path.open("a") as file:
            file.write("".join(json.dumps(entry) + "\n" for entry in entries))


def table(head, rows):
    """Markdown; numbers are aligned to the right."""
    rules = ["---:" if all(isinstance(row[i], int) for row in rows) else "---" for i in range(len(head))]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (head, rules, *rows))
