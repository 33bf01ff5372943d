"""The proxies that HTTP clients take from the environment: who set them long ago thinks of none."""

from __future__ import annotations

import importlib.util
import os
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

_SCHEMES = ("http", "https", "socks5", "socks5h")


def by_way_of(url: str) -> str:
    """The proxy that a request to `url` goes through, as the end of a message; else empty."""
    host, scheme = urlsplit(url).hostname or "", urlsplit(url).scheme
    proxies = getproxies_environment()
    kind = scheme if scheme in proxies else "all"
    if kind not in proxies or proxy_bypass(host):
        return ""
    name = _variable(kind)
    return (
        f", by way of the proxy {_shown(proxies[kind])} that {name} names (NO_PROXY={host} goes"
        " without)"
    )


def proxy_problem() -> str:
    """Why no client can be made with the proxies of the environment, or the empty string.

    Every one of them is looked at, also where NO_PROXY leaves it out: so do the clients.
    """
    proxies = getproxies_environment()
    if proxies.get("no", "").strip() == "*":
        return ""
    for kind in ("http", "https", "all"):
        if not (value := proxies.get(kind, "")):
            continue
        name, scheme = _variable(kind), value.partition("://")[0] if "://" in value else "http"
        said = f"the environment variable {name} is {_shown(value)!r}"
        fix = f"mend it, or leave it out (env -u {name} herl ...)"
        if scheme not in _SCHEMES:
            return f"{said}; a proxy begins with {', '.join(f'{s}://' for s in _SCHEMES)}: {fix}"
        if not _has_place(value):
            return f"{said}, which is no address of a proxy such as http://HOST:PORT; {fix}"
        if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
            return (
                f"{said}, a SOCKS proxy, for which the package socksio is missing: install it"
                f" (pip install socksio), or leave the variable out (env -u {name} herl ...)"
            )
    return ""


def _variable(kind: str) -> str:
    """As it is written in the environment; the small letters win."""
    wanted = f"{kind}_proxy"
    return wanted if os.environ.get(wanted) else wanted.upper()


def _has_place(value: str) -> bool:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _shown(value: str) -> str:
    """Without user and password."""
    before, at, place = value.rpartition("@")
    scheme, slashes, _ = before.partition("://")
    return f"{scheme + slashes if slashes else ''}***@{place}" if at else value
