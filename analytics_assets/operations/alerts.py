"""What is told when the state of an installation changes: one message per change, in order, until it is delivered.

Pure: lines and an outbox in, an outbox out. The sensor keeps the outbox in its cursor. A message is sent only once it
is in a stored cursor. So a crash between sending and storing repeats a message, with its number, and loses none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from pydantic import TypeAdapter, ValidationError

from analytics_assets.days import zone
from analytics_assets.operations import UNREADABLE, Level, Line

MAX_WAITING: Final = 500
"""Messages that wait for a receiver. The oldest of more are left out, and the next message says how many."""

PAGE: Final = "docs/operations.md"


@dataclass(frozen=True)
class Message:
    """What is sent. Its number is higher than that of every earlier message."""

    number: int
    level: Level
    title: str
    body: str


@dataclass(frozen=True)
class Told:
    """What was said last about a line that is not ok."""

    level: Level
    since: datetime
    facts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outbox:
    """What was told, and what waits to be sent."""

    told: dict[str, Told] = field(default_factory=dict)
    """Key of a line -> what was said; only of lines that are not ok."""
    waiting: tuple[Message, ...] = ()
    """Oldest first."""
    number: int = 0
    """That of the newest message."""
    left_out: int = 0
    """Messages that were dropped from a full outbox and have not been mentioned."""
    refused_since: datetime | None = None
    """Since when the receiver takes no message; None while it does."""
    to_log: bool = True
    """Whether the receiver is the log."""

    @classmethod
    def load(cls, cursor: str | None) -> Outbox:
        """Read a cursor. One that cannot be read counts as empty, so that everything is told again."""
        try:
            return _ADAPTER.validate_json(cursor or "{}")
        except ValidationError:
            return cls()

    def dump(self) -> str:
        """Return the cursor."""
        return _ADAPTER.dump_json(self).decode()

    def note(self, lines: Sequence[Line], now: datetime, installation: str, time_zone: str) -> Outbox:
        """Add a message per change since the last call, in the order of the lines.

        Nothing is told about a line that cannot be read: what was said about it last still holds. A line that is gone
        is told as such, unless its group cannot be read.
        """
        found = {line.key: line for line in lines}
        told = dict(self.told)
        messages: list[Message] = []

        def write(level: Level, key: str, what: str, since: datetime) -> None:
            moment = since.astimezone(zone(time_zone)).strftime("%Y-%m-%d %H:%M")
            group = key.partition(": ")[0]
            body = (
                f"{what}\nSince: {moment} {time_zone}\nWhere to look: {PAGE}#{group}, `analytics-assets status`\n"
                f"Installation: {installation}\nMessage: {self.number + len(messages) + 1}"
            )
            title = f"analytics {level}: {key}"
            messages.append(Message(self.number + len(messages) + 1, level, title, body))

        for key, line in found.items():
            if line.because_of:
                continue
            known = told.get(key)
            if line.level is Level.OK:
                if known:
                    write(Level.OK, key, f"It is ok again: {line.words}", now)
                    del told[key]
            elif known is None or known.level is not line.level or set(line.facts) - set(known.facts):
                since = line.since or now
                write(line.level, key, line.words, since)
                told[key] = Told(line.level, since, line.facts)
            else:
                # A fact that is gone and comes back is news.
                told[key] = replace(known, facts=line.facts)
        groups = {line.group for line in lines} - {line.group for line in lines if line.name == UNREADABLE}
        for key in [key for key in told if key not in found]:
            if key.partition(": ")[0] in groups:
                write(Level.OK, key, "It is not looked at any more, or can be read again.", now)
                del told[key]
        return self._append(messages, told)

    def _append(self, messages: Sequence[Message], told: dict[str, Told]) -> Outbox:
        waiting = (*self.waiting, *messages)
        return replace(
            self,
            told=told,
            waiting=waiting[-MAX_WAITING:],
            number=self.number + len(messages),
            left_out=self.left_out + max(0, len(waiting) - MAX_WAITING),
        )

    def deliver(self, send: Callable[[Message], bool], now: datetime, *, to_log: bool) -> Outbox:
        """Send what waits, oldest first, up to the first message that `send` does not deliver.

        Whoever was told by the log only is told everything once more when a receiver is set.
        """
        if self.to_log and not to_log:
            return Outbox(number=self.number, to_log=False)
        left = list(self.waiting)
        left_out = self.left_out
        while left:
            message = left[0]
            if left_out:
                text = f"{left_out} older messages were left out: the receiver took none for too long."
                message = replace(message, body=f"{message.body}\n{text}")
            if not send(message):
                break
            left_out = 0
            left.pop(0)
        taken = len(left) < len(self.waiting)
        since = now if taken or self.refused_since is None else self.refused_since
        refused = since if left else None
        return replace(self, waiting=tuple(left), left_out=left_out, refused_since=refused, to_log=to_log)


_ADAPTER: Final = TypeAdapter(Outbox)
