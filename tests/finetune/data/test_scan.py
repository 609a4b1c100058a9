"""What the scan finds, to the character, and what of ordinary support text it leaves alone."""

import pytest

from seeklet.finetune.data.redact import redact_row, redact_text
from seeklet.finetune.data.rows import Row, Source
from seeklet.finetune.data.scan import scan_row, scan_text

# Written in two parts, so that no tool that guards repositories takes them for real ones.
LETTERS = "aBcDeFgHiJkLmNoPqRsTuVwXyZ" + "0123456789" + "zYxWvUtSrQpOnMlKjIhGfEdCbA"
SECRETS = {
    "huggingface-token": ["hf_" + LETTERS[:34], "api_org_" + LETTERS[:34]],
    "wandb-key": ["wandb_v1_" + LETTERS + LETTERS[:20]],
    "anthropic-key": ["sk-ant-" + "api03-" + LETTERS],
    "openai-key": ["sk-proj-" + LETTERS, "sk-" + LETTERS[:20] + "T3BlbkFJ" + LETTERS[20:40]],
    "api-key": ["sk-" + "0123456789abcdef" * 2],
    "google-key": ["AIza" + LETTERS[:35]],
    "github-token": ["ghp_" + LETTERS[:36], "github_pat_" + LETTERS],
    "gitlab-token": ["glpat-" + LETTERS[:20]],
    "slack-token": ["xoxb-" + "123456789012-123456789012-" + LETTERS[:24]],
    "stripe-key": ["sk_live_" + LETTERS[:24]],
    "npm-token": ["npm_" + LETTERS[:36]],
    "sendgrid-key": ["SG." + LETTERS[:22] + "." + LETTERS[:43]],
    "twilio-key": ["AC" + "0123456789abcdef" * 2],
    "telegram-token": ["123456789:" + LETTERS[:35]],
    "pypi-token": ["pypi-" + "AgEIcHlwaS5vcmc" + LETTERS + LETTERS],
    "aws-key": ["AKIA" + "IOSFODNN7QXAMPLE"],
    "jwt": [
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"
    ],
    "private-key": ["-----BEGIN RSA PRIVATE " + "KEY-----\nMIIBOgIBAAJBAKj34\nGkxFhD9\n-----END RSA PRIVATE KEY-----"],
    "email": ["jane.doe@example.com", "o'brien+shop@mail.example.co.uk", "jürgen@example.de"],
    "ip-address": ["81.2.69.142", "2a00:1450:4001:81b::200e"],
    "iban": ["GB82 WEST 1234 5698 7654 32", "DE89370400440532013000", "FR14 2004 1010 0505 0001 3M02 606"],
    "credit-card": ["4111 1111 1111 1111", "5555555555554444", "3782 822463 10005", "6011-1111-1111-1117"],
    "national-id": [
        "123-45-6789",
        "12345678Z",
        "X1234567L",
        "RSSMRA85T10A562S",
        "529.982.247-25",
        "2 95 10 99 126 111 93",
    ],
    "phone-number": [
        "+49 30 901820",
        "(415) 555-2671",
        "415-555-2671",
        "+1-555-010-0100",
        "+33\u00a01\u00a0 42 68 53 00",
    ],
}


@pytest.mark.parametrize(("kind", "secret"), [(kind, secret) for kind, all_ in SECRETS.items() for secret in all_])
@pytest.mark.parametrize(
    "around", ["{}", "Grüße 🙂, it is {}.", "see ({}), thanks", '"{}"', "first line\n{}\nlast line"]
)
def test_each_kind_is_found_to_the_character(kind: str, secret: str, around: str) -> None:
    text = around.format(secret)
    start = text.index(secret)
    assert scan_text(text) == [(kind, start, start + len(secret))]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("WANDB_API_KEY=" + "0123456789abcdef" * 2 + "01234567", "wandb-key", "0123456789abcdef" * 2 + "01234567"),
        ("my password is Tr0ub4dor&3, please help", "password", "Tr0ub4dor&3"),
        ('{"password": "hunter2"}', "password", "hunter2"),
        ("Passwort: geheim!42x", "password", "geheim!42x"),
        ("connect to https://bob:s3cret@db.example.com/sales", "url-password", "s3cret"),
        ("api_key = 'abcd1234efgh5678'", "api-key", "abcd1234efgh5678"),
        ("Authorization: Bearer abcd1234.efgh5678-ijkl", "api-key", "abcd1234.efgh5678-ijkl"),
        ("aws secret key: '" + (LETTERS + "/+")[:40] + "'", "aws-key", (LETTERS + "/+")[:40]),
        ("call me at 0171 1234567 tonight", "phone-number", "0171 1234567"),
        ("my number is 020 7946 0958", "phone-number", "020 7946 0958"),
        ("Phone: 4155552671", "phone-number", "4155552671"),
        ("ring 00 49 30 901820", "phone-number", "00 49 30 901820"),
        ("our VAT number is DE 136695976", "vat-number", "DE 136695976"),
        ("write to <mailto:sam@shop.example.com>", "email", "sam@shop.example.com"),
    ],
)
def test_the_words_before_decide(text: str, kind: str, value: str) -> None:
    start = text.index(value)
    assert scan_text(text) == [(kind, start, start + len(value))]


