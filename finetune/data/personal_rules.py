"""Rules for personal data in text: e-mail, IP addresses, telephone, bank, card, national and tax numbers.

Whatever can be checked is: digits by their check sums (python-stdnum), telephone numbers by the numbering plans
(phonenumbers). Names and postal addresses are not looked for: no rule finds them with few false alarms.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator

import phonenumbers
from stdnum import iban, luhn
from stdnum.br import cpf
from stdnum.es import dni, nie
from stdnum.eu import vat
from stdnum.fr import nir
from stdnum.it import codicefiscale
from stdnum.us import ssn

from .findings import Finding

# Mailboxes of a function, not of a person; a support text is full of them.
_ROLE = re.compile(
    r"abuse|accounts|admin|billing|careers|contact|feedback|git|hello|help|helpdesk|hostmaster|info|invoices|jobs|legal"
    r"|mailer-daemon|marketing|news|newsletter|no-?reply|notifications|office|orders|postmaster|press|privacy|returns"
    r"|root|sales|security|service|support|team|webmaster",
    re.I,
)
# icon@2x.png is a file.
_FILE_ENDING = re.compile(r"css|gif|html?|jpe?g|js|json|pdf|png|svg|txt|webp|xml|ya?ml|zip", re.I)
# Public resolvers, which support tells people to enter.
RESOLVERS = frozenset(("1.0.0.1", "1.1.1.1", "8.8.4.4", "8.8.8.8", "9.9.9.9", "149.112.112.112", "208.67.222.222"))
# Where a national telephone number may be from, when a word before it says that it is one; by how it starts and how
# many digits it has, as each look into a numbering plan takes as long as scanning a page.
REGIONS_AFTER_ZERO = ("GB", "DE", "FR", "IT", "NL", "AU", "IN", "BR")
REGIONS_BY_DIGITS = {9: ("ES",), 10: ("US", "IN", "IT", "BR"), 11: ("US", "BR")}

_MAILBOX = re.compile(r"[\w.+%'-]{1,64}\Z")
_DOMAIN = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+([A-Za-z]{2,24})(?![\w@])")
# What stands before the mailbox in an address such as ssh://user@host or https://user:password@host.
_LOGIN = re.compile(r"://[^\s/@]*\Z")
_IPV6 = re.compile(r"[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]{6,35}(?![\w:])")
# Codice fiscale (Italy): its digits stand apart.
_CODICE_FISCALE = re.compile(r"[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z](?!\w)")

# At least seven digits that only separators part.
_SPACE = r"[ ()./\u00a0\u2010-\u2015-]"
_DIGITS = re.compile(rf"[0-9](?:{_SPACE}{{0,3}}[0-9]){{6,}}")
_DATE = r"(?:\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./](?:\d{4}|\d\d))"
# At least one separator, so that there is one way only to read it; the hour of a time may follow.
_DATES = re.compile(rf"{_DATE}(?:[ .\u2010-\u2015-]{{1,3}}{_DATE})*(?: {{1,3}}\d{{1,2}})?")
_AROUND = 20
"""The letters before and after the digits of an IBAN or a tax number stand within so many characters."""

# First digits and length of the networks; 13-digit cards are no longer issued, and shop articles look like them.
_NETWORK = re.compile(
    r"(?:4\d{15}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12})"
)
_VERSION_BEFORE = re.compile(
    r"(?:version|ver|release|firmware|build|update|upgrade|driver|patch|section|chapter|clause|v\d*|§)[ds]?"
    r"(?: (?:is|was|from|to|of))?[.:]?\s*\Z",
    re.I,
)
_VAT_BEFORE = re.compile(r"(?:vat|ust|uid|tva|iva|btw|moms|mwst|tax)\b[^\n]{0,25}\Z", re.I)
_TELEPHONE_BEFORE = re.compile(
    r"(?:phone|call(?:ed|ing)?|tel|telefon\w*|téléphone|teléfono|mobile|móvil|cell|handy|portable|fax|whats ?app|sms"
    r"|text|rufnummer|reach (?:me|him|her|us|them)|(?:my|our|his|her|their|contact|meine|mon|mi) (?:number|nummer"
    r"|numéro|número)|☎|📞)\W{0,3}"
    r"(?:(?:me|us|him|her|them|nr|no|number|nummer|is|was|ist|on|at|under|unter|am|an|au|al|my|our|new|old|contact"
    r"|work|home|:)\W{1,3}){0,4}\Z",
    re.I,
)
# North America: area code and exchange start with 2 to 9, parted by brackets and a dash, or twice by the same sign.
_NORTH_AMERICAN = re.compile(r"(?:1[ .-])?(?:\([2-9]\d\d\) ?[2-9]\d\d-\d{4}|[2-9]\d\d([.-])[2-9]\d\d\1\d{4})")
_NOT_PERSONAL = {
    phonenumbers.PhoneNumberType.TOLL_FREE,
    phonenumbers.PhoneNumberType.PREMIUM_RATE,
    phonenumbers.PhoneNumberType.SHARED_COST,
    phonenumbers.PhoneNumberType.UAN,
}


def find_emails(text: str) -> Iterator[Finding]:
    """Yield e-mail addresses of persons: mailboxes of a function such as support@ are left out."""
    at = text.find("@")
    while at >= 0:
        mailbox = _MAILBOX.search(text, max(0, at - 64), at)
        domain = _DOMAIN.match(text, at + 1, at + 256)
        if mailbox and domain and not _FILE_ENDING.fullmatch(domain[1]):
            name = mailbox[0].lstrip(".+%'-")
            start = at - len(name)
            if name and not _ROLE.fullmatch(name) and not _LOGIN.search(text, max(0, start - 80), start):
                yield Finding("email", start, domain.end())
        at = text.find("@", at + 1)


def find_codes(text: str, runs: Iterable[tuple[int, int]]) -> Iterator[Finding]:
    """Yield Italian tax codes and global IPv6 addresses. `runs` are the long stretches without a space."""
    for start, end in runs:
        for match in _CODICE_FISCALE.finditer(text, start, end):
            if _starts_a_word(match) and codicefiscale.is_valid(match[0]):
                yield Finding("national-id", *match.span())
        for match in _IPV6.finditer(text, start, end):
            if _starts_a_word(match) and _is_ipv6(match[0]):
                yield Finding("ip-address", *match.span())


def find_numbers(text: str) -> Iterator[Finding]:
    """Yield what holds at least seven digits: bank, card, national, tax and telephone numbers, IPv4 addresses."""
    done = 0
    for number in _DIGITS.finditer(text):
        if _DATES.fullmatch(number[0]):
            continue
        # Numbers close to each other share a stretch of text, so that none is looked at in part.
        start, end = max(done, number.start() - _AROUND), min(len(text), number.end() + _AROUND)
        for kind, pattern, is_one in _NUMBERS:
            for match in pattern.finditer(text, start, end):
                cut = match.end() == end < len(text)
                if not cut and is_one(match):
                    yield Finding(kind, *match.span())
        done = number.end()


def _starts_a_word(match: re.Match) -> bool:
    before = match.string[match.start() - 1 : match.start()]
    return not (before.isalnum() or before in ("_", ":"))


def _is_ipv6(text: str) -> bool:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return False
    # 2000::/3 is all that is handed out; elsewhere colons and hexadecimal digits are more likely something else.
    return address.packed[0] >> 5 == 1 and text.count(":") >= 4


def _is_card(match: re.Match) -> bool:
    digits = re.sub(r"\D", "", match[0])
    return _NETWORK.fullmatch(digits) is not None and luhn.is_valid(digits)


def _is_vat_number(match: re.Match) -> bool:
    return vat.is_valid(match[0]) and _before(match, _VAT_BEFORE, 40)


def _is_personal_ipv4(match: re.Match) -> bool:
    try:
        address = ipaddress.IPv4Address(match[0])
    except ValueError:
        return False
    # With few digits it is as likely the number of a section or version.
    enough = sum(c.isdigit() for c in match[0]) >= 7
    personal = address.is_global and not address.is_multicast and match[0] not in RESOLVERS
    return enough and personal and not _before(match, _VERSION_BEFORE, 16)


def _before(match: re.Match, pattern: re.Pattern, reach: int) -> bool:
    return pattern.search(match.string, max(0, match.start() - reach), match.start()) is not None


def _is_telephone(match: re.Match) -> bool:
    text = match[0]
    digits = re.sub(r"\D", "", text)
    if text.startswith("+"):
        # Behind a plus sign, a number of a possible length is one.
        return _is_number(f"+{digits}", None, phonenumbers.is_possible_number)
    if _NORTH_AMERICAN.fullmatch(text):
        return _is_number(f"+1{digits[-10:]}", None, phonenumbers.is_possible_number)
    named = _before(match, _TELEPHONE_BEFORE, 60)
    if text.startswith("00"):
        grouped = len(digits) < len(text)
        return (named or grouped) and _is_number(f"+{digits[2:]}", None, phonenumbers.is_valid_number)
    regions = REGIONS_AFTER_ZERO if digits.startswith("0") else REGIONS_BY_DIGITS.get(len(digits), ())
    return named and any(_is_number(text, region, phonenumbers.is_valid_number) for region in regions)


def _is_number(text: str, region: str | None, is_one: Callable[[phonenumbers.PhoneNumber], bool]) -> bool:
    try:
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return False
    return is_one(number) and phonenumbers.number_type(number) not in _NOT_PERSONAL


_NUMBERS: tuple[tuple[str, re.Pattern, Callable[[re.Match], bool]], ...] = (
    (
        "iban",
        re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,4})?(?![A-Za-z0-9])"),
        lambda match: iban.is_valid(match[0]),
    ),
    ("credit-card", re.compile(r"(?<![\w.,/#-])\d{4}(?:[ -]?\d){10,12}(?![\w-])"), _is_card),
    # Social Security Number (United States).
    ("national-id", re.compile(r"(?<![\w-])\d{3}-\d\d-\d{4}(?![\w-])"), lambda match: ssn.is_valid(match[0])),
    # DNI and NIE (Spain).
    ("national-id", re.compile(r"(?<![\w-])\d{8}-?[A-Z](?![\w-])"), lambda match: dni.is_valid(match[0])),
    ("national-id", re.compile(r"(?<![\w-])[XYZ]-?\d{7}-?[A-Z](?![\w-])"), lambda match: nie.is_valid(match[0])),
    # CPF (Brazil).
    ("national-id", re.compile(r"(?<![\w.-])(?:\d{3}\.){2}\d{3}-\d\d(?![\w-])"), lambda match: cpf.is_valid(match[0])),
    # NIR (France).
    (
        "national-id",
        re.compile(r"(?<![\w.-])[12] ?\d\d ?(?:0[1-9]|1[0-2]) ?\d[\dAB] ?\d{3} ?\d{3} ?\d\d(?![\w-])"),
        lambda match: nir.is_valid(match[0]),
    ),
    ("vat-number", re.compile(r"(?<!\w)[A-Z]{2} ?[A-Z0-9]{8,12}(?!\w)"), _is_vat_number),
    ("ip-address", re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)"), _is_personal_ipv4),
    (
        "phone-number",
        re.compile(
            rf"(?<![\w@/#.+-])(?:\+ ?|00 ?)?(?:\(\d{{1,5}}\)|\d)(?:{_SPACE}{{0,3}}\d){{6,14}}(?![\w@-]|[.,:]\d)"
        ),
        _is_telephone,
    ),
)
