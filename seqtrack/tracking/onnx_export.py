"""Write a checkpoint as ONNX graphs, after comparing them with torch."""

import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from seqtrack.checkpoints.safetensors_io import sha256_file, utc_now, write_atomic, write_json
from seqtrack.checkpoints.store import Manifest
from seqtrack.errors import RunError, UserError
from seqtrack.model.graphs import DecoderStepGraph, EncoderGraph
from seqtrack.model.images import normalise
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.tokens import hann_window, start_token
from seqtrack.tracking.load import checkpoint_source, load_model
from seqtrack.tracking.onnx_model import (
    DECODER,
    ENCODER,
    RECORD,
    GraphFile,
    OnnxModel,
    OnnxRecord,
    open_graph,
    optional_library,
)

logger = logging.getLogger(__name__)

OPSET = 17  # the first with LayerNormalization
TOLERANCE = 1e-4  # of an output, relative to its largest value if that is above 1
CHECKED_BATCHES = (1, 2)
_LARGEST = (1 << 31) - (1 << 20)  # bytes of a graph file: protobuf's limit
# The axes that are not fixed, by tensor.
_AXES = {
    **{name: {0: "batch"} for name in ("templates", "search", "memory", "tokens", "logits")},
    "cache": {0: "batch", 3: "past"},
    "longer_cache": {0: "batch", 3: "tokens_so_far"},
}


def export_onnx(manifest: Manifest, folder: Path) -> OnnxRecord:
    """Export a checkpoint into a folder, which is made: `ENCODER`, `DECODER` and, last, `RECORD`.

    Raises:
        UserError: no onnxruntime, a damaged checkpoint or another model's, or one too large for a graph file.
        RunError: the graphs differ from torch by more than `TOLERANCE`; nothing is written then.
    """
    libraries = {name: optional_library(name) for name in ("onnx", "onnxruntime")}
    model, config = load_model(manifest, torch.device("cpu"))
    if (size := sum(4 * one.numel() for one in model.parameters())) > _LARGEST:
        text = f"{manifest.path}: {size} bytes of weights; a graph file holds at most {_LARGEST}"
        raise UserError(text, "onnx.too_large")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder) as temporary, torch.no_grad():
        traced = [Path(temporary, name) for name in (ENCODER, DECODER)]
        _trace(model, *traced)
        exported = OnnxModel(open_graph(traced[0]), open_graph(traced[1]), model.spec)
        checked = _compare(model, exported, mean=config.DATA.MEAN, std=config.DATA.STD)
        for path in traced:
            write_atomic(folder / path.name, path.read_bytes())
    encoder, decoder = (
        GraphFile(bytes=path.stat().st_size, sha256=sha256_file(path)) for path in (folder / ENCODER, folder / DECODER)
    )
    record = OnnxRecord(
        opset=OPSET, encoder=encoder, decoder=decoder,
        checkpoint={**checkpoint_source(manifest), "epoch": manifest.epoch},
        checked=checked,
        versions={"torch": torch.__version__, **{name: one.__version__ for name, one in libraries.items()}},
        created=utc_now(), config=config.model_dump(mode="json"),
    )  # fmt: skip
    write_json(folder / RECORD, record.model_dump())
    return record


def _trace(model: SeqTrack, encoder: Path, decoder: Path) -> None:
    spec = model.spec
    templates = torch.zeros(1, spec.num_templates, 3, spec.template_size, spec.template_size)
    search = torch.zeros(1, 3, spec.search_size, spec.search_size)
    _write_graph(EncoderGraph(model), {"templates": templates, "search": search}, ["memory"], encoder)
    memory = EncoderGraph(model)(templates, search)
    tokens = torch.zeros(1, 1, dtype=torch.int64)
    inputs = {"tokens": tokens, "memory": memory, "cache": memory[:, :, :, :1]}
    _write_graph(DecoderStepGraph(model), inputs, ["logits", "longer_cache"], decoder)


def _write_graph(graph: nn.Module, inputs: dict[str, Tensor], outputs: list[str], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sizes are constants, as they shall be; that another exporter is newer
        torch.onnx.export(
            graph.eval(), tuple(inputs.values()), str(path), dynamo=False, opset_version=OPSET,
            input_names=[*inputs], output_names=outputs,
            dynamic_axes={name: _AXES[name] for name in (*inputs, *outputs)},
        )  # fmt: skip


def _compare(model: SeqTrack, exported: OnnxModel, *, mean: Sequence[float], std: Sequence[float]) -> dict[str, float]:
    """Compare with torch on random images: memory, logits with teacher forcing, tokens generated with the window."""
    spec, draw, same = model.spec, torch.Generator().manual_seed(0), 0
    differences = {"memory": 0.0, "logits": 0.0}
    for batch in CHECKED_BATCHES:
        shapes = ((spec.num_templates, 3, *[spec.template_size] * 2), (3, *[spec.search_size] * 2))
        pixels = [torch.randint(0, 256, (batch, *shape), generator=draw, dtype=torch.uint8) for shape in shapes]
        templates, search = (normalise(one, mean=mean, std=std) for one in pixels)
        memory, window = model.encode(templates, search), hann_window(spec.bins)
        expected, found_memory = model.generate(memory, window), exported.encode(templates, search)
        same += int((exported.generate(found_memory, window).tokens == expected.tokens).all(dim=1).sum())
        start = torch.full((batch, 1), start_token(spec.bins))
        input_tokens = torch.cat((start, expected.tokens[:, :-1]), dim=1)
        pairs = {
            "memory": (found_memory, EncoderGraph(model)(templates, search)),
            "logits": (exported.decode(found_memory, input_tokens), model.decode(memory, input_tokens)),
        }
        for name, (found, wanted) in pairs.items():
            worst = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1))
            differences[name] = worst if not worst <= differences[name] else differences[name]  # NaN stays
    if not all(value <= TOLERANCE for value in differences.values()):
        shown = ", ".join(f"{name} by {value:.3g}" for name, value in differences.items())
        text = f"the exported graphs differ from torch: {shown}; expected at most {TOLERANCE:g}. Nothing was written"
        raise RunError(text, "onnx.differs")
    return {
        "images": sum(CHECKED_BATCHES),
        "same_tokens": same,
        **{f"{k}_difference": v for k, v in differences.items()},
    }
