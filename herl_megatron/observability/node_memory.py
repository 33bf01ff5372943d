"""Ray's report of a node that ran out of memory: a hundred lines, of which few say who held it."""

from __future__ import annotations

import re

_NODE = re.compile(
    r"Memory on the node \(IP: (?P<ip>[^,)]+).*?"
    r"was (?P<used>[\d.]+) ?GB(?: used)? / (?P<limit>[\d.]+) ?GB",
    re.DOTALL,
)
_USERS = re.compile(r"Top \d+ memory users:")
_USER = re.compile(r"^\s*(?P<pid>\d+)\s+(?P<gb>[\d.]+)\s+(?P<command>\S.*?)\s*$", re.MULTILINE)
_SHOWN = 3
_LONGEST_COMMAND = 80


def in_short(message: str) -> str:
    """An error's message with such a report in one line: which node, and who held most. Any other
    message as it is."""
    node = _NODE.search(message)
    if node is None:
        return message
    before = message[: node.start()].strip().splitlines() or ["a worker was ended"]
    users = _USERS.search(message)
    held = [] if users is None else list(_USER.finditer(message, users.end()))[:_SHOWN]
    shown = ", ".join(
        f"{user['gb']} GB by {user['command'][:_LONGEST_COMMAND]} (process {user['pid']})"
        for user in held
    )
    return (
        f"{before[0].rstrip('.:; ')}: node {node['ip']} had {node['used']} of {node['limit']} GB in"
        f" use{f', most of it {shown}' if shown else ''}; `herl plan` says what each process of a"
        " run needs, other programs there need theirs"
    )
