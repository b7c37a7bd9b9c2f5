"""`export` and `import`: bitwise equal there and back; foreign files are read as data or refused, never executed."""

import copy
import io
import itertools
import pickle
import re
import subprocess
import tarfile
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from small_models import spec_of
from torch import Tensor

from seqtrack.checkpoints.store import Manifest, load_weights, manifest_of, write_weights
from seqtrack.cli import main
from seqtrack.config.loader import config_digest, dump_config, load_config
from seqtrack.errors import UserError
from seqtrack.model.authors import read_authors_file
from seqtrack.model.build import build_empty
from seqtrack.model.spec import model_spec
from seqtrack.model.weights import load_pretrained

NAME = "decoder.body.layers.0.linear1.weight"


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    """The demo model with random finite bit patterns, negative zeros and denormals included."""
    draw = torch.Generator().manual_seed(3)
    state = {}
    for name, value in build_empty(model_spec(load_config("demo"))).state_dict().items():
        bits = torch.randint(-(2**31), 2**31, value.shape, generator=draw).int().view(torch.float32)
        state[name] = torch.where(bits.isfinite(), bits, -0.0)
    return state


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Two small tensors of a model."""
    draw = torch.Generator().manual_seed(1)
    return {NAME: torch.randn(4, 6, generator=draw), "bias": torch.randn(6, generator=draw)}


def _write(path: Path, weights: dict[str, Tensor]) -> Manifest:
    """A checkpoint of these weights with the demo configuration."""
    config = load_config("demo")
    describe = {
        "epoch": 7, "step": 70, "sample": 0, "loss": 1.0, "iou": 0.5, "parent_sha256": None, "data_digest": None,
        "config_digest": config_digest(config), "created": "2026-01-01T00:00:00Z",
        "config": yaml.safe_load(dump_config(config)),
    }  # fmt: skip
    return write_weights(path, weights, describe=describe)


def _save(content: object, path: Path, *, as_zip: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=as_zip)
    return path


def _import(file: Path, out: Path, *more: str) -> int:
    return main(["import", str(file), "--config", "demo", "-o", str(out), *more])


def _assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():  # as integers, because -0.0 == 0.0
        assert torch.equal(found[name].contiguous().view(torch.int32), value.contiguous().view(torch.int32)), name


def _codes(path: Path, expected: dict[str, Tensor], *, named: str = "", **more: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        read_authors_file(path, expected, **more)
    assert str(path) in str(caught.value) and named in str(caught.value)
    return [problem.code for problem in caught.value.problems]


def test_export_and_import_are_bitwise_equal(whole: dict[str, Tensor], tmp_path: Path) -> None:
    checkpoint, exported = _write(tmp_path / "SEQTRACK_ep0007.safetensors", whole), tmp_path / "e.pth.tar"
    assert main(["export", str(checkpoint.path), "-o", str(exported)]) == 0
    theirs = torch.load(exported, weights_only=True)
    assert (theirs["epoch"], theirs["net_type"]) == (7, "SEQTRACK")
    _assert_same_bits(theirs["net"], whole)
    for file in (exported, _save(theirs, tmp_path / "old.pth.tar", as_zip=False)):
        assert _import(file, tmp_path / "back" / f"{file.stem}.safetensors") == 0
        back = manifest_of(tmp_path / "back" / f"{file.stem}.safetensors")
        _assert_same_bits(load_weights(back), whole)
        assert back.weights_sha256 == checkpoint.weights_sha256
        assert (back.kind, back.epoch, back.config_digest) == ("imported", 7, checkpoint.config_digest)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", back.created)


def test_an_exported_file_names_its_experiment_and_any_other_needs_an_option(
    whole: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, exported = _write(tmp_path / "SEQTRACK_ep0007.safetensors", whole), tmp_path / "e.pth.tar"
    assert main(["export", str(checkpoint.path), "-o", str(exported)]) == 0
    assert main(["import", str(exported), "-o", str(tmp_path / "back.safetensors")]) == 0
    assert manifest_of(tmp_path / "back.safetensors").config_digest == checkpoint.config_digest
    content = torch.load(exported, weights_only=True)
    for info, code in (
        (None, "import.config"),
        ({"config": 7}, "import.config"),
        ({"config": "DATA: {}"}, "weights.other_model"),
        ({"config": "[1"}, "config.not_yaml"),
        ({"config": '{"TRAIN": {"LRR": 1}}'}, "config.unknown_key"),
    ):
        theirs = _save({**content, "net_info": info}, tmp_path / "theirs.pth.tar")
        capsys.readouterr()
        assert main(["import", str(theirs), "-o", str(tmp_path / "x.safetensors")]) == 2
        assert f"error [{code}]" in capsys.readouterr().err


def test_weights_that_do_not_fit_are_refused_with_all_names(state: dict[str, Tensor], tmp_path: Path) -> None:
    net = {NAME: torch.ones(1, 2, 3), "extra.weight": torch.ones(2)}
    with pytest.raises(UserError) as caught:
        read_authors_file(_save({"net": net}, tmp_path / "x"), state)
    lines = {problem.code: problem for problem in caught.value.problems}
    assert set(lines) == {"weights.missing", "weights.unexpected", "weights.shape"}
    assert "bias" in lines["weights.missing"] and "extra.weight" in lines["weights.unexpected"]
    assert NAME in lines["weights.shape"] and "[1, 2, 3]" in lines["weights.shape"]
    assert _import(tmp_path / "x", tmp_path / "x.safetensors") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


class _Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[list[str]]]:
        return subprocess.call, (["touch", str(self.marker)],)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_file_that_would_execute_code_is_refused_and_nothing_is_executed(
    state: dict[str, Tensor], tmp_path: Path, as_zip: bool
) -> None:
    marker = tmp_path / "ran"
    path = _save({"net": state, "settings": _Bomb(marker)}, tmp_path / "bomb.pth.tar", as_zip=as_zip)
    assert _import(path, tmp_path / "x.safetensors") == 2
    with pytest.raises(UserError, match=r"subprocess\.call"):
        read_authors_file(path, state)
    # With --skip-objects the weights are read, and still nothing is executed.
    _assert_same_bits(read_authors_file(path, state, skip_objects=True)[0], state)
    assert [file.name for file in tmp_path.iterdir()] == ["bomb.pth.tar"]
    torch.load(path, weights_only=False)
    assert marker.exists(), "the negative control: an unguarded reader does execute it"


class Settings:
    """Like the training settings in the authors' checkpoints."""


