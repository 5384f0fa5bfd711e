"""Credentials never leave the reader, ordinary words always do, and no line makes it slow."""

from __future__ import annotations

import base64
import random
import string
import sysconfig
import time
from pathlib import Path

import pytest

from daemon.export.reader import ExportReader
from daemon.export.redact import redact, redact_each
from tests.support.export_samples import dump, read, talk

# Made here, so that no scanner takes this file for a leak.
RANDOM = random.Random(11)


HEXADECIMAL = "0123456789abcdef"


def made(length: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    begin = "a1b2" if alphabet is HEXADECIMAL else "a1B2"
    return begin + "".join(RANDOM.choice(alphabet) for _ in range(length - 4))


SECRETS = {
    "openai": "sk-" + made(48),
    "openai project": "sk-proj-" + made(60),
    "anthropic": "sk-ant-api03-" + made(90) + "-" + made(6),
    "deepseek": "sk-" + "0123456789abcdef" * 2,
    "aws": "AKIA" + made(16, string.ascii_uppercase + string.digits).upper(),
    "github": "ghp_" + made(36),
    "github fine": "github_pat_" + made(22) + "_" + made(50),
    "gitlab": "glpat-" + made(20),
    "slack": "xoxb-" + "1234567890-" + made(24),
    "google": "AIza" + made(35),
    "supabase": "sb_secret_" + made(30),
    "npm": "npm_" + made(36),
    "stripe": "sk_live_" + made(24),
    "hugging face": "hf_" + made(34),
    "openrouter": "sk-or-v1-" + made(64, HEXADECIMAL),
    "google client": "GOCSPX-" + made(28),
    "stripe restricted": "rk_test_" + made(24),
    "docker": "dckr_pat_" + made(27),
    "pypi": "pypi-AgEIcHlwaS5vcmc" + made(80),
    "sendgrid": "SG." + made(22) + "." + made(43),
    "telegram": "123456789:AA" + made(33),
    "twilio": "SK" + made(32, HEXADECIMAL),
    "mailgun": "key-" + made(32, HEXADECIMAL),
    "mailchimp": made(32, HEXADECIMAL) + "-us12",
    "shopify": "shpat_" + made(32, HEXADECIMAL),
    "digitalocean": "dop_v1_" + made(64, HEXADECIMAL),
    "databricks": "dapi" + made(32, HEXADECIMAL),
    "notion": "ntn_" + made(46),
    "linear": "lin_api_" + made(40),
    "airtable": "pat" + made(14) + "." + made(64, HEXADECIMAL),
    "figma": "figd_" + made(40),
    "grafana": "glsa_" + made(32) + "_" + made(8, HEXADECIMAL),
    "vault": "hvs." + made(90),
    "planetscale": "pscale_tkn_" + made(43),
    "replicate": "r8_" + made(37),
    "groq": "gsk_" + made(52),
    "xai": "xai-" + made(80),
    "perplexity": "pplx-" + made(48),
    "postman": "PMAK-" + made(24, HEXADECIMAL) + "-" + made(34, HEXADECIMAL),
    "azure": "abc8Q~" + made(34),
    "supabase access": "sbp_" + made(40, HEXADECIMAL),
    "slack app": "xapp-1-" + made(60),
    "jwt": ".".join(
        base64.urlsafe_b64encode(part).decode().rstrip("=")
        for part in (b'{"alg":"HS256"}', b'{"sub":"1234567890"}', b"signature-bytes-here")
    ),
    "visa": "4111 1111 1111 1111",
    "mastercard": "5555555555554444",
    "amex": "3782-822463-10005",
}


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize(
    "frame", ["{}", "it is {}, ok?", "KEY={}\n", '{{"k": "{}"}}', "`{}`", "({})"]
)
def test_secrets_are_replaced_wherever_they_stand(kind: str, frame: str) -> None:
    secret = SECRETS[kind]
    text, count = redact(frame.format(secret))
    assert secret not in text
    assert count == 1
    assert "[redacted:" in text
    assert text.startswith(frame[:1] if frame[0] != "{" else text[:1])


@pytest.mark.parametrize("ending", ["\n", "\\n"], ids=["lines", "escaped"])
def test_private_keys_go_as_a_whole(ending: str) -> None:
    body = ending.join(made(64) for _ in range(5))
    for kind in ("", "RSA ", "EC ", "OPENSSH "):
        pem = f"-----BEGIN {kind}PRIVATE KEY-----{ending}{body}{ending}-----END {kind}PRIVATE KEY-----"
        assert redact(f"here:\n{pem}\nthanks") == ("here:\n[redacted:private-key]\nthanks", 1)
    cut = f"-----BEGIN PRIVATE KEY-----{ending}{body}"
    assert redact(cut) == ("[redacted:private-key]", 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("password: hunter2", "password: [redacted:password]"),
        ("my password is hunter2.", "my password is [redacted:password]."),
        ("My WiFi password is swordfish", "My WiFi password is [redacted:password]"),
        ("my netflix password: kitten42", "my netflix password: [redacted:password]"),
        ("pwd=abc12345;", "pwd=[redacted:password];"),
        ("DB_PASSWORD='Xy7$kk29'", "DB_PASSWORD='[redacted:password]'"),
        ('{"password": "P@ssw0rd!"}', '{"password": "[redacted:password]"}'),
        ("mi contraseña es Gato1234", "mi contraseña es [redacted:password]"),
        ("Mein Passwort ist geheim99", "Mein Passwort ist [redacted:password]"),
        ("mon mot de passe est soleil24", "mon mot de passe est [redacted:password]"),
        ("минипароль: qwerty123", "минипароль: [redacted:password]"),
        ("密码是abc12345", "密码是[redacted:password]"),
        ("postgres://app:s3cr3tPw@db/x", "postgres://app:[redacted:password]@db/x"),
        ("my password used to be swordfish", "my password used to be [redacted:password]"),
        ("My old password was hunter2!", "My old password was [redacted:password]!"),
        ("my password is blue horse.", "my password is [redacted:password]."),
        ("our wifi password: green lantern", "our wifi password: [redacted:password]"),
        ("my passphrase is 'correct horse battery'", "my passphrase is '[redacted:password]'"),
        ("mi contraseña era Gato1234", "mi contraseña era [redacted:password]"),
        ("Server=db;User Id=sa;Password=M1$ecreto;", "Server=db;User Id=sa;Password=[redacted:password];"),
        ("mongodb+srv://app:Zx81spectrum@c0.example/x", "mongodb+srv://app:[redacted:password]@c0.example/x"),
        ("redis://:p4ssw0rd@cache:6379/0", "redis://:[redacted:password]@cache:6379/0"),
        ("jdbc:postgresql://h/db?user=a&password=b1gS3cret", "jdbc:postgresql://h/db?user=a&password=[redacted:password]"),
        ("Authorization: Basic dXNlcjpodW50ZXIyMg==", "Authorization: Basic [redacted:password]"),
        ("aws_secret_access_key = wJalrX7tnFEMI/K7MDENG/bPxRfiCY8ab9cdefgh", "aws_secret_access_key = [redacted:api-key]"),
        ("Authorization: Bearer abcDEF1234567890abcDEF1234", "Authorization: Bearer [redacted:api-key]"),
    ],
)  # fmt: skip
def test_passwords_after_a_cue(text: str, expected: str) -> None:
    assert redact(text) == (expected, 1)


