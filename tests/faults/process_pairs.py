"""Processes of one run without a launcher: forked ranks that meet on a free port."""

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from runs import Ended, Running, start


def free_port() -> int:
    """A port that nobody uses, and that the kernel hands to nobody who asks for any port."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port among a hundred")


@contextmanager
def ranks_of(
    env: dict[str, str], world_size: int, prepare: Callable[[], None] | None = None
) -> Iterator[list[Running]]:
    """The processes of one run, started as torchrun would."""
    meeting = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with ExitStack() as stack:
        yield [
            stack.enter_context(start({**env, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)}, prepare=prepare))
            for rank in range(world_size)
        ]


def together(env: dict[str, str], world_size: int, prepare: Callable[[], None] | None = None) -> list[Ended]:
    """A run on `world` processes that must end well."""
    with ranks_of(env, world_size, prepare) as distributed:
        ended = [rank.end() for rank in distributed]
    assert [one.code for one in ended] == [0] * world_size, "\n".join(one.said for one in ended)
    return ended
