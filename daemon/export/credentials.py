"""The shapes of keys that vendors give out, each recognisable by itself.

Owns one list of patterns and what makes a hit believable; where to look is redact.py's affair. A
shape is here when its vendor documents a prefix or a structure that ordinary text does not have
(read 2026-11-22). All hold a stretch of twenty characters or more without a space, with a digit:
redact.py looks at such stretches only.
"""

from __future__ import annotations

import re
from typing import TypeAlias

Found: TypeAlias = tuple[int, int, str]
"""A secret: characters [start, stop) of a text, and its kind."""

# Prefixes so particular that the rest need only be long enough.
_CERTAIN = (
    r"(?:AKIA|ABIA|ACCA)[A-Z0-9]{16}",  # AWS
    r"AIza[A-Za-z0-9_\-]{35}",  # Google
    r"ya29\.[A-Za-z0-9_\-]{30,}+",
    r"GOCSPX-[A-Za-z0-9_\-]{28}",
    r"gh[pousr]_[A-Za-z0-9]{36,}+",  # GitHub
    r"github_pat_[A-Za-z0-9_]{22,}+",
    r"gl(?:pat|ptt|dt|rt|agent|oas|cbt|ft|imt|soat)-[A-Za-z0-9_\-.]{20,}+",  # GitLab
    r"xox[abeoprs]-[A-Za-z0-9\-]{15,}+",  # Slack
    r"xapp-\d-[A-Za-z0-9\-]{20,}+",
    r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,}+",  # Stripe
    r"whsec_[A-Za-z0-9+/=]{24,}+",
    r"sb_secret_[A-Za-z0-9_\-]{20,}+",  # Supabase
    r"sbp_(?:v\d_)?[0-9a-f]{40}",
    r"npm_[A-Za-z0-9]{36}",
    r"pypi-[A-Za-z0-9_\-]{50,}+",
    r"rubygems_[0-9a-f]{48}",
    r"dckr_(?:pat|oat)_[A-Za-z0-9_\-]{24,}+",  # Docker
    r"hf_[A-Za-z0-9]{30,}+",  # Hugging Face
    r"gsk_[A-Za-z0-9]{40,}+",  # Groq
    r"r8_[A-Za-z0-9]{37}",  # Replicate
    r"xai-[A-Za-z0-9]{60,}+",
    r"pplx-[A-Za-z0-9]{40,}+",  # Perplexity
    r"tvly-[A-Za-z0-9\-]{24,}+",  # Tavily
    r"pcsk_[A-Za-z0-9_]{40,}+",  # Pinecone
    r"lsv2_(?:pt|sk)_[0-9a-f]{32}_[0-9a-f]{10}",  # LangSmith
    r"SG\.[A-Za-z0-9_\-]{20,24}\.[A-Za-z0-9_\-]{39,50}",  # SendGrid
    r"[0-9a-f]{32}-us\d{1,2}",  # Mailchimp
    r"\d{8,10}:AA[A-Za-z0-9_\-]{33}",  # Telegram
    r"do[opr]_v1_[0-9a-f]{64}",  # DigitalOcean
    r"dp\.(?:pt|st|sa|ct|scim|audit)\.[A-Za-z0-9._\-]{40,}+",  # Doppler
    r"dapi[0-9a-f]{32}(?:-\d)?",  # Databricks
    r"dt0c01\.[A-Z0-9]{24}\.[A-Z0-9]{64}",  # Dynatrace
    r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}",  # Shopify
    r"sq0(?:atp|csp)-[A-Za-z0-9_\-]{22,}+",  # Square
    r"secret_[A-Za-z0-9]{43}|ntn_[A-Za-z0-9]{40,}+",  # Notion
    r"lin_(?:api|oauth)_[A-Za-z0-9]{32,}+",  # Linear
    r"pat[A-Za-z0-9]{14}\.[0-9a-f]{64}",  # Airtable
    r"figd_[A-Za-z0-9_\-]{35,}+",  # Figma
    r"AT(?:ATT|CTT)3[A-Za-z0-9_\-=]{80,}+",  # Atlassian
    r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}",  # Postman
    r"glsa_[A-Za-z0-9]{32}_[0-9a-fA-F]{8}|glc_[A-Za-z0-9+/=]{32,}+",  # Grafana
    r"NR(?:AK|JS|II)-[A-Za-z0-9\-]{19,}+",  # New Relic
    r"sntry[su]_[A-Za-z0-9+/=_]{40,}+",  # Sentry
    r"hv[sbr]\.[A-Za-z0-9_\-]{24,}+",  # Vault
    r"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_\-=]{60,}+",  # Terraform Cloud
    r"pscale_(?:tkn|pw|oauth)_[A-Za-z0-9_\-.=]{32,}+",  # PlanetScale
    r"n(?:apis?|pg)_[A-Za-z0-9]{30,}+",  # Neon
    r"nfp_[A-Za-z0-9]{36,}+",  # Netlify
    r"HRKU-[A-Za-z0-9_\-]{36,}+",  # Heroku
    r"fm[12][ar]?_[A-Za-z0-9+/=_,]{60,}+|fo1_[A-Za-z0-9_\-]{43}",  # Fly
    r"AGE-SECRET-KEY-1[A-Z0-9]{58}",
    r"LTAI[A-Za-z0-9]{20}",  # Alibaba
    r"EAACEdEose0cBA[A-Za-z0-9]{20,}+|EAA[A-Za-z0-9]{90,}+",  # Facebook
    r"AAAAAAAAAAAAAAAAAAAAA[A-Za-z0-9%]{60,}+",  # X
    r"key-[0-9a-f]{32}",  # Mailgun
    r"SK[0-9a-f]{32}",  # Twilio
    r"A3-[A-Z0-9]{6}-[A-Z0-9]{6}(?:-?[A-Z0-9]{5}){4}",  # 1Password
    r"ops_eyJ[A-Za-z0-9+/=]{200,}+",
    r"[A-Za-z0-9_~.]{3}\dQ~[A-Za-z0-9_~.\-]{31,34}",  # Azure
)
# Prefixes that words have too: the rest must be random.
_LIKELY = (
    r"sk-(?:[a-z]{2,12}\d{0,2}-){0,3}[A-Za-z0-9_\-]{20,}+",  # OpenAI, Anthropic and their like
    r"ASIA[A-Z0-9]{16}",  # AWS, for a session
    r"[MNO][A-Za-z0-9_\-]{23,27}\.[A-Za-z0-9_\-]{6}\.[A-Za-z0-9_\-]{27,}+",  # Discord
)
_JWT = r"eyJ[A-Za-z0-9_\-]{8,}+(?:\.[A-Za-z0-9_\-]{8,}+){2}"
_WEBHOOKS = (
    r"(?<=hooks\.slack\.com/)(?:services|workflows)/[A-Za-z0-9/]{30,}+",
    r"(?<=discord\.com/api/webhooks/)\d{17,20}/[A-Za-z0-9_\-]{60,}+",
)

