"""Trouble that comes and goes, and a room that cannot be reached at once: told, and not in a storm."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from daemon.errors import Systemic
from daemon.ops.outbox import Outbox
from daemon.queue.pausing import Pausing
from tests.support.loopback import Reply
from tests.support.queue_checks import until
from tests.support.telling import settings_for, telling, telling_over_a_link

if TYPE_CHECKING:
    from daemon.database import Pool
    from tests.support.telling import Db
    from tests.support.webhook_receiver import WebhookReceiver

NOTHING_DUE = (
    "select not exists (select from fullpass.outbox where ended_at is null and due_at <= now())"
)
LATER = (
    "update fullpass.outbox set at = at - interval '1 hour', due_at = due_at - interval '1 hour', "
    "told_at = told_at - interval '1 hour'"
)


async def test_work_that_stops_and_goes_on_all_day_is_no_storm_and_its_newest_word_arrives(
    db: Db, pool: Pool, chat: WebhookReceiver
) -> None:
    """One worker of two has a bad key: it stops again and again, and the other's jobs go through."""
    async with telling(pool, **settings_for(chat=chat)):
        for _ in range(15):
            await Outbox(pool).alert("stopped", "work", {"trouble": "the key", "worker": "w"})
            await until(lambda: db.fetchval(NOTHING_DUE), seconds=10)
            await db.execute("select fullpass.tell_resumed(clock_timestamp())")
            await until(lambda: db.fetchval(NOTHING_DUE), seconds=10)
        assert len(chat.texts()) == 20
        assert "work goes on" in chat.texts()[-1]
        await Outbox(pool).alert("stopped", "work", {"trouble": "the key", "worker": "w"})
        await until(lambda: db.fetchval(NOTHING_DUE), seconds=10)
        assert len(chat.texts()) == 20
        await db.execute(LATER)
        await chat.until(21)
        await until(lambda: db.fetchval(NOTHING_DUE), seconds=10)
    assert ["work has stopped" in text for text in chat.texts()[20:]] == [True]


async def test_a_stop_that_the_room_did_not_take_at_first_is_told_again(
    database_url: str, db: Db, chat: WebhookReceiver
) -> None:
    """It goes straight out, since the database is away too: no outbox tries it again."""
    chat.answers.append(Reply(500))
    async with telling_over_a_link(database_url, **settings_for(chat=chat)) as (proxy, teller):
        proxy.lose()
        teller.alarm.stopped("the key is refused")
        await chat.until(2)
        proxy.find()
        told = "select count(*) = 1 from fullpass.outbox where outcome = 'delivered'"
        await until(lambda: db.fetchval(told), seconds=10)
    assert ["work has stopped" in text for text in chat.texts()] == [True, True]


async def test_an_outage_of_the_database_that_the_room_did_not_hear_of_is_told_again(
    pool: Pool, chat: WebhookReceiver
) -> None:
    chat.answers.append(Reply(500))
    async with telling(pool, **settings_for(chat=chat)) as teller:
        teller.alarm._patience_seconds = 0.0
        teller.alarm.out_of_reach("the database cannot be reached")
        await teller.alarm.hush(seconds=10)
        teller.alarm.out_of_reach("the database cannot be reached")
        await chat.until(2)
        await teller.alarm.hush(seconds=10)
        teller.alarm.out_of_reach("the database cannot be reached")
        teller.alarm.reached()
        await chat.until(3)
    assert "answers again" in chat.texts()[2]


async def test_each_stop_while_the_database_is_away_is_told_when_work_had_gone_on_in_between(
    database_url: str, db: Db, chat: WebhookReceiver
) -> None:
    async with telling_over_a_link(database_url, **settings_for(chat=chat)) as (proxy, teller):
        pausing = Pausing(teller.alarm)
        for stops in (1, 2):
            proxy.lose()
            pausing.take(Systemic("the key is refused", seconds=60.0))
            await chat.until(stops)
            proxy.find()
            noted = f"select count(*) = {stops} from fullpass.outbox"
            await until(partial(db.fetchval, noted), seconds=10)
            pausing.worked()
            pausing._until = 0.0
    assert ["work has stopped" in text for text in chat.texts()] == [True, True]
