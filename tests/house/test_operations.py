"""docs/operations.md: the table of settings is the code's, and the supervisors' files are what they must be.

Run as a script, this writes the table into the page.
"""

from __future__ import annotations

import configparser
import re

import msgspec
from house_project import ROOT

from ringlog.settings import PREFIX, SETTINGS_FILE, Secret, Settings, type_name
from ringlog.writer.reload import LIVE

PAGE = ROOT / "docs" / "operations.md"
START, END = "checked by the same file -->\n", "<!-- end of settings -->"
PER_USER = {"runtime_dir": "`$XDG_RUNTIME_DIR/ringlog`, else `ringlog-UID` in the temporary directory"}


def settings_table() -> str:
    lines = ["| variable | type | default |", "|---|---|---|"]
    for field in msgspec.structs.fields(Settings):
        kind = "secret" if field.type is Secret else type_name(field.type)
        default = PER_USER.get(field.name) or shown(field.default)
        lines.append(f"| `{PREFIX}{field.name.upper()}` | {kind} | {default} |")
    return "\n".join([*lines, ""])


def shown(default: object) -> str:
    if isinstance(default, Secret) or default == "":
        return "empty"
    return f"{default:,}" if isinstance(default, int) and default >= 100_000 else str(default)


def test_settings_table_is_the_code() -> None:
    """The page lists every setting with its type and default, and nothing else."""
    table = PAGE.read_text().split(START)[1].split(END)[0]
    assert table == settings_table(), "run: python tests/house/test_operations.py"


def test_settings_go_to_another_process_as_they_are() -> None:
    """What `to_environment` gives is read as the same settings again: numbers, flags and secrets too."""
    changed = Settings(
        runtime_dir="/run/x",
        high_water_ratio=0.25,
        redis_sink=True,
        retention_days=0,
        redis_password=Secret("s"),
        spool_dir="",
    )
    for settings in (Settings(), changed):
        assert Settings.from_environment(settings.to_environment()) == settings


def test_supervisors_restart_and_stop_the_writer_gently() -> None:
    """The supervisord and systemd files run the writer, restart it always, and give it longer than its own limit."""
    supervisord, systemd = (configparser.ConfigParser(strict=False, interpolation=None) for _ in range(2))
    supervisord.read(ROOT / "schemas" / "supervision" / "ringlog-writer.conf")
    systemd.read(ROOT / "schemas" / "supervision" / "ringlog-writer.service")
    program, service = supervisord["program:ringlog-writer"], systemd["Service"]
    limit_s = Settings().stop_timeout_ms / 1000
    assert program["command"].endswith("ringlog writer")
    assert (program["autorestart"], program["stopsignal"]) == ("true", "TERM")
    assert float(program["stopwaitsecs"]) > limit_s
    assert service["ExecStart"].endswith("ringlog writer")
    assert (service["Restart"], service["RuntimeDirectoryPreserve"]) == ("always", "yes")
    assert float(service["TimeoutStopSec"]) > limit_s
    for pair in [*program["environment"].replace('"', "").split(","), *service["Environment"].split()]:
        name, _, value = pair.partition("=")
        assert name == SETTINGS_FILE or Settings.from_environment({name: value})


def test_page_names_what_a_reload_takes_over() -> None:
    """The table of the page has exactly the settings that a running writer takes over."""
    part = PAGE.read_text().split("### Changing settings while it runs")[1].split("\n## ")[0]
    assert {name.lower() for name in re.findall(rf"^\| `{PREFIX}(\w+)` \|", part, re.MULTILINE)} == LIVE


if __name__ == "__main__":
    before, rest = PAGE.read_text().split(START)
    PAGE.write_text(before + START + settings_table() + END + rest.split(END)[1])