SHAPES = re.compile(
    r"(?<![A-Za-z0-9_])(?:"
    rf"(?P<certain>{'|'.join((*_CERTAIN, *_WEBHOOKS))})"
    rf"|(?P<likely>{'|'.join(_LIKELY)})"
    rf"|(?P<jwt>{_JWT})"
    r")(?![A-Za-z0-9_])"
)
"""Finds one; the group that matched says how far to believe it."""


def is_mixed(secret: str) -> bool:
    """Say whether a token is random rather than words: digits and letters, in no readable order."""
    digits, uppers, lowers, hexadecimal = _counts(secret)
    if not digits or not (lowers or uppers):
        return False
    if uppers >= 2 and lowers >= 2 and digits >= 2:
        return True
    return digits >= 4 and hexadecimal >= 28


def is_random(secret: str) -> bool:
    """Judge what follows a word like `token`: a long value may hold few digits."""
    digits, uppers, lowers, _ = _counts(secret)
    return is_mixed(secret) or (len(secret) >= 32 and digits >= 1 and uppers >= 4 and lowers >= 4)


def _counts(secret: str) -> tuple[int, int, int, int]:
    data = secret.encode("ascii", "replace")
    return (
        len(data) - len(data.translate(None, _DIGITS)),
        len(data) - len(data.translate(None, _UPPERS)),
        len(data) - len(data.translate(None, _LOWERS)),
        len(data) - len(data.translate(None, _HEXADECIMAL)),
    )


_DIGITS = b"0123456789"
_LOWERS = bytes(range(ord("a"), ord("z") + 1))
_UPPERS = _LOWERS.upper()
_HEXADECIMAL = _DIGITS + b"abcdefABCDEF"
