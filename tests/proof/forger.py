"""A cheat with full knowledge of the formats: edits a run and then computes every digest, record and log line again."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from seqtrack.checkpoints.safetensors_io import TensorBytes, read_checkpoint_file
from seqtrack.checkpoints.side_files import read_metrics
from seqtrack.checkpoints.store import list_checkpoints, write_checkpoint
from seqtrack.config.loader import config_digest, config_from_text, dump_config
from seqtrack.runtime.metrics_log import record_line

DERIVED = ("format", "file", "bytes", "sha256", "weights_sha256", "parts")


@dataclass
class Epoch:
    """What one checkpoint holds."""

    tensors: dict[str, TensorBytes]
    values: dict[str, Any]
    manifest: dict[str, Any]


@dataclass
class Forger:
    """A phase's folder in memory; `write` puts it back, consistent in itself."""

    folder: Path
    epochs: dict[int, Epoch] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for manifest in list_checkpoints(self.folder / "checkpoints", kinds=("epoch",)):
            contents = read_checkpoint_file(manifest.path, lambda name: True)
            self.epochs[manifest.epoch] = Epoch(contents.kept, contents.values, manifest.model_dump())
        text = (self.folder / "logs" / "metrics.jsonl").read_text()
        self.records = [json.loads(line) for line in text.splitlines()]

    def scale(self, quantity: str, epoch: int, factor: float) -> None:
        """Multiply an epoch's loss or IoU in every file that holds it."""
        for record in self.records:
            if record["epoch"] == epoch:
                for name in (quantity, f"interval_{quantity}"):
                    if name in record:
                        record[name] *= factor
        for number, one in self.epochs.items():
            for past in one.values["history"]:
                if past["epoch"] == epoch:
                    past[quantity] *= factor
            if number == epoch:
                one.manifest[quantity] *= factor

    def claim(self, epoch: int, field: str, value: object) -> None:
        """Put another value into an epoch's record and into the history of every checkpoint from it on."""
        for record in self.records:
            if record["epoch"] == epoch and record["type"] == "epoch":
                record[field] = value
        for one in self.epochs.values():
            for past in one.values["history"]:
                if past["epoch"] == epoch:
                    past[field] = value
        if field in self.epochs[epoch].manifest:
            self.epochs[epoch].manifest[field] = value

    def splice(self, other: "Forger", first: int) -> None:
        """From an epoch on, continue as another run did."""
        self.records = [one for one in self.records if one["epoch"] < first]
        self.records += [one for one in other.records if one["epoch"] >= first]
        before = self.epochs[first - 1].values["history"] if first > 1 else []
        for number in (number for number in self.epochs if number >= first):
            theirs, manifest = other.epochs[number], self.epochs[number].manifest
            values = theirs.values | {"history": before + theirs.values["history"][first - 1 :]}
            if "lineage" in values:
                values["lineage"] = self.epochs[number].values["lineage"]
            measured = {name: theirs.manifest[name] for name in ("loss", "iou")}
            self.epochs[number] = Epoch(theirs.tensors, values, manifest | measured)

    def become_phase_2(self, resume_epoch: int) -> None:
        """Claim to be the resumption of phase 1 from one of its checkpoints; the times stay those of phase 1."""
        self.epochs = {number: one for number, one in self.epochs.items() if number > resume_epoch}
        self.records = [one | {"phase": 2} for one in self.records if one["epoch"] > resume_epoch]
        for number in range(1, resume_epoch + 1):
            for path in (self.folder / "checkpoints").glob(f"SEQTRACK_ep{number:04d}.*"):
                path.unlink()
        for one in self.epochs.values():
            one.manifest["phase"] = 2
        run = json.loads((self.folder / "run.json").read_text())
        began = {"epoch": resume_epoch, "source": f"phase_1/SEQTRACK_ep{resume_epoch:04d}.safetensors"}
        began["step"] = self.records[0]["step"] - 1
        starts = [{**run["starts"][0], **began}]
        run |= {"phase": 2, "resume_epoch": resume_epoch, "starts": starts}
        (self.folder / "run.json").write_text(json.dumps(run))
        (log,) = (self.folder / "logs").glob("*.log")
        scratch = "starts from scratch; reproducibility guarantee for a resumed run on this hardware and lock"
        text = f"after step {began['step']} (epoch {resume_epoch}, 0 samples into it) from {began['source']}"
        resumed = f"resumes {text}, sha256 {'0' * 16}\nreproducibility guarantee with that checkpoint"
        log.write_text(log.read_text().replace(scratch, resumed))

    def weights(self, first: int, last: int, change: Callable[[bytearray], bytearray], prefix: str = "model/") -> None:
        """Change the tensors below `prefix` in the checkpoints of these epochs."""
        for number, one in self.epochs.items():
            if first <= number <= last:
                for name, tensor in one.tensors.items():
                    if name.startswith(prefix):
                        one.tensors[name] = TensorBytes(tensor.dtype, tensor.shape, change(bytearray(tensor.data)))

    def relabel(self, key: str, value: object) -> None:
        """Claim another value of a configuration key in every file."""
        path = self.folder / "config.yaml"
        *sections, last = key.split(".")

        def claimed(tree: dict[str, Any]) -> tuple[str, str]:
            place = tree
            for section in sections:
                place = place[section]
            place[last] = value
            config = config_from_text(json.dumps(tree), "forged")
            return dump_config(config), config_digest(config)

        text, digest = claimed(yaml.safe_load(path.read_text()))
        path.write_text(text)
        run = json.loads((self.folder / "run.json").read_text())
        (self.folder / "run.json").write_text(json.dumps(run | {"config_digest": digest}))
        for one in self.epochs.values():
            one.manifest["config"] = yaml.safe_load(text)
            one.manifest["config_digest"] = digest

    def write(self) -> None:
        """Write everything, with all digests, parents, records and log lines as a run would have left them."""
        for number, one in sorted(self.epochs.items()):
            before = self.epochs.get(number - 1)
            parent = before.manifest["sha256"] if before else one.manifest["parent_sha256"]
            if "lineage" in one.values:
                one.values["lineage"]["parent_sha256"] = parent
            describe = {key: value for key, value in one.manifest.items() if key not in DERIVED}
            path = self.folder / "checkpoints" / one.manifest["file"]
            written = write_checkpoint(path, one.tensors, one.values, describe={**describe, "parent_sha256": parent})
            one.manifest = written.model_dump()
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        (self.folder / "logs" / "metrics.jsonl").write_text(lines)
        self._write_log()

    def _write_log(self) -> None:
        """The log lines of all records and checkpoints, and those about the configuration."""
        (log,) = (self.folder / "logs").glob("*.log")
        run, config = (yaml.safe_load((self.folder / name).read_text()) for name in ("run.json", "config.yaml"))
        digest = f"digest {run['config_digest'][:16]} , seed {config['TRAIN']['SEED']}"
        kept = []
        for line in log.read_text().splitlines():
            words = line.split()
            if line.startswith("checkpoint ") and (number := int(words[1][len("SEQTRACK_ep") :][:4])) in self.epochs:
                line = f"{line.rpartition(' ')[0]} {self.epochs[number].manifest['sha256'][:16]}"
            if line.startswith("configuration "):
                line = f"{line.partition(' , ')[0]} , {digest}"
            if "] Epoch " not in line:
                kept.append(line)
        kept += map(record_line, read_metrics(self.folder / "logs" / "metrics.jsonl").records)
        log.write_text("\n".join(kept) + "\n")


def replace_frames(folders: Iterable[Path]) -> None:
    """Make every frame of a folder its smallest one, without changing the size of a file."""
    for folder in folders:
        frames = sorted(folder.glob("*.jpg"), key=lambda path: path.stat().st_size)
        smallest = frames[0].read_bytes()
        for frame in frames[1:]:
            room = frame.stat().st_size - len(smallest)
            if room >= 4:  # of a JPEG comment after the start of the image
                comment = b"\xff\xfe" + (room - 2).to_bytes(2, "big") + bytes(room - 4)
                frame.write_bytes(smallest[:2] + comment + smallest[2:])
