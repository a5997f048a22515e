"""The compose file: its structure, its pins, and its health checks run against real servers and a real lease."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from house_project import ROOT
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import Lease
from ringlog.servers import QuestDBServer
from ringlog.servers.embedded import bound_socket
from ringlog.servers.questdb import VERSION
from ringlog.servers.valkey import binary
from ringlog.settings import Secret, Settings

ONE_SHOT = {"migrate"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert isinstance(document, dict)
    return document


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return dict(compose["services"])


def test_images_are_pinned(services: dict[str, Any]) -> None:
    """Every image names an exact version, and QuestDB's is the one that is embedded and tested."""
    for name, service in services.items():
        assert re.fullmatch(r"[a-z/]+:v?\d+(\.\d+)+", service["image"]), name
    assert services["questdb"]["image"] == f"questdb/questdb:{VERSION}"
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("FROM"):
            assert re.match(r"FROM python:3\.\d+\.\d+-(slim-)?bookworm", line), line


def test_ports_are_published_on_loopback_only(services: dict[str, Any]) -> None:
    """No port is reachable from another machine, and only the holder of the network publishes any."""
    for name, service in services.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), (name, port)
    assert {name for name, service in services.items() if "ports" in service} == {"machine"}


def test_shared_memory_outlives_every_worker(services: dict[str, Any]) -> None:
    """Lanes live in the IPC namespace of a service that never restarts by itself, and the writer joins it."""
    machine, writer = services["machine"], services["writer"]
    assert machine["ipc"] == "shareable"
    megabytes = int(re.fullmatch(r"(\d+)m", machine["shm_size"])[1])  # type: ignore[index]
    assert megabytes * 2**20 >= 2 * Settings().lane_bytes_max
    assert writer["ipc"] == "service:machine"
    assert writer["user"] == "1000:1000"
    assert "runtime:/run/ringlog" in writer["volumes"]
    assert {s["network_mode"] for n, s in services.items() if n != "machine"} == {"service:machine"}


def test_questdb_syncs_and_makes_no_tables(services: dict[str, Any]) -> None:
    """The server fsyncs what it confirms, and a write to a missing table fails instead of making one."""
    environment = services["questdb"]["environment"]
    assert environment["QDB_CAIRO_COMMIT_MODE"] == "sync"
    assert environment["QDB_LINE_AUTO_CREATE_NEW_TABLES"] == "false"


def test_services_are_checked_and_awaited(services: dict[str, Any], compose: dict[str, Any]) -> None:
    """Every lasting service has a health check, dependencies exist and are waited for, and volumes are declared."""
    for name, service in services.items():
        assert name in ONE_SHOT or service["healthcheck"]["test"][0] == "CMD", name
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other]
            elif how["condition"] == "service_completed_successfully":
                assert other in ONE_SHOT
        named = {volume.split(":")[0] for volume in service.get("volumes", []) if not volume.startswith("./")}
        assert named <= set(compose["volumes"]), name


def test_files_that_are_mounted_are_there(services: dict[str, Any]) -> None:
    """Every file that a service is given lies in the repository, and cannot be written from inside."""
    mounted = [volume for service in services.values() for volume in service.get("volumes", []) if volume[0] == "."]
    assert len(mounted) == 4
    for volume in mounted:
        path, _, mode = volume.split(":")
        assert (ROOT / path).is_file(), path
        assert mode == "ro"


def test_grafana_is_given_what_its_dashboard_wants(services: dict[str, Any]) -> None:
    """Each data source that a panel asks for is provisioned, with the read-only user that QuestDB has, and the
    dashboard lies where the provider looks."""
    grafana, questdb = services["grafana"], services["questdb"]["environment"]
    dashboard = json.loads((ROOT / "schemas/grafana/ringlog.json").read_text())
    sources = yaml.safe_load((ROOT / "schemas/grafana/datasources.yaml").read_text())["datasources"]
    assert {source["type"] for source in sources} == {variable["query"] for variable in dashboard["templating"]["list"]}
    by_type = {source["type"]: source for source in sources}
    assert by_type["questdb-questdb-datasource"]["jsonData"]["username"] == questdb["QDB_PG_READONLY_USER"]
    file = questdb["QDB_PG_READONLY_PASSWORD_FILE"]
    assert by_type["questdb-questdb-datasource"]["secureJsonData"]["password"] == f"$__file{{{file}}}"
    assert Path(file).name in grafana["secrets"]
    assert re.fullmatch(
        r"questdb-questdb-datasource@\d+\.\d+\.\d+", grafana["environment"]["GF_PLUGINS_PREINSTALL_SYNC"]
    )
    (provider,) = yaml.safe_load((ROOT / "schemas/grafana/dashboards.yaml").read_text())["providers"]
    assert any(f":{provider['options']['path']}/ringlog.json:" in volume for volume in grafana["volumes"])


