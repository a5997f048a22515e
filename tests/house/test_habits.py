"""What a contributor is told and what CI runs: files that are there, commands that exist, workflows by their schema."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from house_project import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TOLD = ("CONTRIBUTING.md", "SECURITY.md", ".github/pull_request_template.md", *(str(path) for path in WORKFLOWS))


def test_workflows_are_valid() -> None:
    """Every workflow keeps GitHub's schema, and every issue form is one object with a name and a body."""
    assert WORKFLOWS
    command = (sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    forms = [yaml.safe_load(path.read_text()) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")]
    assert all(form.get("body") or "blank_issues_enabled" in form for form in forms)


def test_workflows_run_scripts_alone() -> None:
    """A step is an action or a script of this repository: what CI does, a person can do by hand."""
    for path in WORKFLOWS:
        jobs: dict[str, Any] = yaml.safe_load(path.read_text())["jobs"]
        for job in jobs.values():
            for step in job["steps"]:
                assert "uses" in step or re.search(r"(?:^| )\./scripts/\w+", step["run"]), (path.name, step)


@pytest.mark.parametrize("name", TOLD)
def test_what_is_named_is_there(name: str) -> None:
    """Scripts, folders and files that are named in backticks, in links or in a step exist."""
    text = (ROOT / name).read_text()
    named = re.findall(r"\./(scripts/\w+)|\]\(([\w./-]+)\)|`([\w.-]+(?:/[\w.-]*)+|[\w-]+\.(?:py|c|md|toml))`", text)
    paths = {next(filter(None, groups)) for groups in named if "TABLE" not in "".join(groups)}
    assert paths or name == "SECURITY.md"
    missing = [path for path in paths if not ((ROOT / path).exists() or (ROOT / "ringlog" / path).exists())]
    # What a script leaves behind is not there yet.
    assert [path for path in missing if Path(path).name != "slow-parts.json"] == []
