"""An exported model: a folder with two ONNX graphs and their record, run in place of a `SeqTrack`.

The graphs are those of `seqtrack/model/graphs.py`. Windows, choice of tokens and boxes are not in them.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqtrack.checkpoints.safetensors_io import DamagedFileError, sha256_file
from seqtrack.checkpoints.side_files import Count, Digest, Positive, Scalar, Strict, read_side_file
from seqtrack.config.loader import config_from_text
from seqtrack.config.schema import Config
from seqtrack.errors import UserError
from seqtrack.model.seqtrack import Generated
from seqtrack.model.spec import ModelSpec, model_spec
from seqtrack.process import disable_signal_stack
from seqtrack.tokens import COORDINATES, centre_positions, start_token, vocabulary_size

Array = NDArray[Any]
ENCODER, DECODER, RECORD = "encoder.onnx", "decoder.onnx", "model.json"
DEFAULT_RUNTIME = "onnxruntime"


class GraphFile(Strict):
    bytes: Count
    sha256: Digest


class OnnxRecord(Strict):
    """model.json of an exported model, written last; `checked` is what the exporter compared with torch."""

    format: Literal["seqtrack-onnx/1"] = "seqtrack-onnx/1"
    opset: Positive
    encoder: GraphFile
    decoder: GraphFile
    checkpoint: dict[str, Scalar]
    checked: dict[str, float]
    versions: dict[str, str]
    created: str
    config: dict[str, Any]


class Port(Protocol):
    """An input or output of a graph; a size that is not fixed is no integer."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> Sequence[object]: ...


class Session(Protocol):
    """A graph in a runtime, as `onnxruntime.InferenceSession` has it: all outputs for the inputs by name."""

    def run(self, output_names: None, inputs: Mapping[str, Array], /) -> Sequence[Array]: ...
    def get_inputs(self) -> Sequence[Port]: ...
    def get_outputs(self) -> Sequence[Port]: ...


class OnnxModel:
    """The two graphs on the CPU in float32, for any number of objects at once."""

    def __init__(self, encoder: Session, decoder: Session, spec: ModelSpec) -> None:
        self.spec, self._encoder, self._decoder = spec, encoder, decoder

    def encode(self, templates: Tensor, search: Tensor) -> Tensor:
        """As `SeqTrack.encode`, but the memory is (B, layers, 2, N, hidden): keys and values of each decoder layer."""
        memory = self._encoder.run(None, {"templates": templates.numpy(), "search": search.numpy()})[0]
        return torch.from_numpy(memory)

    def _step(self, tokens: Array, memory: Tensor, cache: Array | None) -> tuple[Array, Array]:
        """Logits (B, vocabulary) after the tokens (B, 1), and the cache for the next step."""
        if cache is None:
            batch, layers, _, _, hidden = memory.shape
            cache = np.empty((batch, layers, 2, 0, hidden), dtype=np.float32)
        logits, longer = self._decoder.run(None, {"tokens": tokens, "memory": memory.numpy(), "cache": cache})
        return logits, longer

    def decode(self, memory: Tensor, input_tokens: Tensor) -> Tensor:
        """As `SeqTrack.decode`: logits (B, L, bins + 2) with teacher forcing."""
        rows, cache = [], None
        for tokens in input_tokens.numpy().T:
            logits, cache = self._step(tokens[:, None], memory, cache)
            rows.append(torch.from_numpy(logits))
        return torch.stack(rows, dim=1)

    def generate(self, memory: Tensor, window: Tensor | None = None) -> Generated:
        """As `SeqTrack.generate`."""
        bins, cache, confidences = self.spec.bins, None, []
        windowed = centre_positions(self.spec.seq_format) if window is not None else ()
        tokens = np.full((len(memory), 1), start_token(bins), dtype=np.int64)
        for position in range(COORDINATES):
            logits, cache = self._step(tokens[:, -1:], memory, cache)
            scores = torch.from_numpy(logits).softmax(dim=-1)[:, :bins]
            if window is not None and position in windowed:
                scores = scores * window
            confidence, token = scores.max(dim=-1, keepdim=True)
            tokens = np.concatenate((tokens, token.numpy()), axis=1)
            confidences.append(confidence.to(torch.float64))
        return Generated(tokens=torch.from_numpy(tokens[:, 1:]), confidences=torch.cat(confidences, dim=1))


