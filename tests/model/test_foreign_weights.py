"""Files of other programs are read as data or refused with a code; nothing in them is executed."""

import io
import itertools
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import save_file
from small_models import spec_of
from test_import_export import write_imported

from seqtrack.checkpoints.store import load_weights, manifest_of
from seqtrack.cli import main
from seqtrack.config.loader import load_config
from seqtrack.errors import UserError
from seqtrack.model.authors import read_authors_file
from seqtrack.model.build import build_model
from seqtrack.model.foreign_weights import ForeignTensor, read_foreign
from seqtrack.model.spec import model_spec
from seqtrack.model.weights import load_pretrained
from seqtrack.tracking.load import load_model

NAME = "decoder.body.layers.0.linear1.weight"


def _save(content: Any, path: Path, *, as_zip: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=as_zip)
    return path


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Two small tensors of a model."""
    draw = torch.Generator().manual_seed(1)
    return {NAME: torch.randn(4, 6, generator=draw), "bias": torch.randn(6, generator=draw)}


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    """The weights of the demo model."""
    return build_model(model_spec(load_config("demo")), seed=1).state_dict()


def _codes(path: Path, expected: dict[str, torch.Tensor], **more: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        read_authors_file(path, expected, **more)
    assert str(path) in str(caught.value)
    return [problem.code for problem in caught.value.problems]


@pytest.fixture
def no_deserialiser(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a foreign file reached a deserialiser")

    for module, name in (
        (torch, "load"), (torch.jit, "load"), (torch.package, "PackageImporter"), (torch.serialization, "_load"),
        (torch.serialization, "_legacy_load"), (torch._weights_only_unpickler, "Unpickler"),
        (torch._C, "PyTorchFileReader"),
        (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (pickle, "_Unpickler"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, refuse)


def test_an_ordinary_file_of_either_format_is_imported_without_any_deserialiser(
    whole: dict[str, torch.Tensor], tmp_path: Path, no_deserialiser: None
) -> None:
    digests = set()
    for as_zip in (True, False):
        path = _save({"epoch": 3, "net": whole, "net_type": "SEQTRACK"}, tmp_path / "x.pth.tar", as_zip=as_zip)
        assert main(["import", str(path), "--config", "demo", "-o", str(tmp_path / f"{as_zip}.safetensors")]) == 0
        manifest = manifest_of(tmp_path / f"{as_zip}.safetensors")
        digests.add(manifest.weights_sha256)
        assert manifest.epoch == 3
        loaded = load_weights(manifest)
        assert loaded.keys() == whole.keys()
        assert all(torch.equal(loaded[name], whole[name]) for name in whole)
    assert len(digests) == 1


def test_views_of_a_storage_are_restored(tmp_path: Path) -> None:
    big = torch.arange(60, dtype=torch.float32).reshape(5, 12)
    net = {
        "row": big[2], "column": big[:, 3], "turned": big.t(), "step": big[::2, 1::3], "none": big[:0],
        "expanded": torch.ones(1).expand(3, 4), "scalar": torch.tensor(5.0), "parameter": torch.nn.Parameter(big + 1),
        "tied": big, "long": torch.arange(3),
    }  # fmt: skip
    for as_zip in (True, False):
        file = read_foreign(_save({"net": net}, tmp_path / "x.pth", as_zip=as_zip))
        assert file.objects == []
        for name, value in net.items():
            loaded = file.load(file.content["net"][name])
            assert (loaded.dtype, loaded.shape) == (value.dtype, value.shape), name
            assert torch.equal(loaded, value), name


def _tar(file_format: int) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=file_format) as archive:
        for name in (".....", "sys_info", "storages"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
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


def _again(good: bytes) -> bytes:
    """Many directory records of one member: an overlap that makes a small file large."""
    data = io.BytesIO(good)
    with zipfile.ZipFile(data, "a") as archive:
        info = archive.getinfo(next(name for name in archive.namelist() if "/data/" in name))
        for number in range(1000, 1200):
            twin = zipfile.ZipInfo(f"{info.filename.rpartition('/')[0]}/{number}")
            twin.header_offset, twin.file_size, twin.compress_size = info.header_offset, info.file_size, info.file_size
            twin.CRC = info.CRC
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive._didModify = True
    return data.getvalue()


STRUCTURES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "tar": ("file.archive", lambda _: _tar(tarfile.GNU_FORMAT)),
    "tar of pax": ("file.archive", lambda _: _tar(tarfile.PAX_FORMAT)),
    "tar without magic": ("file.archive", lambda _: _tar(tarfile.USTAR_FORMAT)),
    "script": ("file.torchscript", lambda _: _script()),
    "twice": ("file.damaged", lambda good: _packed([*_members(good), _members(good)[0]])),
    "case": ("file.damaged", lambda good: _packed([*_members(good), ("x/DATA.pkl", b"")])),
    "compressed": ("file.damaged", lambda good: _packed(_members(good), zipfile.ZIP_DEFLATED)),
    "bomb": ("file.damaged", lambda good: _packed([*_members(good), ("x/data/99", bytes(10**7))], zipfile.ZIP_BZIP2)),
    "overlap": ("file.damaged", _again),
    "outside": ("file.damaged", lambda good: _packed([*_members(good), ("../evil", b"x")])),
    "two folders": ("file.damaged", lambda good: _packed([*_members(good), ("y/data.pkl", b"x")])),
    "unknown member": ("file.damaged", lambda good: _packed([*_members(good), ("x/extra", b"x")])),
    "prefixed": ("file.damaged", lambda good: b"PK\x03\x04 a program" + good),
    "big endian": (
        "file.byte_order",
        lambda good: _packed([(n, b"big" if n.endswith("byteorder") else c) for n, c in _members(good)]),
    ),
    "numpy": ("file.archive", lambda _: _packed([("weight.npy", b"\x93NUMPY")])),
    "storage too short": (
        "file.damaged", lambda good: _packed([(n, c[:-4] if n.endswith("data/0") else c) for n, c in _members(good)]),
    ),
    "storage missing": ("file.damaged", lambda good: _packed([(n, c) for n, c in _members(good) if "data/0" not in n])),
    "a pickle": ("file.pickle", lambda _: pickle.dumps({"net": 1}, protocol=2)),
    "a number": ("file.pickle", lambda _: pickle.dumps(5, protocol=4)),
}  # fmt: skip


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_file_that_torch_save_did_not_write_is_refused(
    state: dict[str, torch.Tensor], tmp_path: Path, name: str
) -> None:
    code, make = STRUCTURES[name]
    good = _save({"net": state}, tmp_path / "x").read_bytes()
    assert read_authors_file(tmp_path / "x", state)[0].keys() == state.keys()
    path = tmp_path / "x.pth.tar"
    path.write_bytes(make(good))
    assert _codes(path, state, skip_objects=True) == [code]


IMPOSTORS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 364000000\n": "file.lfs_pointer",
    b"<!DOCTYPE html><html></html>": "file.html_page",
    b"\xef\xbb\xbf\n  <HTML lang=en>": "file.html_page",
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>": "file.html_page",
    b"": "file.empty",
    b"\x1f\x8b\x08\x00\x00": "file.archive",
    b"7z\xbc\xaf\x27\x1c\x00\x04": "file.archive",
    _tar(tarfile.GNU_FORMAT): "file.archive",
    bytes(4096): "file.unknown",
    b"hello": "file.unknown",
    b'{"error": "Repository not found"}': "file.json",
}


@pytest.fixture(scope="module")
def readers() -> list[Callable[[Path], Any]]:
    spec = spec_of(encoder_type="vit_tiny_patch16_224", embed_dim=0, depth=0, num_heads=0)
    model = build_model(spec, seed=1)
    return [
        lambda path: read_authors_file(path, {}),
        manifest_of,
        lambda path: load_pretrained(model, spec, source=path),
    ]


@pytest.mark.parametrize("content", IMPOSTORS, ids=range(len(IMPOSTORS)))
def test_every_reader_identifies_what_a_wrong_file_is(
    readers: list[Callable[[Path], Any]], tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for read in readers:
        with pytest.raises(UserError) as caught:
            read(path)
        assert [problem.code for problem in caught.value.problems] == [IMPOSTORS[content]]
        assert ("364000000 bytes" in str(caught.value)) == (b"364000000" in content)


def test_a_file_for_another_command_is_refused(
    state: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch_file = _save({"net": state}, tmp_path / "e.pth.tar")
    save_file(state, tmp_path / "e.safetensors")
    assert main(["export", str(torch_file), "-o", str(tmp_path / "o.pth.tar")]) == 2
    assert "error [file.torch]" in capsys.readouterr().err
    assert _codes(tmp_path / "e.safetensors", state) == ["file.safetensors"]


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_truncated_file_is_incomplete(state: dict[str, torch.Tensor], tmp_path: Path, as_zip: bool) -> None:
    whole = _save({"net": state}, tmp_path / "x", as_zip=as_zip).read_bytes()
    if not as_zip:  # a length that does not fit into memory
        (tmp_path / "x").write_bytes(whole.replace(b"X\x03\x00\x00\x00net", b"\x8d" + b"\xff" * 7 + b"\x0fnet"))
        assert _codes(tmp_path / "x", state) == ["file.incomplete"]
    for size in (len(whole) - 1, len(whole) - 30, len(whole) // 2, 40):
        path = tmp_path / "cut.pth.tar"
        path.write_bytes(whole[:size])
        assert _codes(path, state) == ["file.incomplete"], size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_are_converted(
    whole: dict[str, torch.Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: torch.dtype
) -> None:
    path = _save({"net": {name: tensor.to(dtype) for name, tensor in whole.items()}}, tmp_path / "h.pth.tar")
    out = tmp_path / "h.safetensors"
    assert main(["import", str(path), "--config", "demo", "-o", str(out)]) == 0
    assert f"{len(whole)} from {dtype}" in caplog.text
    model, _ = load_model(manifest_of(out), torch.device("cpu"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, whole[name].to(dtype).float()), name
    assert main(["export", str(out), "-o", str(tmp_path / "again.pth.tar")]) == 0


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.bool, torch.complex64])
def test_other_types_are_refused_by_name(state: dict[str, torch.Tensor], tmp_path: Path, dtype: torch.dtype) -> None:
    path = _save({"net": {**state, NAME: state[NAME].to(dtype)}}, tmp_path / "i.pth.tar")
    assert _codes(path, state) == ["weights.dtype"]
    with pytest.raises(UserError, match=rf"1 tensors.*float32.*{NAME}"):
        read_authors_file(path, state)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_values_that_are_not_finite_are_refused_with_their_count(
    state: dict[str, torch.Tensor], tmp_path: Path, value: float
) -> None:
    bad = state[NAME].double()
    bad[0, :3] = value  # 1e300 is finite in float64 only
    path = _save({"net": {**state, NAME: bad}}, tmp_path / "n.pth.tar")
    assert _codes(path, state) == ["weights.not_finite"]
    with pytest.raises(UserError, match=rf"{NAME} \(3 of 24\)"):
        read_authors_file(path, state)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, 0), (500, 500), (torch.tensor(7), 7), (torch.tensor([8], dtype=torch.int32), 8),
        (-1, None), (True, None), (2.0, None), ("7", None), (None, None), ([7], None), (10**30, None),
        (torch.tensor(7.0), None), (torch.tensor([1, 2]), None), (torch.tensor(-3), None),
    ],
)  # fmt: skip
def test_the_epoch_is_an_integer_or_the_file_is_refused(
    state: dict[str, torch.Tensor], tmp_path: Path, epoch: object, expected: int | None
) -> None:
    path = _save({"net": state, "epoch": epoch}, tmp_path / "e.pth.tar")
    if expected is None:
        assert _codes(path, state) == ["weights.epoch"]
    else:
        found = read_authors_file(path, state)[1]
        assert (found, type(found)) == (expected, int)


@pytest.mark.parametrize(
    "wrapped",
    [
        "module.{}", "_orig_mod.{}", "module._orig_mod.{}", "_orig_mod.module.{}", "module.module._orig_mod.{}",
        "_fsdp_wrapped_module.{}",
    ],
)  # fmt: skip
def test_the_prefixes_of_wrappers_are_removed(state: dict[str, torch.Tensor], tmp_path: Path, wrapped: str) -> None:
    path = _save({"net": {wrapped.format(name): tensor for name, tensor in state.items()}}, tmp_path / "c.pth.tar")
    loaded, _ = read_authors_file(path, state)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_a_wrapper_inside_the_model_is_removed_and_a_duplicate_name_is_refused(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    inner = {NAME.replace("body", "body._orig_mod"): state[NAME], "bias": state["bias"]}
    assert read_authors_file(_save({"net": inner}, tmp_path / "a"), state)[0].keys() == state.keys()
    twice = {**state, "module.bias": state["bias"]}
    assert _codes(_save({"net": twice}, tmp_path / "b"), state) == ["weights.name"]


def test_a_single_cause_of_many_differences_is_reported(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    prefixed = _save({"net": {f"lit.model.{name}": tensor for name, tensor in state.items()}}, tmp_path / "p")
    other = _save({"net": {"conv1.weight": torch.ones(1), "fc.bias": torch.ones(1)}}, tmp_path / "o")
    for path, shown in ((prefixed, "'lit.model.'"), (other, "'conv1.weight'")):
        assert _codes(path, state) == ["weights.other_model"]
        with pytest.raises(UserError, match=shown):
            read_authors_file(path, state)


def test_weights_of_another_type_in_a_checkpoint_are_refused(whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    halves = write_imported(tmp_path / "h.safetensors", {name: tensor.half() for name, tensor in whole.items()})
    with pytest.raises(UserError) as caught:
        load_model(halves, torch.device("cpu"))
    assert caught.value.code == "weights.dtype"


class _Writer:
    """Pickles opcode by opcode."""

    start = b"\x80\x02"

    @staticmethod
    def name(module: str, attribute: str) -> bytes:
        return f"c{module}\n{attribute}\n".encode()

    @staticmethod
    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    @staticmethod
    def number(value: int) -> bytes:
        data = value.to_bytes(9, "little", signed=True)
        return b"\x8a\x09" + data

    @classmethod
    def storage(cls, key: str = "0", length: int = 24, kind: str = "FloatStorage") -> bytes:
        return (
            b"("
            + cls.text("storage")
            + cls.name("torch", kind)
            + cls.text(key)
            + cls.text("cpu")
            + cls.number(length)
            + b"tQ"
        )

    @classmethod
    def tensor(cls, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, storage: bytes = b"") -> bytes:
        def numbers(values: tuple[int, ...]) -> bytes:
            return b"(" + b"".join(map(cls.number, values)) + b"t"

        return (
            cls.name("torch._utils", "_rebuild_tensor_v2") + b"(" + (storage or cls.storage()) + cls.number(offset)
            + numbers(shape) + numbers(stride) + b"\x89" + cls.name("collections", "OrderedDict") + b")RtR"
        )  # fmt: skip

    @classmethod
    def file(cls, value: bytes) -> bytes:
        net = b"}" + cls.text(NAME) + value + b"s"
        return cls.start + b"}" + cls.text("net") + net + b"s."


W = _Writer
HOSTILE: dict[str, bytes] = {
    "beyond the storage": W.file(W.tensor((5, 6), (6, 1))),
    "beyond by its offset": W.file(W.tensor((4, 6), (6, 1), offset=1)),
    "negative stride": W.file(W.tensor((4, 6), (-6, 1))),
    "negative offset": W.file(W.tensor((4, 6), (6, 1), offset=-1)),
    "huge stride": W.file(W.tensor((4, 6), (2**62, 2**62))),
    "fewer strides": W.file(W.tensor((4, 6), (6,))),
    "storage in two ways": W.file(W.tensor((4, 6), (6, 1), storage=W.storage() + b"0" + W.storage(length=25))),
    "a call of a text": W.file(W.text("print") + W.text("x") + b"\x85R"),
    "a call of a made thing": W.file(b"}" + b")R"),
    "another opcode": W.file(W.name("os", "system") + W.text("id") + b"\x85R" + b"\x82\x01"),
    "an object by INST": W.file(b"(" + W.text("id") + b"ios\nsystem\n"),
    "attributes of a tensor": W.file(W.tensor((4, 6), (6, 1)) + b"(" + W.storage() + b"K\x00ttb" + b"2s"),
    "memo far away": W.file(b"Nr\xff\xff\xff\x7f" + b"j\xfe\xff\xff\x7f"),
    "from an empty stack": W.start + b"0000000.",
    "an end without a value": W.start + b".",
    "no end": W.start + b"}",
    "a mark that is missing": W.start + b"}u.",
    "a text that is none": W.start + b"X\x02\x00\x00\x00\xff\xfe.",
    "a long text": W.start + b"\x8d" + b"\xff" * 7 + b"\x7f.",
    "appending to a dictionary": W.start + b"}Na.",
    "a key twice": W.start + b"}" + (W.text("net") + b"}s") * 2 + b".",
    "too many opcodes": W.start + b"]" + b"N0" * 160_000 + b".",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused(state: dict[str, torch.Tensor], tmp_path: Path, name: str) -> None:
    good = _save({"net": state}, tmp_path / "x").read_bytes()
    path = tmp_path / "x.pth.tar"
    path.write_bytes(_packed([(n, HOSTILE[name] if n.endswith("data.pkl") else c) for n, c in _members(good)]))
    (code,) = _codes(path, {NAME: state[NAME]}, skip_objects=True)
    assert code in ("file.damaged", "file.incomplete", "weights.none")


def test_the_writer_of_hostile_pickles_can_write_a_valid_one(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    good = _save({"net": state}, tmp_path / "x").read_bytes()
    pickled = W.file(W.tensor((4, 6), (6, 1)))
    (tmp_path / "y").write_bytes(_packed([(n, pickled if n.endswith("data.pkl") else c) for n, c in _members(good)]))
    assert torch.equal(read_authors_file(tmp_path / "y", {NAME: state[NAME]})[0][NAME], state[NAME])


def test_deep_and_shared_structures_do_not_crash(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    good = _save({"net": state}, tmp_path / "x").read_bytes()
    shared = b"]q\x00" + b"".join(
        b"](" + b"h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(200)
    )
    for odd in (b")" + b"\x85" * 200_000, b"]" * 20_000 + b"a" * 19_999, shared):
        pickled = W.start + b"}" + W.text("net") + b"}" + odd + b"Ns" + b"s."
        path = tmp_path / "x.pth.tar"
        path.write_bytes(_packed([(n, pickled if n.endswith("data.pkl") else c) for n, c in _members(good)]))
        _codes(path, state, skip_objects=True)


def test_no_value_of_a_tensor_is_read_before_names_and_shapes_fit(tmp_path: Path) -> None:
    """A stride of 0 makes any shape fit a storage of one element; only shapes of the model are allocated."""
    path = _save({"net": {"a": torch.ones(1).expand(10**6, 10**6)}}, tmp_path / "x")
    assert isinstance(read_foreign(path).content["net"]["a"], ForeignTensor)
    assert _codes(path, {"a": torch.ones(2)}) == ["weights.shape"]


def test_every_combination_of_format_and_protocol_is_read(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    for as_zip, protocol in itertools.product((True, False), (2, 3, 4, 5)):
        torch.save({"net": state}, tmp_path / "x", pickle_protocol=protocol, _use_new_zipfile_serialization=as_zip)
        loaded, _ = read_authors_file(tmp_path / "x", state)
        assert all(torch.equal(loaded[name], state[name]) for name in state)
