"""Logs on standard error, as lines or as JSON, with the ID of the request in each."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone

from camp_sdk.runtime.messages import visible
from camp_sdk.server.guard import REQUEST_ID


def configure_logs(form: str) -> None:
    """Send all logs of this process to standard error.

    Args:
        form: "line" or "json".
    """
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(JsonFormatter() if form == "json" else LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(logging.INFO)


class LineFormatter(logging.Formatter):
    """A record on one line; of an error, its traceback follows."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        moment = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line = f"{moment} {record.levelname.lower()} {REQUEST_ID.get()} {visible(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """A record as an object of JSON on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        found = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "request_id": REQUEST_ID.get(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(found)
