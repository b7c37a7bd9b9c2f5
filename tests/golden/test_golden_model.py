"""The whole model at its real size against the authors' outputs, on the same weights and inputs.

Outputs must be within ten times the noise floor (the authors' float32 against their float64), gradient norms within
1e-4. Each set model_SIZE_RULE.npz of SEQTRACK_GOLDENS is one run of the model, and each test checks a part of it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import model_sets as sets
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seqtrack.boxes import xywh_to_cxcywh, xywh_to_xyxy
from seqtrack.model.build import build_empty
from seqtrack.model.loss import sequence_loss, teacher_forced_iou
from seqtrack.model.seqtrack import Generated, SeqTrack
from seqtrack.tokens import hann_window, start_token, target_sequences, target_sequences_from_corners, tokens_to_boxes

TIMES_NOISE = 10

# A set at another size takes several times as long.
pytestmark = pytest.mark.timeout(1800)


@dataclass
class Run:
    """Our model's results for one set and the authors'."""

    name: str
    size: str
    rule: str
    theirs: sets.Arrays
    facts: dict[str, Any]
    exact: sets.Arrays | None
    model: SeqTrack
    taps: dict[str, np.ndarray] = field(default_factory=dict)
    encoded: np.ndarray = field(default_factory=lambda: np.empty(0))
    logits: np.ndarray = field(default_factory=lambda: np.empty(0))
    targets: np.ndarray = field(default_factory=lambda: np.empty(0))
    loss: float = 0.0
    iou: float = 0.0
    gradients: dict[str, np.ndarray] = field(default_factory=dict)
    generated: dict[str, tuple[Generated, np.ndarray]] = field(default_factory=dict)

    def assert_near(self, ours: np.ndarray, theirs: np.ndarray, *, what: str) -> None:
        limit = TIMES_NOISE * sets.noise_floor(self.size, self.rule, what)[1]
        _, relative = sets.distance(ours, theirs)
        assert relative <= limit, f"relative L2 distance {relative:.2e}, allowed {limit:.2e}"

    def assert_stats_near(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Compare deviation, sum of absolute values, minimum and maximum.

        A relative L2 distance d changes the deviation by at most d, and the mean absolute value by d times the root
        mean square; minimum and maximum may differ by the largest noise, which is measured on the encoder's output,
        whose values are about 1. The mean is zero except for rounding.
        """
        largest, relative = sets.noise_floor(self.size, self.rule, "enc")
        values = ours.astype(np.float64)
        root_mean_square = np.sqrt((values**2).mean())
        spread = TIMES_NOISE * relative * root_mean_square
        entry = TIMES_NOISE * largest * max(1.0, root_mean_square)
        allowed = np.array([spread, spread * values.size, entry, entry])
        off = np.abs(sets.stats(ours)[1:] - theirs[1:])
        assert (off <= allowed).all(), f"off by {off}, allowed {allowed}"

    def numbers(self, key: str) -> Any:
        """Values of the set's JSON by parameter name; skips if it has none."""
        if key not in self.facts:
            pytest.skip(f"no {self.name}.json with {key}")
        return self.facts[key]


@pytest.fixture(scope="module", params=sets.find("model_*.npz"))
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """One set: forward with taps, loss, backward, and six generations."""
    path: Path = request.param
    named = re.fullmatch(r"model_([^_]+)_([AB])", path.stem)
    if named is None:
        pytest.skip(f"{path.name} is not named model_SIZE_A.npz or model_SIZE_B.npz")
    size, rule = named.groups()
    spec = sets.spec_of_size(size)
    facts = sets.read_json(f"{path.stem}.json") or {}
    exact = path.with_name(f"fp64_{size}_{rule}.npz")
    model = sets.fill(build_empty(spec), rule)
    found = Run(path.stem, size, rule, sets.read(path), facts, sets.read(exact) if exact.is_file() else None, model)
    _forward_and_backward(found)
    for index in range(3):
        _generate(found, index)
    yield found
    # Two large models at once would need 5 GB; a failure's traceback may keep the run alive, so its model is released.
    vars(found).clear()


