"""Every variant of the model against a second implementation from the paper's description with stock modules.

The reference has no cache, masks with a tensor, runs sequence-first through `nn.MultiheadAttention`, and computes the
encoder's attention head by head. It covers variants that have no stored reference outputs.
"""

import torch
import torch.nn.functional as F
from small_models import pictures, some_boxes
from torch import Tensor, nn

from seqtrack.model.seqtrack import SeqTrack
from seqtrack.tokens import target_sequences

State = dict[str, Tensor]


def _norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _encode(model: SeqTrack, state: State, templates: Tensor, search: Tensor) -> Tensor:
    spec = model.spec
    kernel, bias = (state[f"encoder.body.patch_embed.proj.{part}"] for part in ("weight", "bias"))

    def embed(image: Tensor) -> Tensor:
        return F.conv2d(image, kernel, bias, stride=spec.patch_size).flatten(2).transpose(1, 2)

    positions = state["encoder.body.pos_embed"]
    parts = [embed(search) + positions[:, : spec.search_tokens]]
    parts += [embed(templates[:, i]) + positions[:, spec.search_tokens :] for i in range(spec.num_templates)]
    x = torch.cat(parts, dim=1)
    width, heads = spec.embed_dim, spec.num_heads
    for index in range(spec.depth):
        name = f"encoder.body.blocks.{index}"
        q, k, v = _linear(state, f"{name}.attn.qkv", _norm(state, f"{name}.norm1", x, 1e-6)).split(width, dim=-1)
        attended = []
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / (width // heads) ** 0.5
            attended.append(scores.softmax(-1) @ v[..., part])
        x = x + _linear(state, f"{name}.attn.proj", torch.cat(attended, dim=-1))
        wide = F.gelu(_linear(state, f"{name}.mlp.fc1", _norm(state, f"{name}.norm2", x, 1e-6)))
        x = x + _linear(state, f"{name}.mlp.fc2", wide)
    return _norm(state, "encoder.body.norm", x, 1e-6)


def _attend(state: State, name: str, heads: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    stock = nn.MultiheadAttention(q.shape[-1], heads, dtype=q.dtype)
    own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
    stock.load_state_dict(own)
    out: Tensor = stock(q, k, v, attn_mask=mask, need_weights=False)[0]
    return out


def _decode(model: SeqTrack, state: State, memory: Tensor, tokens: Tensor) -> Tensor:
    spec = model.spec
    x = _norm(state, "decoder.embedding.LayerNorm", state["decoder.embedding.word_embeddings.weight"][tokens], 1e-5)
    x, memory = x.transpose(0, 1), memory.transpose(0, 1)
    query_positions = state["decoder.embedding.position_embeddings.weight"][: len(x), None]
    keys = memory + state["pos_embed"].transpose(0, 1)
    mask = torch.full((len(x), len(x)), float("-inf"), dtype=x.dtype).triu(1)
    for index in range(spec.decoder_layers):
        name = f"decoder.body.layers.{index}"

        def before(part: str, value: Tensor, name: str = name) -> Tensor:
            return _norm(state, f"{name}.{part}", value, 1e-5) if spec.pre_norm else value

        def after(part: str, value: Tensor, name: str = name) -> Tensor:
            return value if spec.pre_norm else _norm(state, f"{name}.{part}", value, 1e-5)

        y = before("norm1", x)
        placed = y + query_positions
        x = after("norm1", x + _attend(state, f"{name}.self_attn", spec.decoder_heads, placed, placed, y, mask))
        y = before("norm2", x) + query_positions
        seen = _attend(state, f"{name}.multihead_attn", spec.decoder_heads, y, keys, memory, None)
        x = after("norm2", x + seen)
        y = before("norm3", x)
        x = after("norm3", x + _linear(state, f"{name}.linear2", _linear(state, f"{name}.linear1", y).relu()))
    x = _norm(state, "decoder.body.norm", x, 1e-5).transpose(0, 1)
    for layer in (0, 1):
        x = _linear(state, f"vocab_embed.layers.{layer}", x).relu()
    return _linear(state, "vocab_embed.layers.2", x)


@torch.no_grad()
def test_every_variant_agrees_with_the_reference(variant: SeqTrack) -> None:
    # In float64, where different rounding is negligible compared with a wrong computation.
    spec, state = variant.double().spec, dict(variant.state_dict())
    templates, search = (images.double() for images in pictures(spec, 3))
    encoded = _encode(variant, state, templates, search)
    torch.testing.assert_close(variant.encoder(templates, search), encoded, rtol=1e-9, atol=1e-9)
    memory = {"x": encoded[:, : spec.search_tokens], "xz": encoded, "token": encoded.mean(1, keepdim=True)}[
        spec.feature_type
    ]
    if spec.hidden_dim != spec.embed_dim:
        memory = _linear(state, "bottleneck", memory)
    torch.testing.assert_close(variant.encode(templates, search), memory, rtol=1e-9, atol=1e-9)
    tokens, _ = target_sequences(some_boxes(3), spec.bins, spec.seq_format)
    ours, theirs = variant.decode(memory, tokens), _decode(variant, state, memory, tokens)
    assert (ours - theirs).norm() < 1e-9 * theirs.norm()
