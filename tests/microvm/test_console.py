"""The bounded record of what a VM said."""

from __future__ import annotations

import os

from shims.microvm.console import Console


async def test_only_the_end_is_kept_and_nobody_is_made_to_wait() -> None:
    console = Console()
    read, write = os.pipe()
    console.add(read)
    os.set_blocking(write, False)
    for number in range(20_000):
        try:
            os.write(write, b"line %d of many\r\n" % number)
        except BlockingIOError:
            console.drain()
            os.write(write, b"line %d of many\r\n" % number)
    console.drain()
    tail = console.tail(2)
    assert tail == ["line 19998 of many", "line 19999 of many"]
    assert len(console.tail(10**6)) < 5000
    os.close(write)
    console.close()
    console.close()
    assert console.tail(1) == ["line 19999 of many"]


async def test_control_characters_and_bad_bytes_are_harmless() -> None:
    console = Console()
    read, write = os.pipe()
    console.add(read)
    os.write(write, b"\x1b[31mred\x1b[0m\x07\n\n\xff\xfe\ttab\nunfinished")
    console.drain()
    assert console.tail() == ["red", "��\ttab", "unfinished"]
    os.close(write)
    console.close()


async def test_neither_c1_controls_nor_bidi_marks_nor_endless_lines_get_through() -> None:
    console = Console()
    read, write = os.pipe()
    console.add(read)
    os.write(write, "\x9b2Jcleared \x85next \u202egnp.exe\u2066 \u2028é\xa0x\n".encode())
    os.write(write, b"A" * 60_000 + b"\n")
    console.drain()
    assert console.tail() == ["cleared next gnp.exe é\xa0x", "A" * 500]
    os.close(write)
    console.close()


async def test_several_sources_and_their_ends() -> None:
    console = Console()
    pipes = [os.pipe() for _ in range(2)]
    for read, _ in pipes:
        console.add(read)
    for number, (_, write) in enumerate(pipes):
        os.write(write, b"%d\n" % number)
        os.close(write)
    console.drain()
    assert sorted(console.tail()) == ["0", "1"]
    console.close()
