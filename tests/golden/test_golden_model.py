"""The whole model at its real size against the authors' outputs, on the same weights and inputs.

Outputs must be within ten times the noise floor (the authors' float32 against their float64), gradient norms within
1e-4. Each set model_SIZE_RULE.npz of SEQTRACK_GOLDENS is one model, whose passes the tests of a part share. Under rule
A the output hardly depends on the input: where the folder has rule B of that size too, A's tests are long.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import model_sets as sets
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seqtrack.boxes import xywh_to_cxcywh
from seqtrack.model.build import build_empty
from seqtrack.model.loss import sequence_loss, teacher_forced_iou
from seqtrack.model.seqtrack import Generated
from seqtrack.tokens import hann_window, start_token, target_sequences, tokens_to_boxes

TIMES_NOISE = 10

# A set at another size takes several times as long.
pytestmark = pytest.mark.timeout(1800)


class Run:
    """Our model for one set, its results as they are asked for, and the authors'."""

    def __init__(self, path: Path) -> None:
        named = re.fullmatch(r"model_([^_]+)_([AB])", path.stem)
        if named is None:
            pytest.skip(f"{path.name} is not named model_SIZE_A.npz or model_SIZE_B.npz")
        self.size, self.rule = named.groups()
        self.theirs = sets.read(path)
        self.facts: dict[str, Any] = sets.read_json(f"{path.stem}.json") or {}
        exact = path.with_name(f"fp64_{self.size}_{self.rule}.npz")
        self.exact = sets.read(exact) if exact.is_file() else None
        self.model = sets.fill(build_empty(sets.spec_of_size(self.size)), self.rule)
        self.taps: dict[str, np.ndarray] = {}

    @cached_property
    def forward(self) -> tuple[Tensor, Tensor]:
        """Logits and target tokens with teacher forcing, for the backward pass; fills `taps` and completes the last
        block, of which the forward pass computes the search tokens only."""
        model, spec = self.model, self.model.spec
        body, decoder = model.encoder.body, model.decoder
        last = len(body.blocks) - 1
        modules: dict[str, nn.Module] = {
            "block0_attn": body.blocks[0].attn, "block0_mlp": body.blocks[0].mlp, "bottleneck": model.bottleneck,
            "embedding": decoder.embedding, "layer0": decoder.body.layers[0], "layerlast": decoder.body.layers[-1],
            "norm": decoder.body.norm, **{f"block{index}": body.blocks[index] for index in (0, 5, last - 1)},
        }  # fmt: skip
        outputs: dict[str, Tensor] = {}
        hooks = [
            module.register_forward_hook(lambda _, __, out, name=name: outputs.update({name: out.detach()}))
            for name, module in modules.items()
        ]
        first = body.blocks[0]
        hooks.append(first.register_forward_pre_hook(lambda _, given: outputs.update(embed=given[0].detach().clone())))
        anno = torch.from_numpy(self.theirs["anno"][0]).to(sets.DEVICE)
        inputs, targets = target_sequences(xywh_to_cxcywh(anno), spec.bins, spec.seq_format)
        logits = model(*sets.images("input", spec.template_size, spec.search_size, 2, spec.num_templates), inputs)
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            outputs["blocklast"] = body.blocks[-1](outputs[f"block{last - 1}"])
            outputs["enc"] = body.norm(outputs["blocklast"])
        self.taps = {name: value.cpu().numpy() for name, value in outputs.items()}
        return logits, targets

    @cached_property
    def gradients(self) -> dict[str, np.ndarray]:
        logits, targets = self.forward
        sequence_loss(logits, targets, self.model.spec.bins).mean().backward()
        found = {}
        for name, parameter in self.model.named_parameters():
            assert parameter.grad is not None, name
            found[name], parameter.grad = parameter.grad.cpu().numpy(), None
        return found

    @cached_property
    def generated(self) -> dict[str, tuple[Generated, np.ndarray]]:
        """Three images, with and without the window; and the logits of each step, given the authors' tokens."""
        model, spec, found = self.model, self.model.spec, {}
        for index in range(3):
            inputs = sets.images(f"infer{index}", spec.template_size, spec.search_size, 1, spec.num_templates)
            with torch.no_grad():
                memory = model.encode(*inputs)
                for mode, window in (("nowin", None), ("win", hann_window(spec.bins))):
                    key = f"inf{index}_{mode}"
                    chosen = torch.from_numpy(self.theirs[f"{key}_tokens"])
                    prefix = torch.cat((torch.tensor([[start_token(spec.bins)]]), chosen[:, :3]), dim=1)
                    logits = model.decode(memory, prefix.to(sets.DEVICE))[0].cpu().numpy()
                    found[key] = model.generate(memory, window), logits
        return found

    def assert_near(self, ours: np.ndarray, theirs: np.ndarray, *, what: str = "enc") -> None:
        limit = TIMES_NOISE * sets.noise_floor(self.size, self.rule, what)[1]
        a, b = ours.astype(np.float64), theirs.astype(np.float64)
        relative = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert relative <= limit, f"relative L2 distance {relative:.2e}, allowed {limit:.2e}"

    def assert_stats_near(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Compare deviation, sum of absolute values, minimum and maximum.

        A relative L2 distance d changes deviation and mean absolute value by at most d times the root mean square,
        minimum and maximum by the largest noise, measured on values of about 1. The mean is zero but for rounding.
        """
        largest, relative = sets.noise_floor(self.size, self.rule, "enc")
        values = ours.astype(np.float64)
        root_mean_square = np.sqrt((values**2).mean())
        spread = TIMES_NOISE * relative * root_mean_square
        entry = TIMES_NOISE * largest * max(1.0, root_mean_square)
        off = np.abs([values.std(), np.abs(values).sum(), values.min(), values.max()] - theirs[1:])
        assert (off <= np.array([spread, spread * values.size, entry, entry])).all(), off

    def numbers(self, key: str) -> Any:
        """Values of the set's JSON by parameter name; skips if it has none."""
        if key not in self.facts:
            pytest.skip(f"no JSON of this set with {key}")
        return self.facts[key]


EVERY = sets.find("model_*.npz")
_IDS = {one.id for one in EVERY}
MARKED = [
    pytest.param(*one.values, id=one.id, marks=[*one.marks, pytest.mark.long])
    if str(one.id).endswith("_A") and f"{str(one.id)[:-1]}B" in _IDS
    else one
    for one in EVERY
]
every_set = pytest.mark.parametrize("run", MARKED, indirect=True)


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    found = Run(request.param)
    yield found
    # Two large models at once would need 5 GB; a failure's traceback may keep the run alive, so its model is released.
    vars(found).clear()


@every_set
def test_golden_names_and_shapes_equal_the_authors(run: Run) -> None:
    """Every set lists the sum of every parameter; ours have the same names."""
    sums = {name: value.double().abs().sum().item() for name, value in run.model.state_dict().items()}
    assert sums == pytest.approx(run.numbers("weight_abssum"), rel=1e-6)


@every_set
def test_golden_encoder(run: Run) -> None:
    """Patches with positions, both halves of the first block, blocks, and the output: a slice of the tokens, and a
    projection of every token of the output."""
    assert run.forward and list(run.taps["enc"].shape) == run.theirs["enc_shape"].tolist()
    taps = {f"enc_{name}": name for name in ("embed", "block0_attn", "block0_mlp", "block0", "block5", "blocklast")}
    for key, tap in {**taps, "enc": "enc"}.items():
        part = run.taps[tap][:, run.theirs["tok_idx"]][..., run.theirs["ch_idx"]]
        run.assert_near(part, run.theirs[f"{key}_slice"])
        run.assert_stats_near(run.taps[tap], run.theirs[f"{key}_stats"])
        if tap == "enc" and run.exact is not None:
            run.assert_near(part, run.exact["enc64_slice"])
    encoded = run.taps["enc"].astype(np.float64)
    run.assert_near(
        encoded @ sets.gauss(f"proj/{encoded.shape[-1]}x8", (encoded.shape[-1], 8)), run.theirs["enc_proj8"]
    )


@every_set
def test_golden_decoder(run: Run) -> None:
    """The memory, of the last block's search tokens only; embedded tokens; layers, theirs time-major; norm."""
    assert run.forward
    memory, theirs = run.taps["bottleneck"], run.theirs["bottleneck_slice"]
    run.assert_near(memory[:, : theirs.shape[1]], theirs)
    run.assert_stats_near(memory, run.theirs["bottleneck_stats"])
    run.assert_near(run.taps["embedding"], run.theirs["dec_embedding"])
    for tap in ("layer0", "layerlast", "norm"):
        run.assert_near(run.taps[tap], run.theirs[f"dec_{tap}"].transpose(1, 0, 2))


@every_set
def test_golden_logits_loss_and_iou(run: Run) -> None:
    logits, targets = run.forward
    assert targets.flatten().tolist() == run.theirs["target_seqs"].tolist()
    reference = run.theirs["logits"] if run.exact is None else run.exact["logits64"]
    run.assert_near(logits.detach().cpu().numpy(), reference, what="logits")
    loss = sequence_loss(logits.detach(), targets, run.model.spec.bins).mean().item()
    assert loss == pytest.approx(float(run.theirs["loss"]), rel=2e-6)
    assert run.exact is None or loss == pytest.approx(float(run.exact["loss64"]), rel=2e-6)
    iou = teacher_forced_iou(logits, targets, run.model.spec.bins, run.model.spec.seq_format).mean().item()
    assert iou == pytest.approx(float(run.theirs["iou_status"]), abs=1e-6)


@every_set
def test_golden_gradient_of_every_parameter(run: Run) -> None:
    """Norm within 1e-4, the direction by a fixed random projection and the first entries; the norm of all."""
    norms, dots, heads = (run.numbers(key) for key in ("grad_norm", "grad_dot", "grad_head4"))
    assert set(run.gradients) == set(norms)
    wrong, total = [], 0.0
    for name, gradient in run.gradients.items():
        wide, expected = gradient.astype(np.float64), norms[name]
        total += float((wide**2).sum())
        along = float((wide * sets.gauss(f"gradproj/{name}", gradient.shape)).sum())
        head_error = np.abs(wide.flatten()[:4] - heads[name]).max()
        off = max(abs(np.linalg.norm(wide) - expected), abs(along - dots[name]), head_error)
        if off > 1e-4 * expected:
            wrong.append(f"{name}: off by {off:.2e}, norm {expected:.6e}")
    assert not wrong
    assert np.sqrt(total) == pytest.approx(float(run.theirs["grad_total_norm"]), rel=1e-4)


@every_set
def test_golden_generated_tokens(run: Run) -> None:
    """Tokens and confidences, with and without the window, and the scores of all tokens at each step."""
    for key, (generated, logits) in run.generated.items():
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
