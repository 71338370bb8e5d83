"""Secrets stay out of what is kept and shown: errors, logs, records, manifests, cards, pages. Rows are data, and left as they are.

A secret is the value of an environment variable that is named like one (`KEY`, `TOKEN`, `PASSWORD`, ...) or that a recipe
names as a key; the password inside a URL in the environment; what `.netrc`, the hub's token file and AWS's credentials
hold. It is found in messages as it is, and percent-encoded, in base64, and escaped as JSON, HTML and Python escape. What
merely looks like a credential is hidden, too: userinfo and signatures of URLs, headers, JWTs, private keys, keys of
well-known services.
"""

from __future__ import annotations

import base64
import configparser
import html
import json
import netrc
import os
import re
import urllib.parse
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

HIDDEN = "[hidden]"
DECLARED = "FLYWHEEL_SECRETS"  # names of variables whose values are secrets
SHORTEST = 6  # characters; a shorter value would hide ordinary words
LONG = 12  # from here on a value is hidden inside of words, too
BLOCK = 1 << 22  # bytes of a log that are looked at together

# Variables by name: these words anywhere in it, those as a word of their own.
_CERTAIN = re.compile(
    r"SECRET|PASSW(?:OR)?D|PASSPHRASE|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL|CONNECTION_STRING|(?:AUTH|ACCESS|REFRESH|BEARER|"
    r"SESSION|API|HF|HUB)_?TOKEN|SSHPASS",
    re.IGNORECASE,
)
_LIKELY = re.compile(
    r"(?:^|_)(?:KEYS?|TOKENS?|PASS|PWD|PAT|AUTH|JWT|SAS|COOKIES?|BEARER|DSN|WEBHOOK)\d*(?:_|$)", re.IGNORECASE
)
_PLACES = re.compile(r"(?:_(?:FILE|PATH|DIR|SOCK|HOME|NAME|ID_RSA|TYPE)|^(?:OLD)?PWD)$", re.IGNORECASE)
_PLAIN = re.compile(
    r"[+-]?[\d.]+|(?:https?://)?[A-Za-z]+(?:[._-][A-Za-z]+)*(?::\d+)?/?"
)  # a number, a word, a host: no secret

_NAME = (
    r"(?:api[_-]?key|apikey|access[_-]?key(?:[_-]?id)?|secret[_-]?access[_-]?key|account[_-]?key|shared[_-]?access[_-]?(?:key|signature)|"
    r"(?:access|auth|refresh|id|session|security|bearer|api|hf|private)[_-]?token|client[_-]?secret|secret(?:[_-]?key)?|passw(?:or)?d|pwd(?!\W{1,5}/)|passphrase)"
)
_PARAMETER_NAME = rf"(?:{_NAME}|key|token|auth|sig|signature|credential|x-amz-(?:signature|credential|security-token)|awsaccesskeyid|x-goog-(?:signature|credential))"
_USERINFO = re.compile(
    r"(?P<scheme>(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{0,30}(?::|%3A)(?:\\?/|%2F){2})(?P<user>[^\s/\\\"'<>?#]{0,400}?)(?:@(?=[^\s/@]{0,400}(?:[/\s\"'?#)>\],.;:]|$))|%40)",
    re.IGNORECASE,
)
# A store's key may hold a slash: it ends at the `@`.
_PAIR = re.compile(
    r"(?P<scheme>(?<![a-z0-9+.-])(?!https?:|wss?:)[a-z][a-z0-9+.-]{0,30}:\\?/\\?/)(?P<user>[^\s/@:\"'<>]{1,200}:[^\s@\"'<>]{1,200})@",
    re.IGNORECASE,
)
_PARAMETER = re.compile(
    rf"(?P<name>(?:[?&;]|%3F|%26|\\u0026|&amp;){_PARAMETER_NAME}(?:=|%3D))(?!\[hidden\])(?:(?!%26)[^&\s\"'<>#;\\)\]}}])+",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"(?P<name>\b(?:(?:proxy-)?authorization|(?:x-)?api-key|[a-z-]{1,40}-(?:api-key|auth|token|auth-token)|(?:set-)?cookie)"
    r"[\"']?\s{0,9}[:=,]\s{0,9}(?:b?[\"'])?)(?![\s\"'$])(?:(?:Bearer|Basic|Digest|Token|Negotiate|ApiKey|AWS4-HMAC-SHA256)\s+)?[^\s\"'$`][^\r\n\"']*",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"(?P<name>\b(?:Bearer|Basic)\s{1,9})(?=\S{0,200}[\d+/=_.-])[A-Za-z0-9._~+/=-]{8,}")
