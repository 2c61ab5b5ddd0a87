"""A network namespace as CNI left it, read for a VM that takes its place.

What the kernel made by itself it makes again in the guest: routes to connected networks, its
link-local addresses, loopback. All else is carried over: the link's name, MAC and MTU, its
addresses, the main table's routes and permanent neighbours. ``left_out`` names what is not.

Facts: linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h, linux/fib_rules.h.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protos.gen.voidbox.guest.v1 import guest_pb2
from shims.core.errors import NotSupported
from shims.microvm.netlink import attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from shims.microvm.netlink import Netlink

__all__ = ["NetworkLink", "choose_link", "find_link", "left_out", "read_links", "read_plan"]

_GETLINK, _GETADDR, _GETROUTE, _GETNEIGH, _GETRULE = 18, 22, 26, 30, 34
_ARPHRD_ETHER = 1
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_MAC_SIZE = 6

_LINK = struct.Struct("=BxHiII")
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU = 1, 3, 4

_ADDRESS = struct.Struct("=BBBBi")
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFA_PROTO, _IFAPROT_KERNEL_LL = 11, 3
_IFA_F_TEMPORARY, _IFA_F_DADFAILED, _IFA_F_STABLE_PRIVACY = 0x01, 0x08, 0x800

_ROUTE = struct.Struct("=BBBBBBBBI")
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_RTA_METRICS, _RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA = 8, 9, 15, 18
_RTAX_LOCK, _RTAX_MTU, _RTAX_ADVMSS = 1, 2, 8
_NEXT_HOP = struct.Struct("=HBBi")
_RT_TABLE_MAIN = 254
_RTN_UNICAST = 1
_RTN_REFUSALS = (6, 7, 8)
"""Blackhole, unreachable, prohibit: routes that lead nowhere."""
_RTPROT_REDIRECT, _RTPROT_KERNEL = 1, 2
_RTNH_F_ONLINK = 0x4
_SCOPE_LINK = 253

_RULE = struct.Struct("=BBBBBBBBI")
_FRA_PRIORITY, _FRA_TABLE = 6, 15
_USUAL_RULES = frozenset({(0, 255), (32766, 254), (32767, 253)})
"""Priority and table of the rules that every namespace has."""

_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT = 0x80


@dataclass(frozen=True)
class NetworkLink:
    """One link of a namespace."""

    index: int
    name: str
    mac: bytes
    mtu: int
    ethernet: bool


@dataclass(frozen=True)
class _Route:
    message: guest_pb2.Route
    index: int
    """Of the link that it leads to."""


def read_links(netlink: Netlink) -> list[NetworkLink]:
    """Return the links that are up, without loopback.

    Those that are down carry nothing: tunnels' fallback devices are like that in every namespace.
    """
    return [link for link, flags in _links(netlink) if flags & (_IFF_UP | _IFF_LOOPBACK) == _IFF_UP]


def find_link(netlink: Netlink, name: str) -> int:
    """Return a link's index; 0 when there is none of that name."""
    return next((link.index for link, _ in _links(netlink) if link.name == name), 0)


def _links(netlink: Netlink) -> Iterator[tuple[NetworkLink, int]]:
    """Yield all links, and their flags."""
    for body in netlink.dump(_GETLINK, _LINK.pack(0, 0, 0, 0, 0)):
        _, kind, index, flags, _ = _LINK.unpack_from(body)
        have = attributes(body[_LINK.size :])
        name = have.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
        mac = have.get(_IFLA_ADDRESS, b"")
        ethernet = kind == _ARPHRD_ETHER and len(mac) == _MAC_SIZE
        yield NetworkLink(index, name, mac, _number(have, _IFLA_MTU), ethernet), flags


