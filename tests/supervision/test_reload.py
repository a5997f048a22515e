"""SIGHUP: what a running writer takes over, what it says needs a restart, and what it refuses."""

from __future__ import annotations

import signal
from pathlib import Path

import msgspec
import pytest
from lane_samples import eventually
from whole_path import WholePath

from ringlog.errors import ConfigurationError
from ringlog.lanes.claims import open_board
from ringlog.lanes.instance import Instance
from ringlog.pressure import Level, Pressure, Resource, Thresholds, Watch
from ringlog.settings import Secret, Settings, variable_names
from ringlog.writer.reload import LIVE, changes, taken_over
from ringlog.writer.watches import relimit


def interval_ms(settings: Settings) -> float:
    status = open_board(Instance(settings)).read_status()
    return float(msgspec.json.decode(status)["interval_ms"]) if status else 0.0


def test_settings_change_while_records_flow(path: WholePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload changes the interval at once and names what needs a restart; a broken file changes nothing; records
    that were appended all the while are stored exactly once."""
    file = tmp_path / "writer.env"
    file.write_text("# of this test\nRINGLOG_DRAIN_INTERVAL_MS=50\n")
    monkeypatch.setenv("RINGLOG_SETTINGS_FILE", str(file))
    monkeypatch.setattr(Settings, "to_environment", without_interval)
    path.start_writer()
    assert path.writer is not None
    with path.producing() as append:
        eventually(lambda: interval_ms(path.settings) == 50, "the file's interval")
        append(200)
        # From 1 s on slow writes do not stretch it.
        file.write_text("RINGLOG_DRAIN_INTERVAL_MS=1000\nRINGLOG_METRICS_PORT=1\nRINGLOG_REDIS_PASSWORD='canary 1'\n")
        path.writer.send_signal(signal.SIGHUP)
        append(200)
        eventually(lambda: interval_ms(path.settings) == 1000, "the new interval")
        assert "setting changed drain_interval_ms: 50 -> 1000" in path.log_text()
        assert "setting needs a restart metrics_port: 0 -> 1" in path.log_text()
        assert "setting needs a restart redis_password: a secret -> another" in path.log_text()
        assert "canary" not in path.log_text()
        for broken, what in (
            ("RINGLOG_DRAIN_INTERVAL_MS=never", "RINGLOG_DRAIN_INTERVAL_MS: got 'never', wanted int"),
            ("RINGLOG_DRAIN_INTERVAL_MS=0", "drain_interval_ms: got 0, wanted at least 1"),
            ("canary 2", "writer.env line 1: got no RINGLOG_NAME=value"),
        ):
            file.write_text(broken)
            path.writer.send_signal(signal.SIGHUP)
            append(200)
            eventually(lambda what=what: what in path.log_text(), "the refusal")  # type: ignore[misc]
        assert path.log_text().count("settings are as before") == 3
        assert "canary" not in path.log_text()
        eventually(lambda: interval_ms(path.settings) == 1000, "the interval as before")
    assert path.require_exact().accepted == 1000


to_environment = Settings.to_environment


def without_interval(settings: Settings) -> dict[str, str]:
    names = {"RINGLOG_DRAIN_INTERVAL_MS", "RINGLOG_METRICS_PORT"}  # the environment goes over the file
    return {name: value for name, value in to_environment(settings).items() if name not in names}


def test_only_live_settings_are_taken_over() -> None:
    """Every setting that is not live stays, and every difference is reported once; secrets are never shown."""
    before = Settings(runtime_dir="/a")
    after = Settings(
        runtime_dir="/b", drain_interval_ms=7, batch_rows_max=8, spool_bytes_max=1 << 30,
        postgres_password=Secret("canary"),
    )  # fmt: skip
    found = changes(before, after)
    assert [(change.name, change.is_live) for change in found] == [
        ("runtime_dir", False),
        ("drain_interval_ms", True),
        ("batch_rows_max", True),
        ("spool_bytes_max", True),
        ("postgres_password", False),
    ]
    assert "canary" not in " ".join(map(str, found))
    taken = taken_over(before, after)
    assert (taken.runtime_dir, taken.drain_interval_ms, taken.postgres_password) == ("/a", 7, Secret())
    assert changes(taken, after) == [change for change in found if not change.is_live]
    assert changes(before, before) == []


def test_disks_have_new_limits_at_once() -> None:
    """A raised limit refuses with the next sample, and a lowered one accepts again; counts go on."""
    watch = Watch(Resource.SPOOL_DISK, "here", Thresholds.of_disk(100), lambda: 1_000)
    pressure = Pressure([watch])
    assert pressure.poll(1.0).accepting
    relimit(pressure, Settings(disk_free_bytes_min=2_000))
    assert not pressure.poll(2.0).accepting
    relimit(pressure, Settings(disk_free_bytes_min=100))
    assert pressure.poll(3.0).accepting
    assert pressure.level is Level.OK
    assert pressure.alerts[Resource.SPOOL_DISK] == 1
    assert pressure.on_alert is None
    relimit(pressure, Settings(disk_free_bytes_min=100, alert_command="true"))
    assert pressure.on_alert is not None


def test_live_settings_are_settings() -> None:
    """Each name that a reload takes over is an option, and none of them leads to a server or logs in there."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(Settings)}
    assert defaults.keys() >= LIVE
    assert not any(name.startswith(("questdb_", "postgres_", "redis_")) for name in LIVE)


def test_a_settings_file(tmp_path: Path) -> None:
    """Its variables count below the environment and above the defaults, quotes and comments as in a shell."""
    file = tmp_path / "ringlog.env"
    file.write_text(
        "# both servers\n\nRINGLOG_QUESTDB_HOST=db1 # here\nRINGLOG_REDIS_HOST='db 2'\n"
        'RINGLOG_QUESTDB_PASSWORD="a\'b#c"\nQDB_CLIENT_CONF=http::addr=x:1;\n'
    )
    environ = {"RINGLOG_SETTINGS_FILE": str(file), "RINGLOG_REDIS_HOST": "db3"}
    found = Settings.from_environment(environ)
    assert (found.questdb_host, found.redis_host) == ("db1", "db3")
    assert found.questdb_password == Secret("a'b#c")
    assert found.questdb_client_conf == Secret("http::addr=x:1;")
    assert Settings.from_environment(environ, redis_host="db4").redis_host == "db4"
    assert variable_names({"A": "b"}) == {"A"}
    assert "RINGLOG_QUESTDB_HOST" in variable_names(environ)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("RINGLOG_QUESTDB_PASSWORD=canary two", "line 2"),
        ("RINGLOG_QUESTDB_PASSWORD='canary", "line 2"),
        ("export RINGLOG_REDIS_HOST=canary", "line 2"),
        ("PATH=/canary", "line 2"),
        ("RINGLOG_RING=python", "line 2"),
        ("RINGLOG_LANE_BITES_MAX=1", "RINGLOG_LANE_BITES_MAX: got an unknown option"),
    ],
)
def test_a_settings_file_with_a_wrong_line(line: str, what: str, tmp_path: Path) -> None:
    """The error names file and line, or the variable, and never shows what might be a secret."""
    file = tmp_path / "ringlog.env"
    file.write_text(f"RINGLOG_REDIS_HOST=a\n{line}\n")
    with pytest.raises(ConfigurationError, match=what) as caught:
        Settings.from_environment({"RINGLOG_SETTINGS_FILE": str(file)})
    assert "canary" not in str(caught.value)


def test_a_settings_file_that_is_not_there(tmp_path: Path) -> None:
    """A wrong path is an error that names it: defaults in its place would be a surprise."""
    with pytest.raises(ConfigurationError, match=r"none\.env.*No such file"):
        Settings.from_environment({"RINGLOG_SETTINGS_FILE": str(tmp_path / "none.env")})
