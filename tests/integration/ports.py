"""Ports that nobody listens on."""

import random
import socket

import pytest


def free_ports(count: int, beside: int = 0) -> list[int]:
    """Return free ports of this machine, below those the kernel hands out; each one's `beside` higher is free too."""
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 500):
        if is_free(port) and is_free(port + beside):
            found.append(port)
        if len(found) == count:
            return found
    pytest.fail("no free ports")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
