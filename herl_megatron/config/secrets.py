"""What may be a credential, and so is repeated in no message and written into no file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise

_NAME = re.compile(
    r"secret|passw|passphrase|credential|bearer|authorization|cookie"
    r"|(api|access|private|secret|client|service|account|app|master|signing|encryption|ssh|openai)"
    r"[-_.]?key"
    r"|(token|auth|headers?|(^|[._-])(pat|pwd|pw|pass|creds?|key))$",
    re.IGNORECASE,
)
_NO_SECRET = re.compile(r"cache_key$", re.IGNORECASE)
_KNOWN = re.compile(
    # How the keys of well-known services begin, wherever they stand in a text.
    r"(?<![A-Za-z0-9])(?:"
    r"(?:sk|pk|rk|gsk|nvapi|xai|glpat|xox[a-z])[-_](?=[-_A-Za-z0-9]*[A-Z0-9])[-_A-Za-z0-9]{12,}"
    r"|(?:hf|gh[oprsu]|github_pat|npm|r8)_(?=\w*[A-Z0-9])\w{20,}"
    r"|AKIA[0-9A-Z]{12,}|AIza[-\w]{20,}|eyJ[-_A-Za-z0-9]{16,})"
    r"|-----BEGIN"
)
_LIKELY = re.compile(
    # Where the text says so itself, or where a shorter beginning is already too much.
    r"(?<![A-Za-z0-9])(?:"
    r"(?:sk|pk|rk|gsk|nvapi|xai|glpat|xox[a-z])-[-_A-Za-z0-9]{8,}"
    r"|(?:hf|sk|pk|rk|gh[oprsu])_(?=[A-Za-z0-9]*[A-Z0-9])[A-Za-z0-9]{8,}"
    r"|AKIA\w{8,}|eyJ\w{8,})"
    r"|(?i:\bbearer\s+\S{3,})|\b[Bb]asic\s+(?=\S*[0-9=A-Z])[A-Za-z0-9+/=]{8,}"
    r"|(?i:(?:[-_]?key|passw\w*|secret|token|credentials?|authorization|(?<![a-z])(?:pass|pwd?))"
    r"['\"]?\s*[=:]\s*['\"]?\w)"
)
_LOGIN = re.compile(r"://[^/\s]*@|[^\s/:@]+:[^\s@]+@[\w.\[]")
"""`https://user:password@host`, also without its beginning."""
_LONG = re.compile(r"[A-Za-z0-9+=_-]{24,}")
_LONG_WITH_SLASHES = re.compile(r"[A-Za-z0-9+/=]{24,}")
_PLAIN_NAME = re.compile(r"[A-Za-z_][\w-]{0,63}")
_NUMBER_NAME = re.compile(r"[-+]?(0x[0-9a-fA-F]{1,16}|\d[-+\d._:eE]{0,15})")
_PIECE = re.compile(r"[^\s'\"`{}()\[\],;]+")
_LEADING_KEY = re.compile(r"-*(\w+(?:\.\w+)*)(?=[\w.\s-]*[=:])")
_HIDDEN = "not shown, it may be a credential"
_LONGEST_SHOWN = 120


def resembles_secret(key: str, value: object) -> bool:
    """Whether a value should not be repeated, going by its name or by what it looks like."""
    if value is None or isinstance(value, bool):
        return False
    named = bool(_NAME.search(key)) and not _NO_SECRET.search(key)
    if isinstance(value, Mapping):
        return named or any(
            _is_secret_text(str(name)) or resembles_secret(str(name), item)
            for name, item in value.items()
        )
    if isinstance(value, (list, tuple)):
        return any(resembles_secret(key, item) for item in value)
    return named or (isinstance(value, str) and _is_secret_text(value))


def is_secret_for_sure(text: str) -> bool:
    """Whether a text holds a key or a login, whatever its name: a path with a long hash does
    not."""
    return bool(_KNOWN.search(text) or _LOGIN.search(text))


def shown(key: str, value: object) -> str:
    """The value as messages repeat it: cut, or hidden where it may be a credential. What a
    container holds is not repeated: any of it may be one, and its kind says what is wrong."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    if resembles_secret(key, value):
        return _HIDDEN
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def shown_name(name: object) -> str:
    """A key's name as messages repeat it."""
    text = str(name)
    plain = (_PLAIN_NAME.fullmatch(text) or _NUMBER_NAME.fullmatch(text)) and not _is_secret_text(
        text
    )
    return text if plain else f"({_HIDDEN})"


def shown_path(parts: Iterable[object]) -> str:
    """A key's dotted path as messages repeat it."""
    return ".".join(shown_name(part) for part in parts)


def shown_override(override: str) -> str:
    """Of a malformed override the key it begins with; where its value begins nobody knows."""
    found = _LEADING_KEY.match(override)
    if found and not _is_secret_text(found[1]):
        return repr(f"{found[1]}...")
    return f"({_HIDDEN})"


def shown_file(path: object) -> str:
    """What was given as a file's name: a misplaced `key: value` is one too."""
    text = str(path)
    hidden = is_secret_for_sure(text) or _LIKELY.search(text)
    return f"({_HIDDEN})" if hidden else text


def without_secrets(text: str) -> str:
    """A library's message with each piece hidden that may be a credential."""
    if _LIKELY.search(text) and not any(_is_secret_text(p) for p in _PIECE.findall(text)):
        return _HIDDEN  # it shows only across pieces, as in `Bearer x`
    return _PIECE.sub(lambda m: f"({_HIDDEN})" if _is_secret_text(m[0]) else m[0], text)


def _is_secret_text(text: str) -> bool:
    """A key, a login, or a long run of letters and digits such as no path or name has."""
    if is_secret_for_sure(text) or _LIKELY.search(text):
        return True
    if any(_mixed(run) for run in _LONG.findall(text)):
        return True
    return any(
        _mixed(run) and 5 * _changes(run) >= len(run) for run in _LONG_WITH_SLASHES.findall(text)
    )


def _mixed(run: str) -> bool:
    return any(c.isdigit() for c in run) and any(c.isalpha() for c in run)


def _changes(run: str) -> int:
    """How often capitals, small letters and digits take turns inside the parts of a path."""
    kinds = [0 if c in "/+=" else 1 if c.isdigit() else 2 if c.isupper() else 3 for c in run]
    return sum(one != other and bool(one and other) for one, other in pairwise(kinds))