_ASSIGNED = re.compile(
    rf"(?P<name>(?:\b|_){_NAME}\\?[\"']?\s{{0,9}}[:=]\s{{0,9}})(?:\\?(?P<quote>[\"'])(?!\[hidden)[^\"'\\]{{4,}}|(?=[^\s,;]{{0,200}}\d)[^\s\"'&,;<>(){{}}\[\]$`\\]{{6,}})",
    re.IGNORECASE,
)
_WELL_KNOWN = re.compile(
    r"(?<![A-Za-z0-9])(?:sk-(?=[A-Za-z_-]{0,100}\d)[A-Za-z0-9_-]{16,}|[sr]k_(?:live|test)_[A-Za-z0-9]{10,}|hf_[A-Za-z0-9]{16,}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}|xox[abeoprs]-[A-Za-z0-9-]{10,}"
    r"|AIza[\w-]{30,}|ya29\.[\w-]{20,}|npm_[A-Za-z0-9]{30,}|pypi-AgE[\w-]{20,}|SG\.[\w-]{16,100}\.[\w-]{16,}|dop_v1_[0-9a-f]{32,}"
    r"|eyJ[\w-]{8,9000}\.[\w-]{8,}\.[\w-]*)"
)
_PRIVATE = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|(?=[^A-Za-z0-9+/=\\\s:,-])|\Z)",
    re.DOTALL,
)
_WORDS = [
    "key",
    "token",
    "auth",
    "sig",
    "secret",
    "passw",
    "pwd",
    "passphrase",
    "credential",
    "cookie",
    "bearer",
    "basic",
]
_values: set[str] = set()


def declare(variable: str) -> None:
    """Have the value of this environment variable count as a secret, whatever it is called: here, and in processes of ours."""
    known = os.environ.get(DECLARED, "").split()
    if variable in os.environ and variable not in known:
        os.environ[DECLARED] = " ".join([*known, variable])


def declare_value(value: str) -> None:
    """Have this count as a secret in this process: a key that was read from a file, or made."""
    if len(value) >= SHORTEST:
        _values.add(value)


def declare_named(config: Any) -> None:
    """The same of every variable that a configuration names as `key`."""
    if isinstance(config, dict):
        for name, value in cast(dict[str, Any], config).items():
            if name == "key" and isinstance(value, str):
                declare(value)
            declare_named(value)
    elif isinstance(config, list):
        for value in cast(list[Any], config):
            declare_named(value)


def secrets() -> list[str]:
    """The values that count as secrets now, longest first."""
    return sorted(_secrets(), key=lambda value: (-len(value), value))


def redacted(text: str) -> str:
    """The text with every secret in it hidden."""
    for form, pattern in _forms(tuple(secrets())):
        if form in text:
            text = text.replace(form, HIDDEN) if pattern is None else pattern.sub(HIDDEN, text)
    if "PRIVATE KEY" in text:
        text = _PRIVATE.sub(HIDDEN, text)
    return _WELL_KNOWN.sub(HIDDEN, "\n".join(map(_line, text.split("\n"))))


