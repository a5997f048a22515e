"""When retention runs: once a day, in the hours in which the fewest rows are written."""

from __future__ import annotations

from ringlog.errors import ConfigurationError
from ringlog.questdb import audit
from ringlog.questdb.connection import Connection
from ringlog.questdb.retention import DAY_US, HOUR_US, OnCut, Report, Retention
from ringlog.questdb.tables import quoted
from ringlog.settings import Settings

WINDOW_HOURS = 2
# Where nothing is stored yet.
HOUR_DEFAULT = 3
# A run that came a little early yesterday must not push today's into tomorrow.
INTERVAL_US = DAY_US - WINDOW_HOURS * HOUR_US

_RATES = "SELECT hour(timestamp), count() FROM {} WHERE timestamp >= dateadd('d', -1, now()) AND timestamp < now()"


def window_hour(settings: Settings, connection: Connection, tables: list[str]) -> int:
    """The UTC hour at which the window of WINDOW_HOURS hours begins: the configured one, or the quietest.

    The quietest is found from the rows of the last 24 hours in `tables`.
    """
    if settings.retention_hour != -1:
        if not 0 <= settings.retention_hour <= 23:
            raise ConfigurationError(f"RINGLOG_RETENTION_HOUR: got {settings.retention_hour}, wanted 0 to 23, or -1")
        return settings.retention_hour
    rates = [0] * 24
    for table in tables:
        for hour, rows in connection.execute(_RATES.format(quoted(table))):
            rates[hour] += rows
    return quietest(rates)


def quietest(rates: list[int]) -> int:
    """The hour that begins the quietest window of a day; `rates` holds the rows of each hour, 0 to 23."""
    if not any(rates):
        return HOUR_DEFAULT
    return min(range(24), key=lambda hour: sum(rates[(hour + step) % 24] for step in range(WINDOW_HOURS)))


def is_due(now_us: int, last_us: int | None, hour: int) -> bool:
    """Whether a run is due: the window is open, and there was none since the window of the day before."""
    inside = (now_us // HOUR_US - hour) % 24 < WINDOW_HOURS
    return inside and (last_us is None or now_us - last_us >= INTERVAL_US)


def run_if_due(settings: Settings, on_cut: OnCut | None = None) -> Report | None:
    """Runs retention if it is due by the server's clock, else returns None: what the writer calls every few minutes.

    `on_cut`: as for `Retention.run`.

    Raises what `Retention.run` raises, and ConfigurationError.
    """
    connection = Connection.from_settings(settings)
    try:
        now_us = connection.execute("SELECT now()::long")[0][0]
        last_us = audit.last_run_us(connection)
        if last_us is not None and now_us - last_us < INTERVAL_US:
            return None
        with Retention(settings) as retention:
            if not is_due(now_us, last_us, window_hour(settings, connection, retention.tables())):
                return None
            return retention.run(on_cut=on_cut)
    finally:
        connection.close()