def load_onnx(place: Path, runtime: str = DEFAULT_RUNTIME) -> tuple[OnnxModel, Config, OnnxRecord]:
    """The model of a folder, or of its model.json, the configuration of its checkpoint, and the record. Each graph's
    digest is compared. Sets as many compute threads as in training. `runtime` is onnxruntime or openvino.

    Raises:
        UserError: no such record, a graph that is missing, incomplete or another model's, or no such runtime.
    """
    path = place / RECORD if place.is_dir() else place
    expected = f"expected a folder that `seqtrack export --onnx` wrote, or its {RECORD}"
    try:
        record = read_side_file(path, OnnxRecord)
    except DamagedFileError as error:
        raise UserError(f"{error.problems[0]}; {expected}", "onnx.record") from error
    if record is None:
        raise UserError(f"{path} does not exist; {expected}", "onnx.missing")
    config = config_from_text(json.dumps(record.config), str(path))
    if config.TRAIN.NUM_THREADS:
        torch.set_num_threads(config.TRAIN.NUM_THREADS)
    spec, graphs = model_spec(config), list[Session]()
    template, search = [3, *[spec.template_size] * 2], [3, *[spec.search_size] * 2]
    shapes = {"templates": [spec.num_templates, *template], "search": search}, {"logits": [vocabulary_size(spec.bins)]}
    for name, graph, wanted in zip((ENCODER, DECODER), (record.encoder, record.decoder), shapes, strict=True):
        opened = _open_checked(path.with_name(name), graph, runtime)
        found = {one.name: [*one.shape[1:]] for one in (*opened.get_inputs(), *opened.get_outputs())}
        if wrong := {key: found.get(key) for key in wanted if found.get(key) != wanted[key]}:
            text = f"{path.with_name(name)}: found {wrong}, expected {wanted}, as the configuration in {RECORD} has it"
            raise UserError(f"{text}; export the model again", "onnx.graph")
        graphs.append(opened)
    encoder, decoder = graphs
    return OnnxModel(encoder, decoder, spec), config, record


def _open_checked(path: Path, expected: GraphFile, runtime: str) -> Session:
    try:
        size = path.stat().st_size
        found = size, sha256_file(path) if size == expected.bytes else None
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist; the model is {ENCODER}, {DECODER}, {RECORD}", "onnx.missing"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}", "file.unreadable") from error
    if found != (expected.bytes, expected.sha256):
        text = f"{path}: {size} bytes, sha256 {found[1] or 'not computed'}; {RECORD} has {expected.bytes} bytes, sha256"
        raise UserError(
            f"{text} {expected.sha256}: incomplete, damaged or of another model; copy all three files or export again",
            "onnx.damaged",
        )
    return open_graph(path, runtime)


def check_onnx_options(precision: str, device: str | None) -> torch.device:
    """The device of an exported model.

    Raises:
        UserError: another precision than fp32, or another device than the CPU, was asked for.
    """
    if precision != "fp32" or device == "cuda":
        text = f"precision {precision}, device {device or 'auto'}: an ONNX model runs in fp32 on the CPU only"
        raise UserError(text, "onnx.option")
    return torch.device("cpu")


def optional_library(name: str) -> Any:
    """onnx, onnxruntime or openvino, which only exported models need.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        text = f"an ONNX model needs {name}, which cannot be imported ({error}): pip install {name}"
        raise UserError(text, "onnx.not_installed") from error


def runtime_version(name: str) -> str:
    return f"{name} {optional_library(name).__version__}"


def open_graph(path: Path, runtime: str = DEFAULT_RUNTIME) -> Session:
    """A graph in a runtime, with torch's number of threads.

    Raises:
        UserError: the runtime is not installed, or cannot run the graph.
    """
    library = optional_library(runtime)
    refusals: tuple[type[Exception], ...] = (RuntimeError,)  # of OpenVINO
    if runtime == "onnxruntime":
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf  # optional

        refusals = (Fail, InvalidGraph, InvalidProtobuf)
    try:
        if runtime == "openvino":
            return _OpenVinoSession(path)
        options = library.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session: Session = library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return session
    except refusals as error:
        text = f"{path}: {runtime} {library.__version__} cannot run this graph: {error}"
        raise UserError(text, "onnx.graph") from error


class _Port(NamedTuple):
    name: str
    shape: list[object]


class _OpenVinoSession:
    """A graph in OpenVINO, in float32: left to itself, it computes in bf16 where the processor can."""

    def __init__(self, path: Path) -> None:
        import openvino  # optional, as in `open_graph`

        threads = torch.get_num_threads()
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._graph = openvino.Core().compile_model(str(path), "CPU", options)
        disable_signal_stack()

    def run(self, output_names: None, inputs: Mapping[str, Array], /) -> Sequence[Array]:
        return [*self._graph(dict(inputs)).values()]

    def get_inputs(self) -> list[Port]:
        return [self._port(one) for one in self._graph.inputs]

    def get_outputs(self) -> list[Port]:
        return [self._port(one) for one in self._graph.outputs]

    def _port(self, port: Any) -> _Port:
        sizes = [one.get_length() if one.is_static else None for one in port.get_partial_shape()]
        return _Port(port.get_any_name(), sizes)
