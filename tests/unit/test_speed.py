"""How long things take: learned from calls of any length, and said in round words."""

from __future__ import annotations

import random

import pytest

from daemon.fullpass.time_left import in_words
from daemon.llm.speed import Speeds

MODEL = "claude-haiku-5-5"


def test_a_model_never_called_is_taken_to_be_as_quick_as_models_are() -> None:
    assert Speeds().seconds(MODEL, 4 * 500) == pytest.approx(6.0)


def test_replies_of_one_length_scale_what_is_supposed_of_longer_ones() -> None:
    speeds = Speeds()
    for _ in range(20):
        speeds.seen(MODEL, 4 * 100, 4.0)  # supposed: 2
    assert speeds.seconds(MODEL, 4 * 100) == pytest.approx(4.0)
    assert speeds.seconds(MODEL, 4 * 1100) == pytest.approx(24.0, rel=0.05)


@pytest.mark.parametrize(("first", "a_token"), [(0.5, 0.02), (2.0, 0.0), (0.0, 0.01)])
def test_replies_of_many_lengths_tell_the_wait_from_the_rate(first: float, a_token: float) -> None:
    speeds, dice = Speeds(), random.Random(7)
    for _ in range(60):
        tokens = dice.randint(50, 900)
        speeds.seen(MODEL, tokens, (first + a_token * tokens) * dice.uniform(0.9, 1.1))
    for tokens in (100, 500, 3000):
        assert speeds.seconds(MODEL, tokens) == pytest.approx(first + a_token * tokens, rel=0.25)


def test_waits_with_a_long_tail_do_not_hide_what_a_character_takes() -> None:
    within = 0
    for trial in range(60):
        speeds, dice = Speeds(), random.Random(trial)
        for _ in range(75):
            characters = round(max(80.0, dice.gauss(680, 200)))
            wait = 0.1 * dice.lognormvariate(0.0, 0.8)
            speeds.seen(MODEL, characters, wait + 0.00025 * characters, past=True)
        long = speeds.seconds(MODEL, 20_000)
        within += abs(long - 5.14) <= 0.25 * 5.14
    assert within >= 54


@pytest.mark.parametrize("seconds", [0.05, 0.2, 1.0])
def test_a_server_that_answers_any_length_in_one_time_is_recognised(seconds: float) -> None:
    speeds, dice = Speeds(), random.Random(3)
    for _ in range(8):
        characters = round(max(80.0, dice.gauss(680, 200)))
        speeds.seen(MODEL, characters, seconds * dice.uniform(1.0, 1.08), past=True)
    assert speeds.seconds(MODEL, 20_000) == pytest.approx(seconds, rel=0.1)


def test_slow_calls_among_a_few_alike_do_not_make_a_model_one_that_answers_any_length_at_once() -> (
    None
):
    within = 0
    for trial in range(60):
        speeds, dice = Speeds(), random.Random(trial)
        for _ in range(30):
            characters = round(dice.gauss(420, 17))
            wait = 0.1 * dice.lognormvariate(0.0, 0.3)
            speeds.seen(MODEL, characters, wait + 0.00025 * characters, past=True)
        within += abs(speeds.seconds(MODEL, 20_000) - 5.1) <= 0.3 * 5.1
    assert within >= 56


@pytest.mark.parametrize("sigma", [0.0, 0.7])
def test_what_a_model_thinks_is_no_part_of_what_a_longer_text_takes(sigma: float) -> None:
    speeds, dice = Speeds(), random.Random(5)
    for _ in range(40):
        characters = round(max(80.0, dice.gauss(680, 200)))
        tokens = characters // 4 + round(300 * dice.lognormvariate(0.0, sigma))
        took = 0.1 * dice.lognormvariate(0.0, 0.3) + 0.001 * tokens
        speeds.seen(MODEL, characters, took, output_tokens=tokens, past=True)
    assert speeds.seconds(MODEL, 20_000) == pytest.approx(5.45, rel=0.2)


def test_scripts_with_more_tokens_for_a_character_are_counted_by_what_was_billed() -> None:
    speeds, dice = Speeds(), random.Random(6)
    for _ in range(40):
        characters = round(max(40.0, dice.gauss(300, 90)))
        took = 0.5 * dice.lognormvariate(0.0, 0.3) + 0.01 * characters
        speeds.seen(MODEL, characters, took, output_tokens=characters, past=True)
    assert speeds.seconds(MODEL, 6_000) == pytest.approx(60.5, rel=0.2)


@pytest.mark.parametrize("billed", [1, 500])
def test_a_server_that_bills_any_reply_alike_is_timed_by_its_text(billed: int) -> None:
    speeds, dice = Speeds(), random.Random(7)
    for _ in range(60):
        characters = round(max(80.0, dice.gauss(680, 200)))
        took = 0.1 * dice.lognormvariate(0.0, 0.3) + 0.00025 * characters
        speeds.seen(MODEL, characters, took, output_tokens=billed, past=True)
    assert speeds.seconds(MODEL, 20_000) == pytest.approx(5.1, rel=0.25)


def test_a_provider_that_slows_down_is_believed_and_other_models_are_not_concerned() -> None:
    speeds = Speeds()
    for seconds in (2.0, 6.0):
        for _ in range(80):
            speeds.seen(MODEL, 4 * 100, seconds)
    assert 5.0 < speeds.seconds(MODEL, 4 * 100) <= 6.0
    assert speeds.knows(MODEL)
    assert not speeds.knows("claude-sonnet-5-5")
    assert speeds.seconds("claude-sonnet-5-5", 4 * 100) == pytest.approx(2.0)


def test_figures_that_make_no_sense_never_say_less_than_nothing() -> None:
    speeds = Speeds()
    for tokens, seconds in ((0, 0.0), (0, 0.0), (10, 0.0), (1000, 0.0)):
        speeds.seen(MODEL, tokens, seconds)
    assert speeds.seconds(MODEL, 500) >= 0.0
    speeds.seen(MODEL, 0, 100.0)
    assert speeds.seconds(MODEL, 10_000) >= 0.0


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "less than a minute left"),
        (49, "less than a minute left"),
        (50, "about 1 minute left"),
        (100, "about 2 minutes left"),
        (580, "about 10 minutes left"),
        (13 * 60, "about 15 minutes left"),
        (3_300, "about 55 minutes left"),
        (3_540, "about 1 hour left"),
        (5_500, "about 2 hours left"),
        (36_000, "about 10 hours left"),
    ],
)
def test_time_is_said_as_people_say_it(seconds: float, said: str) -> None:
    assert in_words(seconds) == said
