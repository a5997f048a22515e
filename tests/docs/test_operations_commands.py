"""The commands that docs/operations.md shows for watching and diagnosing."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from ringlog.cli import ringlog

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def test_commands_are_there_with_their_options() -> None:
    """Every `$ ringlog` line of the page names a command that is there, and options that it takes."""
    lines = re.findall(r"^\$ ringlog ([a-z-]+)(.*)$", PAGE, re.MULTILINE)
    assert {"top", "tap", "dump", "doctor", "validate"} <= {name for name, _ in lines}
    for name, rest in lines:
        shown = CliRunner().invoke(ringlog, [name, "--help"])
        assert shown.exit_code == 0, name
        for option in re.findall(r"(?<=\s)(--?[a-z][a-z-]*)", rest):
            assert option in shown.output, f"{name} {option}"
