"""What a process says: one JSON object a line on stderr, with a stable `event` and the ids that were bound for the task."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor

from shared.settings import Settings


def configure(settings: Settings) -> None:
    """Send our events, and the warnings of libraries, to stderr. Call it once, in the process's `app.py`; a second call replaces the first.

    Ids are bound for a thread with `structlog.contextvars.bound_contextvars(run=17)`; events are logged with `structlog.get_logger()`.
    """

    def name_process(_logger: object, _method: str, event: EventDict) -> EventDict:
        event["process"] = settings.process
        return event

    steps: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_process,
        structlog.processors.format_exc_info,
    ]
    to_json = structlog.processors.JSONRenderer(ensure_ascii=False, default=str)
    structlog.configure(
        processors=[*steps, to_json],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=steps, processors=[strip, to_json]))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
