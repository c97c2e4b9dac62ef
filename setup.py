"""The description on a package index: README.md with absolute links. All else is in pyproject.toml."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

PICTURES = (".png", ".svg")


def absolute(text: str, repository: str) -> str:
    """Turn ``](docs/x.md)`` into a link to the repository's page of the file, and pictures into their raw address."""

    def address(match: re.Match[str]) -> str:
        kind = "raw" if match[1].endswith(PICTURES) else "blob"
        return f"]({repository}/{kind}/main/{match[1]})"

    return re.sub(r"\]\((?!https?:|#)([^)\s]+)\)", address, text)


if __name__ == "__main__":
    root = Path(__file__).parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf8"))["project"]
    readme = absolute((root / "README.md").read_text(encoding="utf8"), project["urls"]["Repository"])
    setup(long_description=readme, long_description_content_type="text/markdown")
