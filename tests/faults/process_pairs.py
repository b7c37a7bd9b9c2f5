"""Processes of one run without a launcher: forked ranks that meet on a free port."""

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from runs import Ended, Running, children, start


def free_port() -> int:
    """A port that nobody uses, and that the kernel hands to nobody who asks for any port."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port among a hundred")


@contextmanager
def ranks_of(
    env: dict[str, str], world_size: int, prepare: Callable[[], None] | None = None
) -> Iterator[list[Running]]:
    """The processes of one run, started as torchrun would; a single one without any of it."""
    meeting = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [{**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
    with ExitStack() as stack:
        yield [
            stack.enter_context(start({**env, **(rank if world_size > 1 else {})}, prepare=prepare)) for rank in ranks
        ]


def together(env: dict[str, str], world_size: int) -> list[Ended]:
    """A run on several processes that must end well."""
    with ranks_of(env, world_size) as distributed:
        ended = [rank.end() for rank in distributed]
    assert [one.code for one in ended] == [0] * world_size, "\n".join(one.said for one in ended)
    return ended


def trainers_of(launcher: int) -> dict[int, int]:
    """Process ids of the launcher's ranks, without their loader workers."""
    found = {}
    for process in children(launcher):
        with suppress(OSError):  # it ended meanwhile
            variables = Path("/proc", str(process), "environ").read_bytes().split(b"\0")
            found |= {int(one[5:]): process for one in variables if one.startswith(b"RANK=")}
    return found
