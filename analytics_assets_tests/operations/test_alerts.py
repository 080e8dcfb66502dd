"""What is told: one message per change, in order, until it is delivered."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from analytics_assets.operations import UNREADABLE, Level, Line
from analytics_assets.operations.alerts import MAX_WAITING, Message, Outbox

NOW = datetime(2026, 11, 25, 3, 5, tzinfo=UTC)
DAYS = Line("days", "event_signups", Level.OK, "180 days")
RUNS = Line("runs", "daily run", Level.OK, "ended")
RED = replace(DAYS, level=Level.RED, words="missing: 2026-11-24", facts=("2026-11-24",))


@dataclass
class Receiver:
    """Takes every message."""

    messages: list[Message] = field(default_factory=list)

    def take(self, message: Message) -> bool:
        self.messages.append(message)
        return True


def note(outbox: Outbox, *lines: Line) -> Outbox:
    return outbox.note(lines, NOW, "db.example/analytics", "Europe/Berlin")


def told(outbox: Outbox) -> list[str]:
    return [message.title for message in outbox.waiting]


def test_a_message_says_what_since_when_and_where_to_look() -> None:
    (message,) = note(Outbox(), RED, RUNS).waiting
    assert message.title == "analytics red: days: event_signups"
    assert message.body.splitlines() == [
        "missing: 2026-11-24",
        "Since: 2026-11-25 04:05 Europe/Berlin",
        "Where to look: docs/operations.md#days, `analytics-assets status`",
        "Installation: db.example/analytics",
        "Message: 1",
    ]


def test_a_line_that_knows_since_when_says_so() -> None:
    (message,) = note(Outbox(), replace(RED, since=NOW - timedelta(days=2))).waiting
    assert "Since: 2026-11-23 04:05 Europe/Berlin" in message.body


def test_a_change_is_told_once_and_so_is_its_end() -> None:
    outbox = note(Outbox(), DAYS, RUNS)
    assert told(outbox) == []
    for _ in range(3):
        outbox = note(outbox, RED, RUNS)
    assert told(outbox) == ["analytics red: days: event_signups"]
    for _ in range(3):
        outbox = note(outbox, DAYS, RUNS)
    assert told(outbox) == ["analytics red: days: event_signups", "analytics ok: days: event_signups"]
    assert told(note(outbox, RED, RUNS))[2:] == ["analytics red: days: event_signups"]


def test_what_gets_worse_or_better_is_a_change() -> None:
    warning = replace(RED, level=Level.WARNING)
    outbox = note(note(note(Outbox(), warning), RED), warning)
    assert [message.level for message in outbox.waiting] == [Level.WARNING, Level.RED, Level.WARNING]


def test_a_further_missing_day_is_news_and_one_less_is_not() -> None:
    both = replace(RED, words="missing: two", facts=("2026-11-23", "2026-11-24"))
    outbox = note(note(Outbox(), RED), both)
    assert len(outbox.waiting) == 2
    outbox = note(outbox, RED)
    assert len(outbox.waiting) == 2
    assert len(note(outbox, both).waiting) == 3, "it was collected in between"


def test_messages_are_in_the_order_of_the_lines_and_numbered() -> None:
    outbox = note(Outbox(), replace(RUNS, level=Level.RED), RED)
    assert told(outbox) == ["analytics red: runs: daily run", "analytics red: days: event_signups"]
    assert [message.number for message in outbox.waiting] == [1, 2]
    assert [message.number for message in note(outbox, DAYS, RUNS).waiting] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "unknown",
    [
        [RUNS],
        [RUNS, Line("days", UNREADABLE, Level.OK, "the database cannot be reached")],
    ],
    ids=["the group is not there", "the group cannot be read"],
)
def test_what_cannot_be_looked_at_is_not_taken_for_ok(unknown: list[Line]) -> None:
    outbox = note(note(Outbox(), RED, RUNS), *unknown)
    assert told(outbox) == ["analytics red: days: event_signups"]
    assert told(note(outbox, RED, RUNS)) == ["analytics red: days: event_signups"]
    assert told(note(outbox, DAYS, RUNS))[1:] == ["analytics ok: days: event_signups"]


def test_a_line_that_cannot_be_read_because_of_another_is_neither_told_nor_taken_for_ok() -> None:
    cause = replace(RUNS, level=Level.RED)
    for red in ([RED], [Line("days", UNREADABLE, Level.RED, "")]):
        unread = [replace(line, words="", facts=(), because_of=cause.key) for line in red]
        outbox = note(note(Outbox(), RUNS, *red), cause, *unread)
        assert told(outbox)[1:] == ["analytics red: runs: daily run"]
        assert told(note(outbox, RUNS, *red))[2:] == ["analytics ok: runs: daily run"]
        assert len(told(note(outbox, RUNS, DAYS))) == 4


def test_a_line_that_is_gone_is_told_as_gone() -> None:
    other = replace(DAYS, name="directory_searches")
    outbox = note(note(Outbox(), RED, other), other)
    assert told(outbox)[1:] == ["analytics ok: days: event_signups"]
    assert "not looked at any more" in outbox.waiting[1].body
    assert told(note(outbox, other)) == told(outbox)


def test_a_group_that_can_be_read_again_is_told() -> None:
    unreadable = Line("days", UNREADABLE, Level.RED, "the database cannot be reached")
    outbox = note(note(Outbox(), unreadable), DAYS)
    assert told(outbox) == ["analytics red: days: cannot be read", "analytics ok: days: cannot be read"]


def test_the_cursor_holds_everything() -> None:
    outbox = note(Outbox(), replace(RED, since=NOW), RUNS).deliver(lambda _: False, NOW, to_log=True)
    assert Outbox.load(outbox.dump()) == outbox


@pytest.mark.parametrize("cursor", [None, "", "2026-11-25", "{", '{"waiting": 1}'])
def test_a_cursor_that_cannot_be_read_means_that_everything_is_told_again(cursor: str | None) -> None:
    assert Outbox.load(cursor) == Outbox()


# --- delivery


def test_a_message_that_is_not_taken_stops_the_others_and_stays() -> None:
    outbox = note(Outbox(), RED, replace(RUNS, level=Level.RED))
    assert len(outbox.waiting) == 2
    tried: list[Message] = []

    def refuse(message: Message) -> bool:
        tried.append(message)
        return False

    later = NOW + timedelta(hours=1)
    waits = outbox.deliver(refuse, NOW, to_log=True).deliver(refuse, later, to_log=True)
    assert [message.number for message in tried] == [1, 1]
    assert waits.waiting == outbox.waiting
    assert waits.refused_since == NOW

    slow = iter([True, False])
    rest = note(waits, RED, replace(RUNS, level=Level.RED)).deliver(lambda _: next(slow), later, to_log=True)
    assert rest.waiting
    assert rest.refused_since == later, "a receiver that takes one message per evaluation is not down"

    taken = Receiver()
    empty = waits.deliver(taken.take, later, to_log=True)
    assert tuple(taken.messages) == outbox.waiting
    assert (empty.waiting, empty.refused_since) == ((), None)


def test_what_happens_while_nobody_listens_is_told_later_in_order() -> None:
    outbox = Outbox()
    for lines in ([RED], [DAYS], [RED]):
        outbox = note(outbox, *lines).deliver(lambda _: False, NOW, to_log=True)
    taken = Receiver()
    outbox.deliver(taken.take, NOW, to_log=True)
    assert [message.level for message in taken.messages] == [Level.RED, Level.OK, Level.RED]


def test_a_tick_that_breaks_off_repeats_the_same_messages_and_loses_none() -> None:
    stored = note(Outbox(), RED).dump()
    taken = Receiver()
    for _ in range(2):  # the first tick ends before its cursor is stored
        Outbox.load(stored).deliver(taken.take, NOW, to_log=True)
    assert taken.messages[0] == taken.messages[1]


def test_of_too_many_messages_the_oldest_are_left_out_and_that_is_said() -> None:
    outbox = Outbox()
    for _ in range(MAX_WAITING // 2 + 5):
        outbox = note(note(outbox, RED), DAYS)
    assert len(outbox.waiting) == MAX_WAITING
    taken = Receiver()
    outbox = Outbox.load(outbox.dump()).deliver(taken.take, NOW, to_log=True)
    assert [message.number for message in taken.messages] == list(range(11, MAX_WAITING + 11))
    assert "10 older messages were left out" in taken.messages[0].body
    assert "left out" not in taken.messages[1].body
    assert outbox.left_out == 0


def test_who_sets_a_receiver_is_told_what_is_red_already() -> None:
    logged = note(Outbox(), RED).deliver(lambda _: True, NOW, to_log=True)
    assert told(note(logged, RED)) == []
    taken = Receiver()
    outbox = note(logged.deliver(taken.take, NOW, to_log=False), RED)
    assert taken.messages == []
    assert told(outbox) == ["analytics red: days: event_signups"]
    assert outbox.waiting[0].number == 2
    assert told(note(outbox.deliver(lambda _: True, NOW, to_log=False), RED)) == []
