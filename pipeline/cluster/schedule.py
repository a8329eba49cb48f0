"""When a night begins, and the window in which it may begin tenants."""

import re
from collections.abc import Iterator
from datetime import datetime, time, timedelta
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator

from dladiff.settings.validate import Settings, unless

_CRON = re.compile(r"(\S+\s+){4}\S+|@(hourly|daily|weekly|monthly)")


def _clock(value: Any) -> time:
    try:
        return value if isinstance(value, time) else time.fromisoformat(value).replace(tzinfo=None)
    except (ValueError, TypeError):
        raise ValueError(f'{value!r} is no time; write it in quotes, as "01:30"') from None


def _cron_fault(text: str) -> str | None:
    good = _CRON.fullmatch(text.strip())
    return None if good else f'{text!r} has not five fields; write for example "0 1 * * *"'


def _zone_fault(name: str) -> str | None:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return f"{name!r} is unknown; give one as Europe/Berlin"
    return None


TimeOfDay = Annotated[time, BeforeValidator(_clock)]


class Schedule(Settings):
    """When a nightly run starts, and the window in which it may begin tenants."""

    cron: Annotated[str, unless(_cron_fault)] = "0 1 * * *"
    """When the job starts on Kubernetes: five cron fields, in `time_zone`."""
    time_zone: Annotated[str, unless(_zone_fault)] = "UTC"
    """Name of a time zone, as Europe/Berlin."""
    start: TimeOfDay = time(1)
    """Begin of the window, in quotes, as "01:00"."""
    end: TimeOfDay = time(6)
    """End of the window: no tenant and no task is begun after it."""

    def contradictions(self) -> Iterator[str]:
        """Yield how settings contradict each other."""
        if self.start == self.end:
            yield "end: is the same as start; the window would be empty"

    def is_open(self, now: datetime) -> bool:
        """Return whether the window is open; it may go over midnight."""
        local = now.astimezone(ZoneInfo(self.time_zone)).time().replace(tzinfo=None)
        if self.start <= self.end:
            return self.start <= local < self.end
        return local >= self.start or local < self.end

    def closes(self, now: datetime) -> datetime:
        """Return when the window closes next."""
        local = now.astimezone(ZoneInfo(self.time_zone))
        end = datetime.combine(local.date(), self.end, local.tzinfo)
        return end if end > local else datetime.combine(local.date() + timedelta(days=1), self.end, local.tzinfo)
