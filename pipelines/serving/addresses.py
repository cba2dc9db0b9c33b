"""Which addresses a service may fetch from: those of the public internet alone.

A service that fetches what clients name could be sent to the services of its own network, such as
the metadata of a cloud, which holds credentials. Names are resolved once, and the connection goes
to an address that was checked, so a name cannot change its address in between.
"""

import ipaddress
import socket
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_REFUSED = (ipaddress.ip_network("168.63.129.16/32"),)
"""Public addresses that serve metadata: that of Azure."""


def is_public(address: str) -> bool:
    """Returns whether an address is of the public internet, also inside an IPv6 address.

    >>> [is_public(one) for one in ("8.8.8.8", "127.0.0.1", "::ffff:169.254.169.254", "fd00::1")]
    [True, False, False, False]
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(str(inner))
    is_refused = any(found in network for network in _REFUSED if network.version == found.version)
    return found.is_global and not found.is_multicast and not is_refused


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses only."""

    def __init__(self, resolver: AbstractResolver | None = None) -> None:
        self._resolver = resolver or DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Returns the public addresses of a host.

        Raises:
            OSError: If it has none.
        """
        found: list[Any] = await self._resolver.resolve(host, port, family)
        public = [one for one in found if is_public(one["host"])]
        if not public:
            raise OSError("it has no public address")
        return public

    async def close(self) -> None:
        """Releases the resolver."""
        await self._resolver.close()
