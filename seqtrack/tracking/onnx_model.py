"""An exported model: a folder with two ONNX graphs and their record, run by onnxruntime in place of a `SeqTrack`.

The graphs are those of `seqtrack/model/graphs.py`. Windows, choice of tokens and boxes are not in them.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

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
from seqtrack.tokens import COORDINATES, centre_positions, start_token, vocabulary_size

Array = NDArray[Any]
ENCODER, DECODER, RECORD = "encoder.onnx", "decoder.onnx", "model.json"


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


class Session(Protocol):
    """A graph in a runtime, such as `onnxruntime.InferenceSession`: all outputs for the inputs by name."""

    def run(self, output_names: None, inputs: Mapping[str, Array], /) -> Sequence[Array]: ...


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


def load_onnx(place: Path) -> tuple[OnnxModel, Config, OnnxRecord]:
    """The model of a folder, or of its model.json, the configuration of its checkpoint, and the record. Each graph's
    digest is compared. Sets as many compute threads as in training.

    Raises:
        UserError: no such record, a graph that is missing, incomplete or another model's, or no onnxruntime.
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
    spec, graphs = model_spec(config), list[Any]()
    template, search = [3, *[spec.template_size] * 2], [3, *[spec.search_size] * 2]
    shapes = {"templates": [spec.num_templates, *template], "search": search}, {"logits": [vocabulary_size(spec.bins)]}
    for name, graph, wanted in zip((ENCODER, DECODER), (record.encoder, record.decoder), shapes, strict=True):
        opened = _open_checked(path.with_name(name), graph)
        found = {one.name: one.shape[1:] for one in (*opened.get_inputs(), *opened.get_outputs())}
        if wrong := {key: found.get(key) for key in wanted if found.get(key) != wanted[key]}:
            text = f"{path.with_name(name)}: found {wrong}, expected {wanted}, as the configuration in {RECORD} has it"
            raise UserError(f"{text}; export the model again", "onnx.graph")
        graphs.append(opened)
    encoder, decoder = graphs
    return OnnxModel(encoder, decoder, spec), config, record


def _open_checked(path: Path, expected: GraphFile) -> Any:
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
    return open_graph(path)


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
    """onnx or onnxruntime, which only exported models need.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        text = f"ONNX models need {name}, which cannot be imported ({error}): pip install onnx onnxruntime"
        raise UserError(text, "onnx.not_installed") from error


def onnxruntime_version() -> str:
    return str(optional_library("onnxruntime").__version__)


def open_graph(path: Path) -> Any:
    """A graph in onnxruntime, with torch's number of threads.

    Raises:
        UserError: onnxruntime is not installed, or cannot run the graph.
    """
    runtime = optional_library("onnxruntime")
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf  # optional, as above

    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (Fail, InvalidGraph, InvalidProtobuf) as error:
        text = f"{path}: onnxruntime {runtime.__version__} cannot run this graph: {error}"
        raise UserError(text, "onnx.graph") from error