def _forward_and_backward(found: Run) -> None:
    model, spec = found.model, found.model.spec
    templates, search = sets.images("input", spec.template_size, spec.search_size, 2, spec.num_templates)
    handles = _tap(found)
    with torch.no_grad():
        encoded = model.encoder(templates, search)
    found.encoded = encoded.cpu().numpy()
    for handle in handles[0]:
        handle.remove()
    memory = model.encode(templates, search)
    found.taps["bottleneck"] = memory.detach().cpu().numpy()
    anno = torch.from_numpy(found.theirs["anno"][0]).to(sets.DEVICE)
    inputs, targets = target_sequences_from_corners(xywh_to_xyxy(anno), spec.bins, spec.seq_format)
    logits = model.decode(memory, inputs)
    for handle in handles[1]:
        handle.remove()
    loss = sequence_loss(logits, targets, spec.bins).mean()
    loss.backward()
    found.logits, found.targets = logits.detach().cpu().numpy(), targets.cpu().numpy()
    found.loss = loss.item()
    found.iou = teacher_forced_iou(logits, targets, spec.bins, spec.seq_format).mean().item()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found.gradients[name] = parameter.grad.cpu().numpy()
        parameter.grad = None


def _tap(found: Run) -> tuple[list[Any], list[Any]]:
    """Record outputs of submodules; returns the hooks of the encoder and of the decoder."""
    body, decoder = found.model.encoder.body, found.model.decoder

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            value: Tensor = output[0] if isinstance(output, tuple) else output
            found.taps.setdefault(name, value.detach().cpu().numpy().copy())

        return hook

    def keep_input(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        found.taps.setdefault("embed", arguments[0].detach().cpu().numpy().copy())

    encoder = [body.blocks[0].register_forward_pre_hook(keep_input)]
    for name, module in (
        ("block0_attn", body.blocks[0].attn), ("block0_mlp", body.blocks[0].mlp), ("block0", body.blocks[0]),
        ("block5", body.blocks[5]), ("blocklast", body.blocks[-1]),
    ):  # fmt: skip
        encoder.append(module.register_forward_hook(keep(name)))
    layers = decoder.body.layers
    rest = [
        module.register_forward_hook(keep(name))
        for name, module in (
            ("embedding", decoder.embedding), ("layer0", layers[0]), ("layerlast", layers[-1]),
            ("norm", decoder.body.norm),
        )
    ]  # fmt: skip
    return encoder, rest


def _generate(found: Run, index: int) -> None:
    model, spec = found.model, found.model.spec
    templates, search = sets.images(f"infer{index}", spec.template_size, spec.search_size, 1, spec.num_templates)
    with torch.no_grad():
        memory = model.encode(templates, search)
        for mode, window in (("nowin", None), ("win", hann_window(spec.bins))):
            out = model.generate(memory, window)
            # The logits of each step, given the authors' tokens: one flipped token must not change the next.
            chosen = torch.from_numpy(found.theirs[f"inf{index}_{mode}_tokens"])
            prefix = torch.cat((torch.tensor([[start_token(spec.bins)]]), chosen[:, :3]), dim=1).to(sets.DEVICE)
            found.generated[f"inf{index}_{mode}"] = (out, model.decode(memory, prefix)[0].cpu().numpy())


def test_golden_names_and_shapes_equal_the_authors(run: Run) -> None:
    """Every set lists the sum of every parameter; ours have the same names and shapes."""
    expected = run.numbers("weight_abssum")
    assert set(run.model.state_dict()) == set(expected)
    for name, value in run.model.state_dict().items():
        assert value.double().abs().sum().item() == pytest.approx(expected[name], rel=1e-6), name


def test_golden_encoder_tokens(run: Run) -> None:
    """The whole encoder: a slice of the tokens, and a projection of every token."""
    assert list(run.encoded.shape) == run.theirs["enc_shape"].tolist()
    part = run.encoded[:, run.theirs["tok_idx"]][..., run.theirs["ch_idx"]]
    reference = run.theirs["enc_slice"] if run.exact is None else run.exact["enc64_slice"]
    run.assert_near(part, reference, what="enc")
    run.assert_near(sets.project(run.encoded), run.theirs["enc_proj8"], what="enc")
    run.assert_stats_near(run.encoded, run.theirs["enc_stats"])


@pytest.mark.parametrize("tap", ["embed", "block0_attn", "block0_mlp", "block0", "block5", "blocklast"])
def test_golden_inside_the_encoder(run: Run, tap: str) -> None:
    """Patches with positions, both halves of the first block, and the blocks' outputs."""
    part = run.taps[tap][:, run.theirs["tok_idx"]][..., run.theirs["ch_idx"]]
    run.assert_near(part, run.theirs[f"enc_{tap}_slice"], what="enc")
    run.assert_stats_near(run.taps[tap], run.theirs[f"enc_{tap}_stats"])


def test_golden_bottleneck(run: Run) -> None:
    """The decoder's memory, with the last block computed for search tokens only."""
    rows = run.theirs["bottleneck_slice"].shape[1]
    run.assert_near(run.taps["bottleneck"][:, :rows], run.theirs["bottleneck_slice"], what="enc")
    run.assert_stats_near(run.taps["bottleneck"], run.theirs["bottleneck_stats"])


@pytest.mark.parametrize("tap", ["embedding", "layer0", "layerlast", "norm"])
def test_golden_inside_the_decoder(run: Run, tap: str) -> None:
    """Embedded tokens, every layer, the last norm. The authors' layers are time-major."""
    theirs = run.theirs[f"dec_{tap}"]
    run.assert_near(run.taps[tap], theirs if tap == "embedding" else theirs.transpose(1, 0, 2), what="enc")


def test_golden_target_tokens(run: Run) -> None:
    """Tokens of the annotated boxes, from corners and from centers."""
    assert run.targets.flatten().tolist() == run.theirs["target_seqs"].tolist()
    anno = torch.from_numpy(run.theirs["anno"][0])
    _, again = target_sequences(xywh_to_cxcywh(anno), run.model.spec.bins, run.model.spec.seq_format)
    assert again.flatten().tolist() == run.theirs["target_seqs"].tolist()


def test_golden_logits(run: Run) -> None:
    """Every token's score at every position."""
    reference = run.theirs["logits"][0] if run.exact is None else run.exact["logits64"]
    run.assert_near(run.logits, reference, what="logits")


def test_golden_loss_and_iou(run: Run) -> None:
    """The objective and the logged IoU."""
    assert run.loss == pytest.approx(float(run.theirs["loss"]), rel=2e-6)
    if run.exact is not None:
        assert run.loss == pytest.approx(float(run.exact["loss64"]), rel=2e-6)
    assert run.iou == pytest.approx(float(run.theirs["iou_status"]), abs=1e-6)


def test_golden_gradient_of_every_parameter(run: Run) -> None:
    """Norm within 1e-4, and the direction by a fixed random projection and the first entries."""
    norms, dots, heads = (run.numbers(key) for key in ("grad_norm", "grad_dot", "grad_head4"))
    assert set(run.gradients) == set(norms)
    wrong = []
    for name, gradient in run.gradients.items():
        wide = gradient.astype(np.float64)
        expected = norms[name]
        along = float((wide * sets.gauss(f"gradproj/{name}", gradient.shape)).sum())
        head_error = np.abs(wide.flatten()[:4] - heads[name]).max()
        if abs(np.linalg.norm(wide) - expected) > 1e-4 * expected:
            wrong.append(f"{name}: norm {np.linalg.norm(wide):.6e}, theirs {expected:.6e}")
        if abs(along - dots[name]) > 1e-4 * expected or head_error > 1e-4 * expected:
            wrong.append(f"{name}: another direction")
    assert not wrong


def test_golden_gradient_norm_of_all(run: Run) -> None:
    """The norm used for clipping."""
    total = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in run.gradients.values()))
    assert total == pytest.approx(float(run.theirs["grad_total_norm"]), rel=1e-4)


@pytest.mark.parametrize("mode", ["win", "nowin"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_golden_generated_tokens(run: Run, index: int, mode: str) -> None:
    """Tokens and confidences, with and without the window, and the scores of all tokens at each step."""
    key = f"inf{index}_{mode}"
    generated, logits = run.generated[key]
    run.assert_near(logits, run.theirs[f"{key}_logits"], what="logits")
    # A choice within the rounding error of the authors' own float32 is not compared, nor are the tokens after it.
    sure = int(np.cumprod(run.theirs[f"{key}_rel_margin"] > 1e-4).sum())
    assert sure >= 1
    assert generated.tokens[0, :sure].tolist() == run.theirs[f"{key}_tokens"][0, :sure].tolist()
    np.testing.assert_allclose(generated.confidences[0, :sure], run.theirs[f"{key}_conf"][0, :sure], rtol=2e-4)
    assert generated.confidences.dtype == torch.float64
    if sure == 4:
        boxes = tokens_to_boxes(generated.tokens, run.model.spec.bins, run.model.spec.seq_format)
        np.testing.assert_allclose(boxes.cpu().numpy(), run.theirs[f"{key}_cxcywh"], rtol=1e-6)
