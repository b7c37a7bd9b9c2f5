"""Where the processes of one run find each other."""

import pytest
from torch import distributed as dist

from seqtrack.engine.ranks import launchers_store


def test_a_start_after_a_death_reads_nothing_that_the_dead_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    held = dist.TCPStore("127.0.0.1", 0, is_master=True)  # type: ignore[attr-defined]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(held.port))
    stores = []
    for start in ("0", "0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", start)
        stores.append(launchers_store())
    first, beside_it, after_a_death = stores
    first.set("address of rank 1", "gone")
    assert beside_it.check(["address of rank 1"])
    assert not after_a_death.check(["address of rank 1"])
