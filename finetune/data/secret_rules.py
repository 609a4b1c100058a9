"""Rules for secrets in text: keys and tokens by their published shapes, private keys, passwords.

Most shapes are those of the detect-secrets plugins; what it misses or cannot delimit is added here. Rules that flag
any string of high entropy are left out on purpose: in support texts they mostly find order numbers and file hashes.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from detect_secrets.plugins.aws import AWSKeyDetector
from detect_secrets.plugins.azure_storage_key import AzureStorageKeyDetector
from detect_secrets.plugins.base import RegexBasedDetector
from detect_secrets.plugins.discord import DiscordBotTokenDetector
from detect_secrets.plugins.github_token import GitHubTokenDetector
from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
from detect_secrets.plugins.jwt import JwtTokenDetector
from detect_secrets.plugins.mailchimp import MailchimpDetector
from detect_secrets.plugins.openai import OpenAIDetector
from detect_secrets.plugins.pypi_token import PypiTokenDetector
from detect_secrets.plugins.sendgrid import SendGridDetector
from detect_secrets.plugins.slack import SlackDetector
from detect_secrets.plugins.square_oauth import SquareOAuthDetector
from detect_secrets.plugins.stripe import StripeDetector
from detect_secrets.plugins.telegram_token import TelegramBotTokenDetector
from detect_secrets.plugins.twilio import TwilioKeyDetector

from .findings import Finding


class Rule(NamedTuple):
    """A shape of secret: tried only where one of `hints` is in the text, a match kept if `accept` says so.

    `group` is the part that is the secret; -1 stands for the last group that matched, or for the whole match where
    there is none. Hints are in lower case and are looked for in the text in lower case.
    """

    kind: str
    hints: tuple[str, ...]
    pattern: re.Pattern
    group: int = 0
    accept: Callable[[str], bool] = bool


# A key starts where a word does. Without this, a text that repeats the first letters of one takes time that grows with
# the square of its length.
_START = r"(?<![A-Za-z0-9_-])"


def looks_random(value: str) -> bool:
    """Return whether a value has what drawn characters have: both letters and digits, and at least 8 different."""
    return any(c.isdigit() for c in value) and any(c.isalpha() for c in value) and len(set(value)) >= 8


def is_varied(value: str) -> bool:
    """Return whether a value is more than a placeholder such as `hf_xxxxxxxx`: at least 10 different characters."""
    return len(set(value)) >= 10


def looks_like_a_password(value: str) -> bool:
    """Return whether a word behind "password:" is one: letters with digits, or with signs no sentence has inside."""
    letters = any(c.isalpha() for c in value)
    digits = any(c.isdigit() for c in value)
    signs = any(c in "!#$%*+=@^~?" for c in value[:-1])
    return len(set(value)) >= 4 and letters and (digits or signs)


def _rules_of(
    plugin: type[RegexBasedDetector],
    kind: str,
    *hints: str,
    start: str = _START,
    group: int = 0,
    accept: Callable[[str], bool] = bool,
) -> list[Rule]:
    """Return a rule for each pattern of a plugin, tried only where `start` allows it."""
    patterns = [re.compile(f"{start}(?:{found.pattern})", found.flags) for found in plugin().denylist]
    return [Rule(kind, hints, pattern, group, accept) for pattern in patterns]


# Each starts at a word's start and needs its own prefix, so a plain word never matches.
_TOKENS = (
    # What the library lacks.
    ("huggingface-token", "hf_", r"hf_[A-Za-z0-9]{30,}"),
    ("huggingface-token", "api_org_", r"api_org_[A-Za-z0-9]{30,}"),
    ("wandb-key", "wandb_v1_", r"wandb_v1_[A-Za-z0-9_]{40,}"),
    ("anthropic-key", "sk-ant-", r"sk-ant-[A-Za-z0-9_-]{20,}"),
    ("openai-key", "sk-", r"sk-(?:proj|svcacct|admin|None)-[A-Za-z0-9_-]{20,}"),
    ("google-key", "aiza", r"AIza[A-Za-z0-9_-]{35}"),
    ("google-key", "gocspx-", r"GOCSPX-[A-Za-z0-9_-]{20,}"),
    ("google-key", "ya29.", r"ya29\.[A-Za-z0-9_-]{20,}"),
    ("github-token", "github_pat_", r"github_pat_[A-Za-z0-9_]{50,}"),
    ("slack-token", "xapp-", r"xapp-\d-[A-Z0-9]+-\d+-[A-Za-z0-9]+"),
    ("npm-token", "npm_", r"npm_[A-Za-z0-9]{36}"),
    ("docker-token", "dckr_pat_", r"dckr_pat_[A-Za-z0-9_-]{20,}"),
    ("digitalocean-token", "do", r"do[opr]_v1_[a-f0-9]{64}"),
    ("shopify-token", "shp", r"shp(?:at|ca|pa|ss)_[A-Fa-f0-9]{32}"),
    ("stripe-key", "whsec_", r"whsec_[A-Za-z0-9+/=]{24,}"),
    ("groq-key", "gsk_", r"gsk_[A-Za-z0-9]{40,}"),
    ("replicate-token", "r8_", r"r8_[A-Za-z0-9]{30,}"),
    ("perplexity-key", "pplx-", r"pplx-[A-Za-z0-9]{40,}"),
    ("xai-key", "xai-", r"xai-[A-Za-z0-9]{60,}"),
    ("nvidia-key", "nvapi-", r"nvapi-[A-Za-z0-9_-]{40,}"),
    ("databricks-token", "dapi", r"dapi[a-f0-9]{32}"),
    ("atlassian-token", "atatt3x", r"ATATT3x[A-Za-z0-9_=-]{40,}"),
    ("linear-key", "lin_api_", r"lin_api_[A-Za-z0-9]{30,}"),
    ("notion-token", "ntn_", r"ntn_[A-Za-z0-9]{40,}"),
    ("vault-token", "hvs.", r"hvs\.[A-Za-z0-9_-]{24,}"),
)
# A word such as api_key, a sign that gives it a value, and the value.
_ASSIGNED = (
    r"(?i)\b{name}[\"'`]?\s{{0,3}}(?:[:=]|=>|is|ist|est|es)\s{{0,3}}[\"'`]?"
    r"(?:(?:bearer|basic|token)\s+)?([{value}]{{{least},128}})"
)
_KEY_NAMES = (
    r"(?:(?:api|secret|access|account|auth|private|shared[ _-]?access)[ _-]?(?:key|token|secret)"
    r"|client[ _-]?secret|authorization|bearer)"
)
_PASSWORD_NAMES = r"(?:pass(?:word|wort|wd|phrase|code)|kennwort|contraseña|mot de passe|pwd)"
_KEY_BLOCK = (
    r"-----BEGIN ([A-Z0-9 ]{0,30})PRIVATE KEY( BLOCK)?-----"
    # As far as its end; without one, as far as lines of base64 go.
    r"(?:[\s\S]{0,16000}?-----END \1PRIVATE KEY(?:\2)?-----|[\sA-Za-z0-9+/=\\]{0,16000})"
)

# Looked for inside each run of characters that keys are made of.
TOKEN_RULES = (
    *(Rule(kind, (hint,), re.compile(_START + pattern), 0, is_varied) for kind, hint, pattern in _TOKENS),
    *_rules_of(OpenAIDetector, "openai-key", "t3blbkfj"),
    Rule("api-key", ("sk-",), re.compile(_START + r"sk-[A-Za-z0-9_-]{24,}"), 0, looks_random),
    *_rules_of(AzureStorageKeyDetector, "azure-key", "accountkey="),
    *_rules_of(GitHubTokenDetector, "github-token", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", accept=is_varied),
    *_rules_of(GitLabTokenDetector, "gitlab-token", "gl", "gr1348941", accept=is_varied),
    *_rules_of(SlackDetector, "slack-token", "xox", "hooks.slack.com"),
    *_rules_of(StripeDetector, "stripe-key", "k_live_"),
    *_rules_of(SendGridDetector, "sendgrid-key", "sg."),
    *_rules_of(TwilioKeyDetector, "twilio-key", "ac", "sk", accept=looks_random),
    *_rules_of(SquareOAuthDetector, "square-key", "sq0csp-"),
    *_rules_of(PypiTokenDetector, "pypi-token", "pypi-ag"),
    *_rules_of(MailchimpDetector, "mailchimp-key", "-us"),
    *_rules_of(TelegramBotTokenDetector, "telegram-token", ":", start=r"(?<!\d)", accept=looks_random),
    *_rules_of(DiscordBotTokenDetector, "discord-token", ".", accept=looks_random),
    # The library's pattern leaves out the signature.
    Rule(
        "jwt",
        ("eyj",),
        re.compile(_START + r"eyJ[\w-]+\.[\w=-]+(?:\.[\w+/=-]+)?"),
        0,
        JwtTokenDetector.is_formally_valid,
    ),
)
# Looked for in the whole text: what stands before it is what makes it a secret.
TEXT_RULES = (
    Rule("private-key", ("private key",), re.compile(_KEY_BLOCK)),
    # The older key of Weights & Biases is 40 hexadecimal digits, as is any git commit: only where it is named.
    Rule("wandb-key", ("wandb",), re.compile(r"(?i)wandb[^\n]{0,40}?(?<![0-9a-f])([0-9a-f]{40})(?![0-9a-f])"), 1),
    *_rules_of(
        AWSKeyDetector, "aws-key", "akia", "asia", "abia", "acca", "a3t", "aws", start="", group=-1, accept=is_varied
    ),
    Rule(
        "api-key",
        ("key", "token", "secret", "authorization", "bearer"),
        re.compile(_ASSIGNED.format(name=_KEY_NAMES, value=r"\w\-./+=~", least=16)),
        1,
        looks_random,
    ),
)
URL_PASSWORD = Rule("url-password", ("://",), re.compile(r"://[^\s:/@]{1,64}:([^\s/@]{1,128})@[\w\[]"), 1)
PASSWORD = Rule(
    "password",
    ("passw", "passp", "passc", "pwd", "kennwort", "contrase", "mot de passe"),
    re.compile(_ASSIGNED.format(name=_PASSWORD_NAMES, value=r"^\s\"'`<>,;", least=6)),
    1,
    looks_like_a_password,
)


# By hint: a plain loop over short strings picks the few rules to try, several times faster than trying them.
_TOKENS_BY_HINT = tuple((hint, rule) for rule in TOKEN_RULES for hint in rule.hints)
_TEXTS_BY_HINT = tuple((hint, rule) for rule in TEXT_RULES for hint in rule.hints)
_PASSWORDS_BY_HINT = tuple((hint, rule) for rule in (URL_PASSWORD, PASSWORD) for hint in rule.hints)


def find_long_secrets(text: str, runs: Iterable[tuple[int, int]]) -> Iterator[Finding]:
    """Yield keys, tokens and private keys. `runs` are the stretches of characters that keys are made of."""
    for start, end in runs:
        yield from _apply(_TOKENS_BY_HINT, text, start, end)
    yield from _apply(_TEXTS_BY_HINT, text, 0, len(text))


def find_passwords(text: str) -> Iterator[Finding]:
    """Yield passwords: those inside addresses (`https://user:password@host`), and those given as one."""
    yield from _apply(_PASSWORDS_BY_HINT, text, 0, len(text))


def _apply(rules: Iterable[tuple[str, Rule]], text: str, start: int, end: int) -> Iterator[Finding]:
    lowered = text[start:end].lower()
    for hint, rule in rules:
        if hint not in lowered:
            continue
        for match in rule.pattern.finditer(text, start, end):
            group = (match.lastindex or 0) if rule.group < 0 else rule.group
            if rule.accept(match[group]):
                yield Finding(rule.kind, match.start(group), match.end(group))