OBJECTS = {"stats": {"loss": [Settings()]}, "default": defaultdict(list, {1: [2]}), "set": {3}}


def test_whatever_a_checkpoint_holds_besides_the_weights(state: dict[str, Tensor], tmp_path: Path) -> None:
    """Plain entries are ignored; objects are refused, and skipped on request; in every format and protocol."""
    layer = torch.nn.Linear(2, 2)
    plain = {
        "optimizer": torch.optim.AdamW(layer.parameters()).state_dict(), "rng": torch.get_rng_state(),
        "settings": {"lr": 1e-4, "size": torch.Size([2]), "device": torch.device("cpu"), "dtype": torch.float16},
        "tuples": {(1, 2): None}, "module": layer.state_dict(),
    }  # fmt: skip
    path = tmp_path / "x.pth.tar"
    for as_zip, protocol, objects in itertools.product((True, False), (2, 5), ({}, OBJECTS)):
        content = {"epoch": 12, "net": OrderedDict(state), **plain, **objects}
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=as_zip)
        if objects:
            assert _codes(path, state) == ["weights.foreign_objects"]
        weights, epoch = read_authors_file(path, state, skip_objects=bool(objects))
        assert epoch == 12
        _assert_same_bits(weights, state)
    assert read_authors_file(_save(dict(state), path), state)[1] == 0, "a bare state dict"


