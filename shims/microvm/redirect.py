"""What comes in on one link goes out on another: tc's ingress queue with a mirred action.

This is how a VM takes a link's place. The peer of the link notices nothing: packets that arrive
on the link leave through the tap to the guest, those of the guest leave through the link. The
namespace's own stack sees neither.

Facts: linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from shims.core.errors import Conflict
from shims.microvm.netlink import attribute, attributes, nest, number, text

if TYPE_CHECKING:
    from shims.microvm.netlink import Netlink

__all__ = ["add_redirect", "find_redirects", "prepare_tap", "remove_redirect"]

_CREATE, _EXCLUSIVE = 0x400, 0x200
_NEWLINK = 16
_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_NEWTFILTER, _GETTFILTER = 44, 46
_ENODEV, _ENOENT, _EINVAL = 19, 2, 22

_MESSAGE = struct.Struct("=BxxxiIII")
_INGRESS_PARENT, _INGRESS = 0xFFFFFFF1, 0xFFFF0000
_HOOKS = (0xFFFFFFF2, 0xFFFFFFF3)
"""Ingress and egress of a clsact queue; an ingress queue takes both for its only one."""
_ETH_P_ALL = 3
_PREFERENCE = 0x564F
"""The filter's preference, by which we know our own."""
_TCA_KIND, _TCA_OPTIONS = 1, 2

_SELECTOR = struct.Struct("=BBBxHHhhI")
_KEY = struct.Struct("=IIii")
_U32_TERMINAL = 1
_TCA_U32_SEL, _TCA_U32_ACT = 5, 7
_ACTION_KIND, _ACTION_OPTIONS = 1, 2
_MIRRED = struct.Struct("=IIiiiiI")
_TCA_MIRRED_PARMS = 2
_ACT_STOLEN, _EGRESS_REDIRECT = 4, 1

_LINK = struct.Struct("=BxHiII")
_IFF_UP = 0x1
_IFLA_MTU, _IFLA_AF_SPEC = 4, 26
_INET6_ADDR_GEN_MODE, _GEN_MODE_NONE = 8, 1


def prepare_tap(netlink: Netlink, index: int, mtu: int) -> None:
    """Set a tap's MTU and bring it up, without an address of its own to talk from."""
    generate = attribute(_INET6_ADDR_GEN_MODE, bytes((_GEN_MODE_NONE,)))
    try:
        body = _LINK.pack(0, 0, index, 0, 0)
        spec = nest(_IFLA_AF_SPEC, nest(socket.AF_INET6, generate))
        netlink.request(_NEWLINK, 0, body + spec)
    except OSError:
        pass  # a host without IPv6
    body = _LINK.pack(0, 0, index, _IFF_UP, _IFF_UP)
    netlink.request(_NEWLINK, 0, body + number(_IFLA_MTU, mtu))


def add_redirect(netlink: Netlink, source: int, target: int, name: str) -> None:
    """Send all that comes in on link ``source`` (called ``name``) out on ``target``; by index.

    A redirect that a killed shim left is replaced, and so is any queue without a filter. Raises
    ``Conflict`` when somebody else filters what comes in on the link, and ``OSError``.
    """
    if _is_ours_or_idle(netlink, source):
        remove_redirect(netlink, source)
    body = _MESSAGE.pack(0, source, _INGRESS, _INGRESS_PARENT, 0)
    try:
        netlink.request(_NEWQDISC, _CREATE | _EXCLUSIVE, body + text(_TCA_KIND, "ingress"))
    except FileExistsError:
        raise Conflict(
            f"somebody else filters what comes in on {name}",
            hint=f"see `tc filter show dev {name} ingress` in the network namespace",
        ) from None
    info = _PREFERENCE << 16 | socket.htons(_ETH_P_ALL)
    body = _MESSAGE.pack(0, source, 0, _INGRESS, info)
    # u32, because every kernel with tc has it: four bytes of which none matters.
    selector = _SELECTOR.pack(_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + _KEY.pack(0, 0, 0, 0)
    mirred = _MIRRED.pack(0, 0, _ACT_STOLEN, 0, 0, _EGRESS_REDIRECT, target)
    action = nest(
        1,
        text(_ACTION_KIND, "mirred"),
        nest(_ACTION_OPTIONS, attribute(_TCA_MIRRED_PARMS, mirred)),
    )
    options = nest(_TCA_OPTIONS, attribute(_TCA_U32_SEL, selector), nest(_TCA_U32_ACT, action))
    netlink.request(_NEWTFILTER, _CREATE | _EXCLUSIVE, body + text(_TCA_KIND, "u32") + options)


def remove_redirect(netlink: Netlink, source: int) -> None:
    """Remove the ingress queue of a link, with its filters. No error when there is none."""
    body = _MESSAGE.pack(0, source, _INGRESS, _INGRESS_PARENT, 0)
    try:
        netlink.request(_DELQDISC, 0, body)
    except OSError as error:
        if error.errno not in (_ENODEV, _ENOENT, _EINVAL):
            raise


def find_redirects(netlink: Netlink) -> list[int]:
    """Return the links, by index, whose ingress queue is ours.

    One without a filter is what we leave when killed half-way, and no loss if it was not ours.
    """
    found = []
    for body in netlink.dump(_GETQDISC, _MESSAGE.pack(0, 0, 0, 0, 0)):
        _, index, _, parent, _ = _MESSAGE.unpack_from(body)
        kind = attributes(body[_MESSAGE.size :]).get(_TCA_KIND, b"")
        if parent == _INGRESS_PARENT and kind == b"ingress\0":
            found.append(index)
    return [index for index in found if _is_ours_or_idle(netlink, index)]


def _is_ours_or_idle(netlink: Netlink, index: int) -> bool:
    """Whether no filter but ours hangs on a link's ingress or clsact queue, if there is one."""
    for hook in _HOOKS:
        try:
            filters = netlink.dump(_GETTFILTER, _MESSAGE.pack(0, index, 0, hook, 0))
        except OSError as error:
            if error.errno in (_ENODEV, _ENOENT, _EINVAL):
                continue
            raise
        infos = [_MESSAGE.unpack_from(body)[4] for body in filters]
        if any(info >> 16 != _PREFERENCE for info in infos):
            return False
    return True