def test_prometheus_asks_the_writer(services: dict[str, Any]) -> None:
    """The only target is the port at which the writer serves its metrics."""
    (job,) = yaml.safe_load((ROOT / "schemas/prometheus/prometheus.yml").read_text())["scrape_configs"]
    port = services["writer"]["environment"]["RINGLOG_METRICS_PORT"]
    assert job["static_configs"] == [{"targets": [f"127.0.0.1:{port}"]}]


def test_the_file_is_what_compose_reads(tmp_path: Path) -> None:
    """The compose specification's own schema takes the file, and refuses one with a misspelt option."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(ROOT / "docker-compose.yml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text((ROOT / "docker-compose.yml").read_text().replace("stop_grace_period: 15s", "stop_grace: 15s"))
    done = subprocess.run([*command, str(wrong)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "stop_grace" in done.stdout


def test_passwords_are_files(compose: dict[str, Any]) -> None:
    """Finding 25: no password stands in the file, in an argument or in a variable: each is a secret's file, and each
    service is given those that it names, and no others."""
    assert set(compose["secrets"]) == {"questdb", "postgres", "redis", "grafana"}
    for name, secret in compose["secrets"].items():
        assert secret == {"file": f"./secrets/{name}"}
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "secrets/" in ignored
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            if "PASSWORD" in variable or "AUTH" in variable:
                assert re.fullmatch(r"\w+_FILE", variable), (name, variable)
                assert re.fullmatch(r"/run/secrets/\w+", value), (name, variable)
        named = set(re.findall(r"/run/secrets/(\w+)", json.dumps(service)))
        given = set(service.get("secrets", ()))
        # Grafana's data source reads the file that Grafana's own password is in.
        assert named == given, name
    assert "${" not in (ROOT / "docker-compose.yml").read_text()


def test_redis_reads_its_password_from_the_file(services: dict[str, Any], tmp_path: Path) -> None:
    """Finding 25: the command of the compose file starts a server with the password of the secret's file and without
    eviction, and neither its arguments nor its environment hold the password."""
    secret = tmp_path / "redis"
    secret.write_text("canary-in-a-file\n")
    shell, option, script = services["redis"]["command"]
    with bound_socket(0) as free:
        port = free.getsockname()[1]
    script = script.replace("$$", "$").replace("/run/secrets/redis", str(secret)).replace("/data", str(tmp_path))
    script = script.replace("docker-entrypoint.sh redis-server - ", f"{binary()} - --bind 127.0.0.1 --port {port} ")
    process = subprocess.Popen([shell, option, script], stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(port=port, password="canary-in-a-file", retry=Retry(ConstantBackoff(0.05), 600))
        with client:
            assert client.ping()
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("appendonly") == {"appendonly": "yes"}
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        if sys.platform == "linux":
            shown = [Path(f"/proc/{process.pid}/{name}").read_bytes() for name in ("cmdline", "environ", "comm")]
            assert b"canary" not in b"".join(shown)
            assert b"sh" not in shown[2].split()  # it is the server itself that gets Docker's SIGTERM
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_environment_is_made_of_real_settings(services: dict[str, Any], tmp_path: Path) -> None:
    """Every RINGLOG_ variable of the writer is a setting of ringlog's."""
    secret = tmp_path / "secret"
    secret.write_text("a password")
    given = services["writer"]["environment"]
    settings = Settings.from_environment({k: str(secret) if k.endswith("_FILE") else v for k, v in given.items()})
    assert settings.redis_password == Secret("a password")


def checked(test: list[str], **environment: str) -> int:
    """Runs a health check's command as Docker would, and returns its exit status."""
    kind, *command = [part.replace("$$", "$") for part in test]
    assert kind == "CMD"
    command[0] = sys.executable if command[0] == "python" else command[0]
    return subprocess.run(command, env={**os.environ, **environment}, timeout=30, check=False).returncode


def test_health_check_of_questdb(services: dict[str, Any], questdb_server: QuestDBServer) -> None:
    """QuestDB's check passes on a running server and fails where nothing listens."""
    test = services["questdb"]["healthcheck"]["test"]
    port = questdb_server.ports["http"]
    assert checked([part.replace("127.0.0.1/9000", f"127.0.0.1/{port}") for part in test]) == 0
    assert checked([part.replace("127.0.0.1/9000", "127.0.0.1/9") for part in test]) != 0


def test_health_check_of_the_writer(services: dict[str, Any], instance_dir: Path) -> None:
    """The writer's check passes while a writer holds the lease, and fails before and after."""
    test = services["writer"]["healthcheck"]["test"]
    lease = Lease(Instance(Settings(runtime_dir=str(instance_dir))))
    assert checked(test, RINGLOG_RUNTIME_DIR=str(instance_dir)) == 1
    assert lease.take()
    try:
        assert checked(test, RINGLOG_RUNTIME_DIR=str(instance_dir)) == 0
    finally:
        lease.release()
    assert checked(test, RINGLOG_RUNTIME_DIR=str(instance_dir)) == 1