def test_other_floating_point_types_are_converted_and_other_values_refused_by_name(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "x.pth.tar"
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        _save({"net": {name: tensor.to(dtype) for name, tensor in state.items()}}, path)
        _assert_same_bits(read_authors_file(path, state)[0], {n: t.to(dtype).float() for n, t in state.items()})
    for dtype in (torch.int32, torch.bool, torch.complex64):
        _save({"net": {**state, NAME: state[NAME].to(dtype)}}, path)
        assert _codes(path, state, named=NAME) == ["weights.dtype"]
    for value in (float("nan"), float("inf"), 1e300):  # 1e300 is finite in float64 only
        bad = state[NAME].double()
        bad[0, :3] = value
        _save({"net": {**state, NAME: bad}}, path)
        assert _codes(path, state, named=f"{NAME} (3 of 24)") == ["weights.not_finite"]
    for epoch in (0, 500, -1, True, 2.0, "7", None, [7], 10**30, 10**5000, torch.tensor(7)):
        _save({"net": state, "epoch": epoch}, path)
        if type(epoch) is int and 0 <= epoch <= 500:
            assert read_authors_file(path, state)[1] == epoch
        else:
            assert _codes(path, state) == ["weights.epoch"], epoch


def test_the_prefixes_of_wrappers_are_removed_and_a_single_cause_is_reported(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    for wrapped in ("module.{}", "_orig_mod.module.{}", "_fsdp_wrapped_module.{}", "module.{}._orig_mod"):
        net = {wrapped.format(name): tensor for name, tensor in state.items()}
        _assert_same_bits(read_authors_file(_save({"net": net}, tmp_path / "c"), state)[0], state)
    for name in (7, "a\nb", ("x",) * 3, "module.bias"):
        assert _codes(_save({"net": {**state, name: state["bias"]}}, tmp_path / "c"), state) == ["weights.name"]
    prefixed = _save({"net": {f"lit.model.{name}": tensor for name, tensor in state.items()}}, tmp_path / "p")
    assert _codes(prefixed, state, named="lit.model.") == ["weights.other_model"]


def test_views_of_a_storage_are_restored_and_no_value_is_read_before_shapes_fit(tmp_path: Path) -> None:
    big = torch.arange(60, dtype=torch.float32).reshape(5, 12)
    net = {
        "column": big[:, 3], "turned": big.t(), "step": big[::2, 1::3], "none": big[:0], "scalar": torch.tensor(5.0),
        "expanded": torch.ones(1).expand(3, 4), "parameter": torch.nn.Parameter(big + 1), "tied": big,
    }  # fmt: skip
    for as_zip in (True, False):
        _assert_same_bits(read_authors_file(_save(net, tmp_path / "x", as_zip=as_zip), net)[0], net)
    # A stride of 0 makes any shape fit a storage of one element; only shapes of the model are allocated.
    path = _save({"net": {"a": torch.ones(1).expand(10**6, 10**6)}}, tmp_path / "x")
    assert _codes(path, {"a": torch.ones(2)}) == ["weights.shape"]


def _tar(name: str) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo(name))
    return data.getvalue()


def _script() -> bytes:
    data = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), data)
    return data.getvalue()


