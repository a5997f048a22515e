"""The questdb client's sender over HTTP: every wait bounded, its errors told apart, secrets kept in."""

from __future__ import annotations

import json
from typing import Any

from questdb import QuestDBError, QuestDBErrorCode, Sender

from ringlog.errors import ConfigurationError, RinglogError, ServerRefused, ServerUnavailable
from ringlog.questdb.conf import ClientConf

# 2: doubles travel as their eight bytes, so every finite value arrives unchanged.
PROTOCOL_VERSION = 2


def open_sender(conf: ClientConf, request_timeout_ms: int) -> Sender:
    """A sender that is ready; nothing is sent yet, and the server need not be up.

    What the configuration string leaves open is set so that no call waits longer than `request_timeout_ms` (about
    three times that for a body of 10 MB) and nothing is retried inside.
    Raises ConfigurationError, without the string's secrets in it.
    """
    wanted: dict[str, Any] = {
        "auto_flush": False,
        "protocol_version": PROTOCOL_VERSION,
        "request_min_throughput": 0,
        "request_timeout": request_timeout_ms,
        "retry_timeout": 0,
    }
    try:
        sender = Sender.from_conf(
            conf.text.reveal(), **{name: value for name, value in wanted.items() if name not in conf.options}
        )
        sender.establish()  # type: ignore[no-untyped-call]
        return sender
    except (QuestDBError, TypeError, ValueError) as error:
        reason = conf.without_secrets(str(error))
    raise ConfigurationError(f"{conf.source}: {reason}")


def mapped(error: QuestDBError, conf: ClientConf) -> RinglogError:
    """The error of a flush as one of ours.

    Only an answer in QuestDB's own form which calls the request invalid is ServerRefused. Everything else may pass
    with time: no connection, a timeout, wrong credentials, read-only, overloaded, a proxy's page.
    """
    text = conf.without_secrets(str(error).removeprefix("Could not flush buffer: ")).strip()
    if error.code is QuestDBErrorCode.ServerFlushError:
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if isinstance(answer, dict) and answer.get("code") == "invalid":
            refused = ServerRefused(f"QuestDB refused the request: {answer.get('message', text)}")
            line = answer.get("line")
            refused.line = line if isinstance(line, int) else None
            return refused
    return ServerUnavailable(f"QuestDB at {conf.address}: {text}")
