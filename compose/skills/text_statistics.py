"""Counts the words, lines and characters of a text.

A skill reads one JSON object on standard input and writes one on standard
output. It runs behind walls: it sees this directory and the system's programs
to read, /tmp to write, and no network.
"""

import json
import sys


def main() -> None:
    text = json.load(sys.stdin)["text"]
    words, lines, characters = len(text.split()), len(text.splitlines()), len(text)
    json.dump(
        {
            "words": words,
            "lines": lines,
            "characters": characters,
            "summary": f"{words} words, {lines} lines, {characters} characters",
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