def _members(good: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def _packed(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a duplicate name is meant
        for name, content in members:
            archive.writestr(name, content)
    return data.getvalue()


def _with(good: bytes, member: str, content: bytes) -> bytes:
    return _packed([(name, content if name.endswith(member) else old) for name, old in _members(good)])


def _again(good: bytes) -> bytes:
    """Many directory records of one member: an overlap that makes a small file large."""
    data = io.BytesIO(good)
    with zipfile.ZipFile(data, "a") as archive:
        for number in range(1000, 1200):
            archive.filelist.append(copy.copy(archive.infolist()[2]))
            archive.filelist[-1].filename = f"x/data/{number}"
        archive._didModify = True
    return data.getvalue()


STRUCTURES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "tar": ("file.archive", lambda _: _tar("sys_info")),
    "tar like a pickle": ("file.damaged", lambda _: _tar("\udc80\x02.")),
    "script": ("file.archive", lambda _: _script()),
    "twice": ("file.archive", lambda good: _packed([*_members(good), _members(good)[0]])),
    "compressed": ("file.archive", lambda good: _packed(_members(good), zipfile.ZIP_DEFLATED)),
    "overlap": ("file.archive", _again),
    "outside": ("file.archive", lambda good: _packed([*_members(good), ("../evil", b"x")])),
    "another case": ("file.archive", lambda good: _packed([*_members(good), ("x/DATA/0", b"x")])),
    "prefixed": ("file.archive", lambda good: b"PK\x03\x04 a program" + good),
    "big endian": ("file.byte_order", lambda good: _with(good, "byteorder", b"big")),
    "storage too short": ("file.damaged", lambda good: _with(good, "data/0", b"1234")),
    "storage missing": ("file.damaged", lambda good: _packed([(n, c) for n, c in _members(good) if "data/0" not in n])),
    "a pickle": ("file.damaged", lambda _: pickle.dumps({"net": 1}, protocol=2)),
    "two numbers": ("file.pickle", lambda _: pickle.dumps(5, protocol=4) * 2),
    "Git LFS": ("file.lfs_pointer", lambda _: b"version https://git-lfs.github.com/spec/v1\nsize 364000000\n"),
    "HTML": ("file.html_page", lambda _: b"\xef\xbb\xbf\n  <HTML lang=en>"),
    "empty": ("file.empty", lambda _: b""),
    "JSON": ("file.json", lambda _: b'{"error": "Repository not found"}'),
    "cut": ("file.incomplete", lambda good: good[: len(good) // 2]),
    "cut by a byte": ("file.incomplete", lambda good: good[:-1]),
}  # fmt: skip


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_file_that_torch_save_did_not_write_is_refused(state: dict[str, Tensor], tmp_path: Path, name: str) -> None:
    code, make = STRUCTURES[name]
    good = _save({"net": state}, tmp_path / "x").read_bytes()
    path = tmp_path / "x.safetensors"
    path.write_bytes(make(good))
    assert _codes(path, state, skip_objects=True) == [code]
    # Every reader of weights names an impostor.
    for read in (manifest_of, lambda file: load_pretrained(build_empty(spec_of()), source=file)):
        with pytest.raises(UserError) as caught:
            read(path)
        assert caught.value.code in (code, "file.torch")


class _View:
    """Pickled as a tensor of torch.save over a storage of 24 elements, with a state that is set on it."""

    def __init__(self, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *state: object) -> None:
        function, (storage, _, _, _, *rest) = torch.zeros(24).__reduce_ex__(2)
        self.parts = (function, (storage, offset, shape, stride, *rest), *state)

    def __reduce__(self) -> tuple[object, ...]:
        return self.parts


VIEWS = {
    "beyond the storage": _View(0, (5, 6), (6, 1)),
    "beyond by its offset": _View(1, (4, 6), (6, 1)),
    "negative stride": _View(0, (4, 6), (-6, 1)),
    "state of a tensor": _View(0, (4, 6), (6, 1), {"offset": 9}),
}
STORAGE = b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK%ctQ"
SHARED = b"]q\x00" + b"".join(b"](" + (b"h" + bytes([n])) * 2 + b"eq" + bytes([n + 1]) for n in range(200))
# Values under the weight's name, opcode by opcode.
VALUES = {
    "storage in two ways": STORAGE % 24 + b"0" + STORAGE % 25,
    "a call of a text": b"\x8c\x05print\x8c\x01x\x85R",
    "a call of a made thing": b"})R",
    "attributes of a storage": STORAGE % 24 + b"N}\x8c\x06lengthK\xffs\x86b",
    "attributes of a function": b"ctorch._utils\n_rebuild_tensor_v2\nN}\x8c\x08__func__Ns\x86b",
    "a deep tuple as a key": b"})" + b"\x85" * 200_000 + b"Ns",
    "a deep tuple below the limit": b"})" + b"\x85" * 19_000 + b"Ns",
    "a deep list": b"]" * 20_000 + b"a" * 19_999,
    "a list of 2**200 elements": SHARED,
}
PICKLES = {
    "a long text": b"\x80\x02\x8d" + b"\xff" * 7 + b"\x7f.",
    "too many opcodes": b"\x80\x02]" + b"N0" * 160_000 + b".",
} | {name: b"\x80\x02}\x8c\x03net}\x8c\x01w" + value + b"ss." for name, value in VALUES.items()}


@pytest.mark.parametrize("name", [*VIEWS, *PICKLES])
def test_a_hostile_pickle_is_refused(tmp_path: Path, name: str) -> None:
    path = _save({"net": {"w": VIEWS.get(name, torch.ones(4, 6))}}, tmp_path / "x.pth.tar")
    if name in PICKLES:
        path.write_bytes(_with(path.read_bytes(), "data.pkl", PICKLES[name]))
    assert _codes(path, {"w": torch.ones(4, 6)}, skip_objects=True) in (["file.damaged"], ["weights.none"])
    good = _save({"net": {"w": _View(0, (4, 6), (6, 1))}}, path)
    assert read_authors_file(good, {"w": torch.ones(4, 6)})[0]["w"].shape == (4, 6), "the negative control"


def test_files_that_cannot_be_taken_or_written(
    whole: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = _write(tmp_path / "SEQTRACK_ep0007.safetensors", whole).path, tmp_path / "out.pth.tar"
    out.write_text("precious")
    assert main(["export", str(checkpoint), "-o", str(out)]) == 2
    assert out.read_text() == "precious"
    assert main(["export", str(checkpoint), "-o", str(out), "--force"]) == 0
    written = tmp_path / "in.safetensors"
    assert [_import(out, written), _import(out, written), _import(out, written, "--force")] == [0, 2, 0]
    assert _import(out, tmp_path / "in.bin") == 2
    assert _import(tmp_path / "nowhere.pth.tar", tmp_path / "x.safetensors") == 2
    capsys.readouterr()
    assert main(["export", str(out), "-o", str(tmp_path / "o.pth.tar")]) == 2
    assert "error [file.torch]" in capsys.readouterr().err
    save_file({NAME: torch.ones(2)}, tmp_path / "e.safetensors")
    assert _codes(tmp_path / "e.safetensors", {}) == ["file.safetensors"]
    damaged = bytearray(checkpoint.read_bytes())
    damaged[-1] ^= 1
    checkpoint.write_bytes(damaged)
    assert main(["export", str(checkpoint), "-o", str(tmp_path / "d.pth.tar")]) == 2
    assert not (tmp_path / "d.pth.tar").exists()
