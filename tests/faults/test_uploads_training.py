"""Training that tidies its checkpoints while the sidecar sends them: nothing is deleted here before the Hub holds it.

Real training, the real sidecar and a real server over HTTP; only the server's refusals are planned.
"""

import hashlib
import signal
from pathlib import Path

from runs import environment, epochs, start
from uploads.harness import REPO, environ, on_hub, until, uploader_process
from uploads.hub_server import Hub

from seqtrack.uploads.state import is_verified

LAST = 6


def name(epoch: int) -> str:
    """The checkpoint's path in the repo."""
    return f"phase_1/checkpoints/SEQTRACK_ep{epoch:04d}.safetensors"


def digests(output: Path) -> dict[int, str]:
    """sha256 of the checkpoints that lie here, by epoch."""
    return {
        epoch: hashlib.sha256(manifest.path.read_bytes()).hexdigest()
        for epoch, manifest in epochs(output / "phase_1").items()
    }


def test_training_deletes_what_the_hub_holds_and_nothing_else(hub: Hub, demo_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    keys = {"TRAIN.KEEP_CHECKPOINTS": "1", "TRAIN.SAVE_INTERVAL_S": "0"}
    both = {**environ(hub, output), **environment(output, demo_data, keys, EPOCHS=LAST)}
    with start(both) as running, uploader_process(hub, output) as sending:
        assert running.until(lambda: (output / "phase_1" / "checkpoints" / "SEQTRACK_ep0002.json").exists())
        running.signal(signal.SIGSTOP)
        early = digests(output)
        assert 2 <= len(early) < LAST, "the test stops the training in its middle"
        until(lambda: all(is_verified(output, name(epoch), sha) for epoch, sha in early.items()), what="the first ones")
        refused = hub.fail("commit", status=503, times=None)
        running.signal(signal.SIGCONT)
        ended = running.end()
        assert ended.code == 0, ended.said
        late = set(range(1, LAST + 1)) - set(early)
        left = digests(output)
        assert late <= set(left), "no checkpoint that the Hub refused has gone"
        gone = set(early) - set(left)
        assert gone, "those that the Hub holds may go, but for the best"
        assert {name(epoch): early[epoch] for epoch in gone}.items() <= on_hub(hub).items()
        hub.faults.remove(refused)
        assert sending.end() == 0
    held = on_hub(hub)
    assert {name(epoch): sha for epoch, sha in (early | left).items()}.items() <= held.items()
    assert [path for path in sorted(held) if path.endswith(".safetensors")] == [name(n) for n in range(1, LAST + 1)]
    assert hub.violations == []
    assert {len(hub.commits_of(name(epoch), REPO)) for epoch in range(1, LAST + 1)} == {1}