def choose_link(netlink: Netlink, links: list[NetworkLink]) -> NetworkLink | None:
    """Return the link that the VM gets; None in a namespace with loopback only.

    A VM has one NIC: of several links it is the one with the default route. Raises
    ``NotSupported`` when no link can be the VM's.
    """
    if not links:
        return None
    chosen = links[0]
    if len(links) > 1:
        routes = _routes(netlink, {link.index: link.name for link in links})
        defaults = {route.index for route in routes if not route.message.destination}
        leading = [link for link in links if link.index in defaults]
        if not leading:
            names = ", ".join(link.name for link in links)
            raise NotSupported(
                f"the network namespace has several links ({names}) and no default route",
                hint="a VM has one NIC: give one of the links the default route",
            )
        chosen = leading[0]
    if not chosen.ethernet:
        raise NotSupported(
            f"{chosen.name} is no Ethernet link, and a VM's NIC is one",
            hint="use a CNI plugin that makes Ethernet links, such as ptp or bridge",
        )
    return chosen


def read_plan(netlink: Netlink, link: NetworkLink, nic: bytes) -> guest_pb2.NetworkPlan:
    """Return what the guest needs to be ``link``'s successor with its NIC, whose MAC is ``nic``."""
    message = guest_pb2.Link(match_mac=nic, name=link.name, mac=link.mac, mtu=link.mtu, up=True)
    addresses, peers = _addresses(netlink, link)
    message.addresses.extend(addresses)
    routes = [*peers, *(r.message for r in _routes(netlink, {link.index: link.name}))]
    # Gateways come last: what leads to them must be there first.
    routes.sort(key=lambda route: bool(route.gateway))
    return guest_pb2.NetworkPlan(
        links=[message], routes=routes, neighbours=_neighbours(netlink, link)
    )


def left_out(netlink: Netlink) -> list[str]:
    """Return what a VM does not carry, in words: policy rules, and with them their tables."""
    found = []
    try:
        rules = netlink.dump(_GETRULE, _RULE.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0))
    except OSError:
        return []  # a kernel without policy routing
    for body in rules:
        family, _, _, _, table, _, _, _, _ = _RULE.unpack_from(body)
        have = attributes(body[_RULE.size :])
        rule = _number(have, _FRA_PRIORITY), _number(have, _FRA_TABLE) or table
        if family in (socket.AF_INET, socket.AF_INET6) and rule not in _USUAL_RULES:
            found.append(f"policy rule {rule[0]} (table {rule[1]})")
    return found


def _addresses(
    netlink: Netlink, link: NetworkLink
) -> tuple[list[guest_pb2.IpAddress], list[guest_pb2.Route]]:
    """Return the link's addresses, and routes to the peers of those that have one."""
    found, peers = [], []
    for body in netlink.dump(_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0)):
        family, prefix, _, scope, index = _ADDRESS.unpack_from(body)
        if index != link.index:
            continue
        have = attributes(body[_ADDRESS.size :])
        flags = _number(have, _IFA_FLAGS)
        peer = have.get(_IFA_ADDRESS, b"")
        local = have.get(_IFA_LOCAL, peer)
        if family == socket.AF_INET6 and scope == _SCOPE_LINK and _is_made(link, local, have):
            continue  # the guest's kernel makes its own
        if flags & (_IFA_F_TEMPORARY | _IFA_F_DADFAILED):
            continue
        broadcast = have.get(_IFA_BROADCAST, b"")
        if peer != local:
            peers.append(_route_to_peer(peer, prefix, local, link.name))
            prefix = 8 * len(local)
        found.append(
            guest_pb2.IpAddress(address=local, prefix=prefix, broadcast=broadcast, scope=scope)
        )
    return found, peers


def _is_made(link: NetworkLink, address: bytes, have: Mapping[int, bytes]) -> bool:
    """Whether the kernel made a link-local address by itself; older ones do not say so."""
    if _IFA_PROTO in have:
        return have[_IFA_PROTO][0] == _IFAPROT_KERNEL_LL
    if _number(have, _IFA_FLAGS) & _IFA_F_STABLE_PRIVACY:
        return True
    mac = link.mac
    return address[8:] == bytes((mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]))


