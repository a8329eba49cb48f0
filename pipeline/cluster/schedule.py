"""When a night begins, and the window in which it may begin tenants."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dladiff.settings.merge import nearest

_CRON = re.compile(r"(\S+\s+){4}\S+|@(hourly|daily|weekly|monthly)")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When a nightly run starts, and the window in which it may begin tenants."""

    cron: str = "0 1 * * *"
    """When the job starts on Kubernetes: five cron fields, in `time_zone`."""
    time_zone: str = "UTC"
    """Name of a time zone, as Europe/Berlin."""
    start: time = time(1)
    """Begin of the window, in quotes, as "01:00"."""
    end: time = time(6)
    """End of the window: no tenant and no task is begun after it."""

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


def schedule(values: Mapping[str, Any], faults: list[str]) -> Schedule:
    """Build a schedule from a job file's values; what is wrong is added to `faults`."""
    good: dict[str, Any] = {}
    for key, value in values.items():
        if key not in (known := [f.name for f in fields(Schedule)]):
            faults.append(f"schedule.{key}: unknown setting{nearest(str(key), known)}")
            continue
        try:
            good[key] = time.fromisoformat(value).replace(tzinfo=None) if key in ("start", "end") else str(value)
        except (ValueError, TypeError):
            faults.append(f'schedule.{key}: {value!r} is no time; write it in quotes, as "01:30"')
    found = Schedule(**good)
    try:
        ZoneInfo(found.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        faults.append(f"schedule.time_zone: {found.time_zone!r} is unknown; give one as Europe/Berlin")
    if not _CRON.fullmatch(found.cron.strip()):
        faults.append(f'schedule.cron: {found.cron!r} has not five fields; write for example "0 1 * * *"')
    if found.start == found.end:
        faults.append("schedule: start and end are the same; the window would be empty")
    return found
