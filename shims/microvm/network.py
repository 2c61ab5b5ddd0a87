"""The network of one namespace, for the time in which a VM has it.

The link that CNI made stays where it is. A tap is put beside it, whatever comes in on one goes out
on the other (``redirect``), and the guest gets the link's name, MAC, addresses and routes
(``links``). Leaving undoes it, so that the namespace is as CNI left it.

A VM's end takes the tap away by itself. What a killed shim leaves is the redirect, which swallows
all that comes in; ``netns.release_network`` removes it, and so does the next VM that joins.
"""

from __future__ import annotations

import logging
import os
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shims.core.errors import InputError, NotSupported, TargetError
from shims.microvm.links import choose_link, find_link, left_out, read_links, read_plan
from shims.microvm.net import open_namespace
from shims.microvm.netns import TAP_NAME, is_host_stat
from shims.microvm.plan import NETWORK_MAC
from shims.microvm.redirect import add_redirect, find_redirects, prepare_tap, remove_redirect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from protos.gen.voidbox.guest.v1 import guest_pb2
    from shims.microvm.netlink import Netlink

__all__ = ["Network", "join_network"]

log = logging.getLogger("shims.microvm")

_MOST_MTU = 65_521
"""Of a tap: what a packet can have, without the Ethernet header."""
_NIC = bytes.fromhex(NETWORK_MAC.replace(":", ""))


@dataclass(frozen=True)
class Network:
    """What a VM needs to take a link's place."""

    tap: int
    """Descriptor of the tap device; whoever joined the network closes it."""
    plan: guest_pb2.NetworkPlan
    """For the guest, after its hello."""


@asynccontextmanager
async def join_network(path: str) -> AsyncIterator[Network | None]:
    """Let a VM take over the network of the namespace at ``path``; None where it has none.

    Raises ``InputError`` without the namespace, ``NotSupported`` for one that a VM cannot replace
    (the host's own, one without an Ethernet link), ``Conflict`` when somebody else redirects its
    traffic, ``TargetError`` when the host refuses something, which it does when a VM is there.
    """
    async with AsyncExitStack() as stack:
        try:
            namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            words = f"the path of a network namespace ({error.strerror})"
            raise InputError("network namespace", path, words) from error
        try:
            if is_host_stat(os.fstat(namespace)):
                raise NotSupported(f"{path} is the host's own network namespace")
            netlink, tap = await open_namespace(namespace)
        finally:
            os.close(namespace)
        stack.callback(netlink.close)
        if tap is not None:
            stack.callback(os.close, tap)
        try:
            network = None if tap is None else _take(netlink, tap, path, stack)
        except OSError as error:
            raise TargetError(f"network namespace {path}: {error.strerror}") from error
        yield network


def _take(netlink: Netlink, tap: int, path: str, stack: AsyncExitStack) -> Network | None:
    links = [link for link in read_links(netlink) if link.name != TAP_NAME]
    chosen = choose_link(netlink, links)
    if chosen is None:
        return None
    others = [link.name for link in links if link is not chosen]
    if left := [*others, *left_out(netlink)]:
        log.warning("the VM gets %s of %s; left out: %s", chosen.name, path, ", ".join(left))
    if chosen.mtu > _MOST_MTU:
        log.warning("%s has MTU %d; the VM's is %d", chosen.name, chosen.mtu, _MOST_MTU)
        chosen = replace(chosen, mtu=_MOST_MTU)
    plan = read_plan(netlink, chosen, _NIC)
    index = find_link(netlink, TAP_NAME)
    prepare_tap(netlink, index, chosen.mtu)
    stack.callback(_undo, netlink, chosen.index)
    add_redirect(netlink, chosen.index, index, chosen.name)
    add_redirect(netlink, index, chosen.index, TAP_NAME)
    return Network(tap, plan)


def _undo(netlink: Netlink, index: int) -> None:
    try:
        if index in find_redirects(netlink):
            remove_redirect(netlink, index)
    except OSError as error:
        log.warning("a redirect stays: %s", error.strerror)
