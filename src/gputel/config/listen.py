"""Network addresses as they stand in the configuration: `host:port`, `[ipv6]:port`."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple


class Address(NamedTuple):
    """A host and a TCP port; port 0 means any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`host:port` or `[ipv6]:port`; ValueError says what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f"{text!r} has no port")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"an IPv6 address needs brackets: [{host}]:{port}")
    if not host or any(c.isspace() for c in host):
        raise ValueError(f"{text!r} has no host")
    if not (port.isascii() and port.isdigit()) or int(port[:6]) > 65_535:
        raise ValueError(f"{port!r} is no port; ports are 0 to 65535")
    return Address(host, int(port))


def parse_addresses(text: str) -> tuple[Address, ...]:
    """Addresses separated by commas, at least one, none twice; ValueError says what is wrong."""
    addresses = tuple(parse_address(part.strip()) for part in text.split(","))
    twice = next((one for one in addresses if addresses.count(one) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} stands twice")
    return addresses


def from_here(listener: Address) -> Address:
    """Where a listener is reached on its own machine: one on all addresses also on loopback."""
    hosts = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not a listener
    return Address(hosts.get(listener.host, listener.host), listener.port)


def is_loopback(host: str) -> bool:
    """True when only this machine reaches `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