def _route_to_peer(peer: bytes, prefix: int, local: bytes, interface: str) -> guest_pb2.Route:
    host_bits = 8 * len(peer) - prefix
    network = int.from_bytes(peer, "big") >> host_bits << host_bits
    return guest_pb2.Route(
        destination=network.to_bytes(len(peer), "big"),
        prefix=prefix,
        interface=interface,
        source=local if len(local) == 4 else b"",
        scope=_SCOPE_LINK,
        ipv6=len(peer) == 16,
    )


def _routes(netlink: Netlink, names: Mapping[int, str]) -> list[_Route]:
    """Return the main table's routes over the links ``names`` (by index), and those to nowhere."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        wanted = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        found += [_route(body, names) for body in netlink.dump(_GETROUTE, wanted)]
    return [route for route in found if route is not None]


def _route(body: bytes, names: Mapping[int, str]) -> _Route | None:
    family, prefix, _, _, table, protocol, scope, kind, flags = _ROUTE.unpack_from(body)
    have = attributes(body[_ROUTE.size :])
    if protocol in (_RTPROT_KERNEL, _RTPROT_REDIRECT):
        return None
    if (_number(have, _RTA_TABLE) or table) != _RT_TABLE_MAIN:
        return None
    message = guest_pb2.Route(
        destination=have.get(_RTA_DST, b""),
        prefix=prefix,
        metric=_number(have, _RTA_PRIORITY),
        scope=scope,
        ipv6=family == socket.AF_INET6,
    )
    if kind in _RTN_REFUSALS:
        message.kind = kind
        return _Route(message, 0)
    if kind != _RTN_UNICAST:
        return None
    index = _number(have, _RTA_OIF)
    if _RTA_MULTIPATH in have:
        # Several ways to the same place: the guest gets the first that is ours.
        index, flags, hop = _first_hop(have[_RTA_MULTIPATH], names)
        have = {**have, **hop}
    if index not in names:
        return None
    if _RTA_VIA in have:
        raise NotSupported(f"a route of {names[index]} has a gateway of another address family")
    message.gateway = have.get(_RTA_GATEWAY, b"")
    message.interface = names[index]
    message.source = have.get(_RTA_PREFSRC, b"")
    message.onlink = bool(flags & _RTNH_F_ONLINK)
    metrics = attributes(have.get(_RTA_METRICS, b""))
    message.mtu = _number(metrics, _RTAX_MTU)
    message.advmss = _number(metrics, _RTAX_ADVMSS)
    message.locked = _number(metrics, _RTAX_LOCK)
    return _Route(message, index)


def _first_hop(data: bytes, names: Iterable[int]) -> tuple[int, int, dict[int, bytes]]:
    """Return link, flags and attributes of the first hop over one of the links; else zeros."""
    at = 0
    while at + _NEXT_HOP.size <= len(data):
        size, flags, _, index = _NEXT_HOP.unpack_from(data, at)
        if size < _NEXT_HOP.size:
            break
        if index in names:
            return index, flags, attributes(data[at + _NEXT_HOP.size : at + size])
        at += (size + 3) & ~3
    return 0, 0, {}


def _neighbours(netlink: Netlink, link: NetworkLink) -> list[guest_pb2.Neighbour]:
    found = []
    for body in netlink.dump(_GETNEIGH, _NEIGHBOUR.pack(0, 0, 0, 0, 0)):
        _, index, state, _, _ = _NEIGHBOUR.unpack_from(body)
        have = attributes(body[_NEIGHBOUR.size :])
        mac = have.get(_NDA_LLADDR, b"")
        if index == link.index and state & _NUD_PERMANENT and len(mac) == _MAC_SIZE:
            address = have.get(_NDA_DST, b"")
            found.append(guest_pb2.Neighbour(address=address, mac=mac, interface=link.name))
    return found


def _number(have: Mapping[int, bytes], kind: int) -> int:
    """Return a 32-bit attribute; 0 without it."""
    return struct.unpack("=I", have[kind][:4])[0] if len(have.get(kind, b"")) >= 4 else 0