def redacted_json(value: Any) -> Any:
    """A JSON value with every secret in its texts hidden, those of its keys, too."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {redacted_json(key): redacted_json(one) for key, one in cast(dict[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [redacted_json(one) for one in cast(list[Any], value)]
    return value


def redacted_bytes(data: bytes) -> bytes:
    """What was printed, in whatever encoding, with every secret in it hidden."""
    return redacted(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def open_log(file: Path) -> BinaryIO:
    """A log to add to what is there, readable by its owner alone: who prints may print secrets."""
    opened = os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
    os.fchmod(opened.fileno(), 0o600)
    return opened


def redact_file(file: Path) -> None:
    """Hide the secrets in a log, where it lies; readable by its owner alone before as after."""
    if not file.is_file():
        return
    made = file.with_name(f"{file.name}.redacted")
    changed = False
    with (
        file.open("rb") as source,
        os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as target,
    ):
        while block := source.read(BLOCK) + source.readline():
            clean = redacted_bytes(block)
            changed |= clean != block
            target.write(clean)
    made.replace(file) if changed else made.unlink()


def _line(text: str) -> str:
    """A line without what looks like a credential. Most lines hold no word that one begins with."""
    lower = text.lower()
    if "//" in lower or "%2f" in lower or "\\/" in lower:
        text = _USERINFO.sub(_without_userinfo, _PAIR.sub(_without_userinfo, text))
    if any(word in lower for word in _WORDS):
        text = _PARAMETER.sub(rf"\g<name>{HIDDEN}", text)
        text = _HEADER.sub(rf"\g<name>{HIDDEN}", text)
        text = _SCHEME.sub(rf"\g<name>{HIDDEN}", text)
        text = _ASSIGNED.sub(lambda match: f"{match['name']}{match['quote'] or ''}{HIDDEN}", text)
    return text


def exposed(text: str) -> str | None:
    """What of a setting is a secret, in words that don't repeat it; None if nothing is.

    A setting is kept: in manifests, records, cards. So a secret in one is refused, and not hidden.
    """
    for secret, place in _secrets().items():
        plain = bool(_PLAIN.fullmatch(secret))
        if secret == text and (len(secret) >= LONG or not plain):
            return f"the value of {place}"
        if len(secret) >= LONG and not plain and any(form in text for form in _encoded(secret)):
            return f"the value of {place}"
    if "PRIVATE KEY" in text and _PRIVATE.search(text):
        return "a private key"
    if any(_logs_in(match) for pattern in (_USERINFO, _PAIR) for match in pattern.finditer(text)):
        return "a password or token, before the `@` of a URL"
    if _PARAMETER.search(text):
        return "a key or signature, in the query of a URL"
    if _WELL_KNOWN.search(text):
        return "what looks like the key of a service"
    return None


def _without_userinfo(match: re.Match[str]) -> str:
    return match[0].replace(match["user"], HIDDEN, 1) if _logs_in(match) else match[0]


def _logs_in(match: re.Match[str]) -> bool:
    """Whether userinfo is a secret: a name alone is none (`ssh://git@host`), but on the web it may be a token."""
    web = match["scheme"].lower().startswith(("http", "ws"))
    return (
        bool(match["user"])
        and HIDDEN not in match["user"]
        and (web or bool(re.search(":|%3A", match["user"], re.IGNORECASE)))
    )


def _secrets() -> dict[str, str]:
    """Each secret, and where it is from."""
    found = dict.fromkeys(_values, "a key that this process was given")
    for value in _of_files(tuple(os.environ.get(name, "") for name in _FILES)):
        found[value] = "a key in .netrc, or in the hub's or AWS's files"
    declared = os.environ.get(DECLARED, "").split()
    for name, value in os.environ.items():
        for secret in _of_variable(name, value, name in declared) if name != DECLARED else ():
            found[secret] = f"${name}"
    return found


@lru_cache(1024)
def _of_variable(name: str, value: str, declared: bool) -> tuple[str, ...]:
    """The secrets in an environment variable."""
    value = value.strip()
    found: list[str] = []
    certain = declared or bool(_CERTAIN.search(name))
    place = (_PLACES.search(name) and not declared) or _is_path(value)
    plain = bool(_PLAIN.fullmatch(value))
    if (
        declared
        or (certain and not place and not (plain and len(value) < 8))
        or (_LIKELY.search(name) and not place and not plain and len(value) >= 8)
    ):
        found.append(value)
    if found or "PRIVATE KEY-----" in value:  # a key of several lines may come line by line
        found += [line for line in value.splitlines() if len(line) >= 20 and not line.startswith("-----")]
    if "://" in value or "=" in value:
        found += _of_url(value)
    found += _WELL_KNOWN.findall(value)
    return tuple(one for one in found if len(one) >= SHORTEST)


def _is_path(value: str) -> bool:
    try:
        return value.startswith(("/", "./", "~/")) and Path(value).expanduser().exists()
    except (OSError, RuntimeError):  # too long for one, or of nobody's home
        return False


def _of_url(value: str) -> Iterator[str]:
    """Passwords, and values of parameters that are named like secrets, of a URL or a connection string."""
    with suppress(ValueError):
        parts = urllib.parse.urlsplit(value)
        if parts.password:
            yield from {parts.password, urllib.parse.unquote(parts.password)}
            yield f"{parts.username}:{parts.password}"
        for name, told in urllib.parse.parse_qsl(parts.query):
            if re.fullmatch(_PARAMETER_NAME, name, re.IGNORECASE):
                yield told
    for part in value.split(";"):
        name, equals, told = part.partition("=")
        if equals and re.fullmatch(_NAME, name.strip(), re.IGNORECASE):
            yield told.strip()


_FILES = ("HOME", "NETRC", "HF_HOME", "HF_TOKEN_PATH", "AWS_SHARED_CREDENTIALS_FILE")


@lru_cache(8)
def _of_files(places: tuple[str, ...]) -> tuple[str, ...]:
    """The secrets in the files that libraries take them from."""
    home, login, hub, token, aws = places
    found: list[str] = []
    with suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError, ValueError):
        for _, account, password in netrc.netrc(login or f"{home}/.netrc").hosts.values():
            found += [password or "", account or ""]
    hub = hub or f"{home}/.cache/huggingface"
    with suppress(OSError, UnicodeDecodeError):
        found.append(Path(token or f"{hub}/token").read_text().strip())
    with suppress(OSError, UnicodeDecodeError, configparser.Error):
        profiles = configparser.RawConfigParser()
        profiles.read(aws or f"{home}/.aws/credentials")
        found += [value for name in profiles.sections() for value in profiles[name].values()]
    return tuple(value for value in found if len(value) >= SHORTEST)


@lru_cache(8)
def _forms(values: tuple[str, ...]) -> list[tuple[str, re.Pattern[str] | None]]:
    """How secrets may be written: each form, and a pattern for one so short that it stands in words, too; the longest first."""
    forms: dict[str, re.Pattern[str] | None] = {}
    for value in values:
        for form in _encoded(value):
            short = len(form) < LONG and form.isalnum()
            forms[form] = re.compile(rf"(?<![A-Za-z0-9]){re.escape(form)}(?![A-Za-z0-9])") if short else None
    return sorted(forms.items(), key=lambda entry: -len(entry[0]))


@lru_cache(512)
def _encoded(value: str) -> tuple[str, ...]:
    """A secret as it is, percent-encoded, escaped, and in base64 wherever it stands in what was encoded."""
    quoted = [urllib.parse.quote(value, safe=safe, errors="surrogateescape") for safe in ("", "/", "/:@")]
    quoted.append(urllib.parse.quote_plus(value, errors="surrogateescape"))
    quoted += [re.sub("%..", lambda code: code[0].lower(), one) for one in quoted]
    escaped = [
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        repr(value)[1:-1],
        html.escape(value),
    ]
    escaped += [one.replace("/", "\\/") for one in escaped]
    return tuple(dict.fromkeys(f for f in [value, *quoted, *escaped, *_in_base64(value)] if len(f) >= SHORTEST))


def _in_base64(value: str) -> Iterator[str]:
    """What of a text's base64 doesn't depend on its neighbours, for each of the three places where it may begin."""
    data = value.encode("utf-8", "surrogateescape")
    for before in range(3):
        whole = base64.b64encode(bytes(before) + data).decode().rstrip("=")
        first = (0, 2, 3)[before]
        last = len(whole) if (before + len(data)) % 3 == 0 else len(whole) - 1
        if last - first >= 8:
            yield from {whole[first:last], whole[first:last].replace("+", "-").replace("/", "_")}