@pytest.mark.parametrize(
    "text",
    [
        "my password is incorrect",
        "my password is not working since the update",
        "the password is required",
        "my password is my birthday.",
        "My password was reset yesterday.",
        "my password is long gone",
        "my password is stored in 1Password",
        "my password is the same.",
        "Authorization: Basic realm",
        "postgresql://user:password@host:5432/database",
        "https://example.org/a-slug-of-many-words-2024-with-numbers-17/and/more",
        "password = request.form['password']",
        "password: str",
        "def login(user, password=None):",
        "password=os.environ['DB_PASSWORD']",
        "password = get_password(user1)",
        "Password: minimum 8 characters",
        "password: ********",
        "pwd=$PWD",
        "postgres://user:password@localhost/db",
        "postgres://${USER}:${PASS}@host/db",
        "sk-fading-circle-container-element",
        "token: abcdefghijklmnopqrstuvwxyz",
        "passwordResetToken: user.resetToken2",
        "order 1234 5678 9012 3456 and 4111111111111112",
        "4111111111111111.5 and id_4111111111111111",
        "-----BEGIN PRIVATE KEY----- starts such a block",
        "-----BEGIN CERTIFICATE-----",
        "commit 3f786850e387550fdab836ed7e6dc881de23001b",
        "550e8400-e29b-41d4-a716-446655440000",
        "",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    assert redact(text) == (text, 0)


def test_redacting_twice_changes_nothing() -> None:
    once, _ = redact(" and ".join([*SECRETS.values(), "password: hunter2", "u://a:b1c2d3@h"]))
    assert redact(once) == (once, 0)


def test_at_most_one_false_hit_in_a_megabyte_of_code() -> None:
    folder = Path(sysconfig.get_paths()["stdlib"])
    size = hits = 0
    for path in sorted(folder.glob("*.py")):
        code = path.read_text("utf-8", "replace")
        size += len(code)
        hits += redact(code)[1]
    assert size > 1_000_000
    assert hits <= size / 1_000_000


def test_texts_looked_at_together_know_nothing_of_each_other() -> None:
    """A cue that ends one message says nothing of the next one's first word."""
    texts = ["my password is", "hunter2 was a joke", "", "密码是abc12345", "key: " + SECRETS["openai"],
             "-----BEGIN PRIVATE KEY-----\n" + made(64), "-----END of that", "plain"]  # fmt: skip
    together = list(redact_each(texts))
    assert together == [redact(text) for text in texts]
    assert sum(hits for _, hits in together) == 3
    assert together[-1][0] is texts[-1]


def test_a_long_conversation_is_searched_in_pieces_and_none_is_left_out() -> None:
    texts = [f"{'word ' * 9_000} and {SECRETS['github']} {n}" for n in range(20)]
    redacted = list(redact_each(iter(texts)))
    assert [hits for _, hits in redacted] == [1] * 20
    assert [text[-1:] for text, _ in redacted] == [text[-1:] for text in texts]
    assert not any(SECRETS["github"] in text for text, _ in redacted)


@pytest.mark.parametrize(
    "unit",
    [
        "sk-", "eyJ", "eyJaaaaaaaa.", "password ", "password:", "my password ", "password is ",
        "-----BEGIN PRIVATE KEY-----", "4", "4111 ", "4111-1111-", "http://", "://a:b", "token", "pwd:",
        "secret_", "-", "_", "A", "my ", "密码", "key=", "eyJaaaaaaaaaaaaaaaaaa1.", "Authorization: Basic ", "a1" * 12 + ".", "SG.", "\u0130password",
    ],
)  # fmt: skip
def test_no_line_is_slow(unit: str) -> None:
    line = unit * (500_000 // len(unit)) + "password"
    started = time.process_time()
    redact(line)
    assert time.process_time() - started < 3.0  # anything quadratic would take minutes


def test_letters_that_only_ignoring_case_makes_base64_are_none() -> None:
    """The long s and the sign for kelvin are an `s` and a `k` to an expression that ignores case."""
    text = "Authorization: Basic " + "\u017f\u212a" * 8
    assert redact(text) == (text, 0)


def test_the_cut_off_end_of_one_private_key_hides_no_other() -> None:
    keys = [f"-----BEGIN PRIVATE KEY-----\n{made(64)}\n-----END PRIV", f"-----BEGIN PRIVATE KEY-----\n{made(64)}\n"]  # fmt: skip
    assert [hits for _, hits in redact_each(keys)] == [1, 1]


def test_a_sign_of_life_comes_while_a_conversation_is_redacted(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(dump([talk("c", *(["hello"] * 500))]))
    signs: list[None] = []
    ((found),) = ExportReader(path, on_read=lambda: signs.append(None))
    assert len(signs) >= len(found.messages) == 500


def test_the_reader_redacts_text_and_title_and_counts(tmp_path: Path) -> None:
    secret = SECRETS["openai"]
    (found,), report = read(
        tmp_path, dump([talk("c", f"use {secret}", "ok", title=f"Key {secret}")])
    )
    assert found.title == "Key [redacted:api-key]"
    assert found.messages[0].text == "use [redacted:api-key]"
    assert report.redacted == 2


@pytest.mark.parametrize("unit", ["pwd ", "密码 ", "4111 1111 1111 1111 "])
def test_signs_of_life_come_while_one_long_message_is_redacted(unit: str) -> None:
    """64 MB of nothing but cues take minutes, and silence is taken for a reader that hangs."""
    signs: list[None] = []
    list(redact_each([unit * 20_000], lambda: signs.append(None)))
    assert len(signs) >= 10