ORDINARY = """\
My order 4812345678 from 2024-03-12 has not arrived; tracking 1Z999AA10123456784 says 12.03.2024-15.03.2024.
Order 114-3941689-8772232 was $1,299.00 (1.299,00 EUR), invoice INV-2024-000123, ref 2024/03/0001234.
Please call about order number 4812345678 or use case number 00123456789.
Update the firmware to 12.34.56.178, Chrome 120.0.6099.109 or version 10.20.30.140; see section 3.2.1.4.
Open 192.168.1.1 or 10.0.0.138 in the browser and set the DNS server to 8.8.8.8.
At 10:11:12 on 2024-03-12T10:11:12.123Z the counter read 1700000000000, meter 123456789.
The model SM-G991B-256 with serial SN-12345678-90, IMEI 490154203237518, EAN 4006381333931, ISBN 978-3-16-148410-0.
UUID 550e8400-e29b-41d4-a716-446655440000, commit da39a3ee5e6b4b0d3255bfef95601890afd80709, MAC 00:1A:2B:3C:4D:5E.
The card ending in 1111 was declined; 4111 1111 1111 1112 is not a card, nor is GB82 WEST 1234 5698 7654 33 an account.
Write to support@acme.com or sales@acme.com, hotline 1-800-225-5288; @john mentioned icon@2x.png and react@18.2.0.
I forgot my password: please reset it. The password is incorrect. Password must contain at least 8 characters.
Your API key is shown under Settings > Developer; the token expires after 24 hours. Enter "your-api-key-here-please".
Clone it with git clone git@github.com:acme/shop.git, then open https://user@shop.example.com:8080/reset?id=12345.
He scored 3-2, 10-7 and 555 1234 is a song; call of duty 2 2009; text 12345 to 80888; 24/7 since 1999-2003-2007.
Coordinates 52.520008, 13.404954; pi is 3.14159265358979; 1,000,000,000 rows; 20 x 30 x 40 cm; 5-10 business days.
std::vector<int>::iterator and a::b::c::d are C++; sk-learn-is-not-a-key-at-all; hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx.
The part 12345678A, product DE136695976 and the plate XY-1234567-Z are articles; 123-45-67890 and 1123-45-6789 too.
""".splitlines()


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_support_text_is_left_alone(text: str) -> None:
    assert [(finding.kind, text[finding.start : finding.end]) for finding in scan_text(text)] == []


def test_findings_are_in_order_and_do_not_overlap() -> None:
    text = "b@example.org, then 81.2.69.142, https://u:pa55@example.org/ and a@example.org"
    found = scan_text(text)
    assert [(f.kind, text[f.start : f.end]) for f in found] == [
        ("email", "b@example.org"),
        ("ip-address", "81.2.69.142"),
        ("url-password", "pa55"),
        ("email", "a@example.org"),
    ]


def test_unpaired_surrogates_do_not_stop_the_scan() -> None:
    assert scan_text("\ud800 a@example.org") == [("email", 2, 15)]


ROW = Row(
    [
        {"role": "user", "content": "I am jane@example.com"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "She is at 81.2.69.142.",
            "tool_calls": [
                {"type": "function", "function": {"name": "mail", "arguments": {"to": ["jane@example.com"]}}}
            ],
        },
        {"role": "tool", "content": "sent", "tool_call_id": "4812345678"},
    ],
    [{"type": "function", "function": {"name": "mail", "description": "ask joe@example.com"}}],
    Source("support.jsonl", 3),
)


def test_a_row_is_scanned_in_every_text_with_its_field() -> None:
    assert [(field, finding.kind) for field, finding in scan_row(ROW)] == [
        ("messages[0].content", "email"),
        ("messages[1].reasoning_content", "ip-address"),
        ("messages[1].tool_calls[0].function.arguments.to[0]", "email"),
        ("tools[0].function.description", "email"),
    ]


def test_redaction_of_a_row_leaves_all_else_and_the_row_itself() -> None:
    before = repr(ROW)
    row, counts = redact_row(ROW)
    assert counts == {"email": 3, "ip-address": 1}
    assert repr(ROW) == before
    expected = before.replace("jane@example.com", "[EMAIL]").replace("joe@example.com", "[EMAIL]")
    assert repr(row) == expected.replace("81.2.69.142", "[IP_ADDRESS]")


def test_a_clean_row_is_returned_itself() -> None:
    clean = Row([{"role": "user", "content": "hello"}], None, Source("a.jsonl", 1))
    assert redact_row(clean) == (clean, {})
    assert redact_row(clean)[0] is clean


@pytest.mark.parametrize("secret", [secret for all_ in SECRETS.values() for secret in all_])
def test_redacting_twice_changes_nothing_more(secret: str) -> None:
    text, findings = redact_text(f"before {secret} after")
    assert text == f"before {findings[0].placeholder} after"
    assert redact_text(text) == (text, [])


def test_placeholders_say_what_was_there() -> None:
    assert (
        redact_text("call +49 30 901820 or write to jane@example.com")[0] == "call [PHONE_NUMBER] or write to [EMAIL]"
    )


# Written in parts again, where they are the start of a secret.
HOSTILE = (
    "7,12 ,@,a@,a,sk-,eyJ,sk-T3BlbkFJ,1.1.11,1-1-11-,1.2.3.4.,a:,12345678:,AC,glpat-,://a:b@c ,password is ,wandb "
)
HOSTILE_TOO = ("aws secret ", "xoxb-1-", "M" * 24 + ".", "-----BEGIN RSA PRIVATE " + "KEY-----\n")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("unit", [*HOSTILE.split(","), *HOSTILE_TOO])
def test_hostile_text_takes_time_in_proportion(unit: str) -> None:
    """A quarter of a megabyte takes a second at most; where time grew with the square, it took minutes."""
    scan_text(unit * (250_000 // len(unit)))
