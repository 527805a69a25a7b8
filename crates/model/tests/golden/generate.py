"""Writes the golden fixtures of this folder: tiny models with random weights, their logits, loss and gradients.

Two references: `*_fp32` come from transformers (`GPT2LMHeadModel`, `LlamaForCausalLM`, `Qwen2ForCausalLM`,
`MistralForCausalLM`, `BertForPreTraining`, `BertForMaskedLM`); `*_fp64` come from the plain
PyTorch twins below, which compute in fp64 throughout, where transformers casts norms, rotary angles and softmax to
fp32. Before anything is written, each twin cast to fp32 is compared with transformers, which proves the twin.

    python -m venv venv && venv/bin/pip install -r requirements.txt && venv/bin/python generate.py [--check]

Shape letters: b batch, s sequence, d width, h query heads, g key/value heads, k head width, f MLP width, v vocabulary.
"""

import argparse
import json
import math
import pathlib
from dataclasses import asdict, dataclass, field

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

FOLDER = pathlib.Path(__file__).resolve().parent
# Largest |difference| / max(1, max|reference|) allowed in any tensor between an fp32 twin and transformers.
PROOF = 1e-5
# The same between two runs of this script on different processors, whose last bits may differ.
REPEAT = {"fp32": 1e-5, "fp64": 1e-13}


@dataclass(frozen=True)
class Model:
    """The `[model]` keys of a configuration, all of them given."""

    architecture: str
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 4
    hidden: int = 16
    layers: int = 2
    ffn: int = 24
    # Odd, so that two and four ranks have to pad it.
    vocab: int = 37
    max_seq: int = 12
    tie_embeddings: bool = False
    bias: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: dict | None = None
    norm_eps: float = 1e-5
    attention_bias: str | None = None
    window: int | None = None
    token_types: int | None = None
    next_sentence: bool | None = None

    def as_json(self):
        """Returns the object stored as the fixture's `config`; keys without a value are left out."""
        return json.dumps({key: value for key, value in asdict(self).items() if value is not None}, sort_keys=True)


@dataclass(frozen=True)
class Case:
    """One fixture for each of `precisions`."""

    name: str
    seed: int
    seq: int
    model: Model
    batch: int = 2
    precisions: tuple = field(default=("fp32", "fp64"))


CASES = [
    Case("gpt2", 1, 8, Model("gpt2", tie_embeddings=True, bias=True)),
    # transformers cannot leave these biases out: there they are zeros for the proof, and fp64 alone is written.
    Case("gpt2_no_bias", 7, 12, Model("gpt2", tie_embeddings=True), precisions=("fp64",)),
    Case("llama", 3, 12, Model("llama", norm_eps=1e-6)),
    Case(
        "llama_grouped",
        4,
        8,
        Model(
            "llama",
            kv_heads=2,
            tie_embeddings=True,
            rope_theta=500_000.0,
            rope_scaling={"kind": "linear", "factor": 2.0},
        ),
    ),
    Case("llama_head_dim", 5, 8, Model("llama", kv_heads=1, head_dim=6)),
    Case("llama_bias", 6, 8, Model("llama", kv_heads=2, bias=True)),
    # The first angle makes 1.3 turns in the original context, between slow and fast; the second 0.13.
    Case(
        "llama3",
        8,
        12,
        Model(
            "llama",
            kv_heads=2,
            rope_theta=100.0,
            rope_scaling={
                "kind": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8,
            },
        ),
    ),
    Case("qwen2", 9, 8, Model("llama", kv_heads=2, attention_bias="qkv", tie_embeddings=True, norm_eps=1e-6)),
    # Twelve positions, of which the second sequence's last three are padding.
    Case("bert", 11, 12, Model("bert", tie_embeddings=True, bias=True, token_types=2, next_sentence=True, norm_eps=1e-12)),
    Case("bert_masked", 12, 12, Model("bert", bias=True, token_types=3)),
    Case("mistral", 10, 12, Model("llama", kv_heads=2, window=3)),
]


# ---- the twins: submodules carry our parameter names, so `named_parameters` is the fixture's table ----


class LayerNorm(nn.Module):
    """y = (x − mean) / √(variance + ε) · weight + bias, the variance being the biased one."""

    def __init__(self, width, eps, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None
        self.eps = eps

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        y = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + self.eps) * self.weight
        return y if self.bias is None else y + self.bias


class RmsNorm(nn.Module):
    """y = x / √(mean(x²) + ε) · weight."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x):
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def scaled(frequencies, scaling):
    """Scales frequencies, in radians a position, for contexts longer than the first one."""
    if scaling is None:
        return frequencies
    if scaling["kind"] == "linear":
        return frequencies / scaling["factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / scaling["factor"] + kept * frequencies


def rotate(x_bhsk, theta, scaling):
    """Turns the pair (x[j], x[j + k/2]) at position p by the angle p · scaled(theta^(−2j/k))."""
    s, k = x_bhsk.shape[-2:]
    frequencies = scaled(theta ** (-torch.arange(0, k, 2, dtype=x_bhsk.dtype) / k), scaling)
    angles = torch.arange(s, dtype=x_bhsk.dtype)[:, None] * frequencies[None, :]
    first, second = x_bhsk.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Causal softmax attention; query head i reads key/value head ⌊i · g / h⌋."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        d, k = model.hidden, model.head_dim
        inputs_bias = model.bias or model.attention_bias == "qkv"
        self.query = nn.Linear(d, model.heads * k, bias=inputs_bias)
        self.key = nn.Linear(d, model.kv_heads * k, bias=inputs_bias)
        self.value = nn.Linear(d, model.kv_heads * k, bias=inputs_bias)
        self.output = nn.Linear(model.heads * k, d, bias=model.bias)

    def forward(self, x_bsd, apart_bst=None):
        model, (b, s, _) = self.model, x_bsd.shape
        q, k, v = (
            projection(x_bsd).view(b, s, -1, model.head_dim).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        if model.architecture == "llama":
            q, k = (rotate(x, model.rope_theta, model.rope_scaling) for x in (q, k))
        readers = model.heads // model.kv_heads
        k, v = k.repeat_interleave(readers, dim=1), v.repeat_interleave(readers, dim=1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(model.head_dim)
        hidden = torch.ones(s, s, dtype=torch.bool).triu(1) if apart_bst is None else apart_bst[:, None]
        if model.window:
            hidden |= torch.ones(s, s, dtype=torch.bool).tril(-model.window)
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        return self.output((weights @ v).transpose(1, 2).reshape(b, s, -1))


def exact_gelu(x):
    """x · Φ(x)."""
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


class GeluMlp(nn.Module):
    """down(gelu(up(x))) with the tanh form of GELU, `gelu_new` in transformers; the exact form in bert."""

    def __init__(self, model):
        super().__init__()
        self.up = nn.Linear(model.hidden, model.ffn, bias=model.bias)
        self.down = nn.Linear(model.ffn, model.hidden, bias=model.bias)
        self.exact = model.architecture == "bert"

    def forward(self, x):
        u = self.up(x)
        if self.exact:
            return self.down(exact_gelu(u))
        return self.down(0.5 * u * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (u + 0.044715 * u**3))))


class SwiGluMlp(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, model):
        super().__init__()
        self.gate = nn.Linear(model.hidden, model.ffn, bias=model.bias)
        self.up = nn.Linear(model.hidden, model.ffn, bias=model.bias)
        self.down = nn.Linear(model.ffn, model.hidden, bias=model.bias)

    def forward(self, x):
        g = self.gate(x)
        return self.down(g * torch.sigmoid(g) * self.up(x))


class Layer(nn.Module):
    """x + attention(norm(x)), then the same with the MLP."""

    def __init__(self, model, norm, mlp):
        super().__init__()
        self.attention_norm, self.attention = norm(), Attention(model)
        self.mlp_norm, self.mlp = norm(), mlp(model)

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Gpt2(nn.Module):
    """Learned positions, LayerNorm, GELU; the head is the embedding's matrix if tied."""

    def __init__(self, model):
        super().__init__()

        def norm():
            return LayerNorm(model.hidden, model.norm_eps, model.bias)

        self.embedding = nn.Embedding(model.vocab, model.hidden)
        self.positions = nn.Embedding(model.max_seq, model.hidden)
        self.layers = nn.ModuleList(Layer(model, norm, GeluMlp) for _ in range(model.layers))
        self.final_norm = norm()
        self.head = None if model.tie_embeddings else nn.Linear(model.hidden, model.vocab, bias=False)

    def forward(self, tokens_bs):
        x = self.embedding(tokens_bs) + self.positions.weight[: tokens_bs.shape[1]]
        for layer in self.layers:
            x = layer(x)
        head = self.embedding if self.head is None else self.head
        return self.final_norm(x) @ head.weight.T


class Llama(nn.Module):
    """Rotary positions, RMSNorm, SwiGLU, grouped-query attention; the head is the embedding's matrix if tied."""

    def __init__(self, model):
        super().__init__()

        def norm():
            return RmsNorm(model.hidden, model.norm_eps)

        self.embedding = nn.Embedding(model.vocab, model.hidden)
        self.layers = nn.ModuleList(Layer(model, norm, SwiGluMlp) for _ in range(model.layers))
        self.final_norm = norm()
        self.head = None if model.tie_embeddings else nn.Linear(model.hidden, model.vocab, bias=False)

    def forward(self, tokens_bs):
        x = self.embedding(tokens_bs)
        for layer in self.layers:
            x = layer(x)
        head = self.embedding if self.head is None else self.head
        return self.final_norm(x) @ head.weight.T


class BertLayer(nn.Module):
    """norm(x + attention(x)), then the same with the MLP."""

    def __init__(self, model, norm):
        super().__init__()
        self.attention, self.attention_norm = Attention(model), norm()
        self.mlp, self.mlp_norm = GeluMlp(model), norm()

    def forward(self, x, apart):
        x = self.attention_norm(x + self.attention(x, apart))
        return self.mlp_norm(x + self.mlp(x))


class BertHead(nn.Module):
    """norm(gelu(dense(x))) · Wᵀ + bias; W is the embedding's if tied."""

    def __init__(self, model, norm):
        super().__init__()
        self.dense = nn.Linear(model.hidden, model.hidden)
        self.norm = norm()
        self.weight = None if model.tie_embeddings else nn.Parameter(torch.empty(model.vocab, model.hidden))
        self.bias = nn.Parameter(torch.empty(model.vocab))

    def forward(self, x, embedding):
        weight = embedding if self.weight is None else self.weight
        return self.norm(exact_gelu(self.dense(x))) @ weight.T + self.bias


class Bert(nn.Module):
    """Learned positions and types, norms behind each half of a layer, attention within each segment in both directions."""

    def __init__(self, model):
        super().__init__()

        def norm():
            return LayerNorm(model.hidden, model.norm_eps, True)

        self.embedding = nn.Embedding(model.vocab, model.hidden)
        self.positions = nn.Embedding(model.max_seq, model.hidden)
        self.token_types = nn.Embedding(model.token_types, model.hidden)
        self.embedding_norm = norm()
        self.layers = nn.ModuleList(BertLayer(model, norm) for _ in range(model.layers))
        self.head = BertHead(model, norm)
        if model.next_sentence:
            self.pooler = nn.Linear(model.hidden, model.hidden)
            self.next_sentence = nn.Linear(model.hidden, 2)

    def forward(self, tokens_bs, types_bs, segments_bs):
        """Returns the tokens' scores and, with that head, the sequences'."""
        x = self.embedding(tokens_bs) + self.positions.weight[: tokens_bs.shape[1]] + self.token_types(types_bs)
        x = self.embedding_norm(x)
        apart = segments_bs[:, :, None] != segments_bs[:, None, :]
        for layer in self.layers:
            x = layer(x, apart)
        scores = self.head(x, self.embedding.weight)
        return scores, (self.next_sentence(torch.tanh(self.pooler(x[:, 0]))) if hasattr(self, "pooler") else None)


def twin_of(case):
    """Builds the case's twin in fp64 and draws every parameter.

    Norm weights lie around 1 and biases around 0, both wide enough that leaving one out shows. The values use the
    whole of fp64's mantissa, so a path through fp32 shows as well.
    """
    twin = {"gpt2": Gpt2, "llama": Llama, "bert": Bert}[case.model.architecture](case.model).double()
    generator = torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return twin


# ---- transformers ----


def transformers_model(model):
    """Builds the transformers model of the same shape."""
    shared = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None, attn_implementation="eager")
    if model.architecture == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=model.vocab,
                n_positions=model.max_seq,
                n_embd=model.hidden,
                n_layer=model.layers,
                n_head=model.heads,
                n_inner=model.ffn,
                activation_function="gelu_new",
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                layer_norm_epsilon=model.norm_eps,
                tie_word_embeddings=model.tie_embeddings,
                **shared,
            )
        )
    if model.architecture == "bert":
        shared |= dict(
            vocab_size=model.vocab,
            hidden_size=model.hidden,
            num_hidden_layers=model.layers,
            num_attention_heads=model.heads,
            intermediate_size=model.ffn,
            hidden_act="gelu",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=model.max_seq,
            type_vocab_size=model.token_types,
            layer_norm_eps=model.norm_eps,
            tie_word_embeddings=model.tie_embeddings,
        )
        return (BertForPreTraining if model.next_sentence else BertForMaskedLM)(BertConfig(**shared))
    rope = {"rope_type": "default", "rope_theta": model.rope_theta}
    if model.rope_scaling:
        rope |= {key: value for key, value in model.rope_scaling.items() if key != "kind"}
        rope["rope_type"] = model.rope_scaling["kind"]
    shared |= dict(
        vocab_size=model.vocab,
        hidden_size=model.hidden,
        intermediate_size=model.ffn,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_dim,
        max_position_embeddings=model.max_seq,
        rms_norm_eps=model.norm_eps,
        tie_word_embeddings=model.tie_embeddings,
        rope_parameters=rope,
    )
    if model.attention_bias == "qkv":
        return Qwen2ForCausalLM(Qwen2Config(**shared))
    if model.window:
        return MistralForCausalLM(MistralConfig(sliding_window=model.window, **shared))
    return LlamaForCausalLM(LlamaConfig(attention_bias=model.bias, mlp_bias=model.bias, **shared))


def our_views(theirs, model):
    """Returns our name → a view of the tensor inside `theirs` (transformers name → tensor).

    Being views, they serve both ways: written to when weights go in, read from when gradients come out.
    """
    layers = range(model.layers)
    if model.architecture == "gpt2":
        views = {"embedding.weight": theirs["transformer.wte.weight"]}
        views["positions.weight"] = theirs["transformer.wpe.weight"]
        renamed = {f"layers.{i}.attention_norm": f"transformer.h.{i}.ln_1" for i in layers}
        renamed |= {f"layers.{i}.mlp_norm": f"transformer.h.{i}.ln_2" for i in layers}
        renamed["final_norm"] = "transformer.ln_f"
        for ours, name in renamed.items():
            views[f"{ours}.weight"], views[f"{ours}.bias"] = theirs[f"{name}.weight"], theirs[f"{name}.bias"]
        products = {
            f"layers.{i}.{ours}": f"transformer.h.{i}.{name}"
            for i in layers
            for ours, name in {
                "attention.output": "attn.c_proj",
                "mlp.up": "mlp.c_fc",
                "mlp.down": "mlp.c_proj",
            }.items()
        }
        # Conv1D stores [d_in, d_out].
        for ours, name in products.items():
            views[f"{ours}.weight"], views[f"{ours}.bias"] = theirs[f"{name}.weight"].T, theirs[f"{name}.bias"]
        for i in layers:
            weights = theirs[f"transformer.h.{i}.attn.c_attn.weight"].T.chunk(3, dim=0)
            biases = theirs[f"transformer.h.{i}.attn.c_attn.bias"].chunk(3)
            for ours, weight, bias in zip(("query", "key", "value"), weights, biases):
                views[f"layers.{i}.attention.{ours}.weight"] = weight
                views[f"layers.{i}.attention.{ours}.bias"] = bias
        if not model.tie_embeddings:
            views["head.weight"] = theirs["lm_head.weight"]
        return views
    if model.architecture == "bert":
        return bert_views(theirs, model)
    pieces = {
        "model.embed_tokens": "embedding",
        "lm_head": "head",
        "model.layers": "layers",
        "model.norm": "final_norm",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "mlp_norm",
        "self_attn": "attention",
        "q_proj": "query",
        "k_proj": "key",
        "v_proj": "value",
        "o_proj": "output",
        "gate_proj": "gate",
        "up_proj": "up",
        "down_proj": "down",
    }
    views = {}
    for name, tensor in theirs.items():
        for piece, ours in pieces.items():
            name = name.replace(piece, ours)
        views[name] = tensor
    return views


def bert_views(theirs, model):
    """As `our_views`, for bert."""
    pieces = {
        "bert.embeddings.word_embeddings": "embedding",
        "bert.embeddings.position_embeddings": "positions",
        "bert.embeddings.token_type_embeddings": "token_types",
        "bert.embeddings.LayerNorm": "embedding_norm",
        "bert.encoder.layer": "layers",
        "bert.pooler.dense": "pooler",
        "attention.self": "attention",
        "attention.output.dense": "attention.output",
        "attention.output.LayerNorm": "attention_norm",
        "intermediate.dense": "mlp.up",
        "output.dense": "mlp.down",
        "output.LayerNorm": "mlp_norm",
        "cls.predictions.transform.dense": "head.dense",
        "cls.predictions.transform.LayerNorm": "head.norm",
        "cls.predictions.decoder": "head",
        "cls.predictions": "head",
        "cls.seq_relationship": "next_sentence",
    }
    views = {}
    for name, tensor in theirs.items():
        if name == "cls.predictions.decoder.weight" and model.tie_embeddings:
            continue
        for piece, ours in pieces.items():
            # `attention.output.dense` became `attention.output`: only a layer's own output is the MLP's.
            if piece.startswith("output.") and ".attention" in name:
                continue
            name = name.replace(piece, ours)
        views[name] = tensor
    return views


# ---- running and comparing ----


def outputs(forward, tensors, given):
    """Runs forward and backward; `tensors` gives our name → value by each parameter's attribute.

    The loss is the mean over targets that are not −1, and over sequences that of their labels.
    """
    logits, classes = forward(given)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), given["targets"].flatten(), ignore_index=-1)
    if classes is not None:
        loss = loss + nn.functional.cross_entropy(classes, given["labels"])
    loss.backward()
    if "segments" in given:
        # What padding makes of padding is nobody's affair.
        logits = logits * (given["segments"] >= 0)[:, :, None]
    found = given | {"logits": logits, "loss": loss}
    found |= tensors(lambda parameter: parameter.data)
    found |= {f"grad.{name}": value for name, value in tensors(lambda parameter: parameter.grad).items()}
    return {name: value.detach().clone().contiguous() for name, value in found.items()}


def run_twin(twin, given):
    """Returns the fixture's tensors as the twin computes them, in the twin's precision."""

    def tensors(attribute):
        return {name: attribute(parameter) for name, parameter in twin.named_parameters()}

    def forward(given):
        if "segments" in given:
            return twin(given["tokens"], given["token_types"], given["segments"])
        return twin(given["tokens"]), None

    return outputs(forward, tensors, given)


def run_transformers(model, weights, given):
    """Returns the fixture's tensors as transformers computes them in fp32 from `weights` (our names).

    Biases that transformers has and our model lacks are zeros, and are not returned.
    """
    theirs = transformers_model(model).float().eval()

    def tensors(attribute):
        return our_views({name: attribute(parameter) for name, parameter in theirs.named_parameters()}, model)

    views = tensors(lambda parameter: parameter.data)
    extra = views.keys() ^ weights.keys()
    assert all(name in views and name.endswith(".bias") and not model.bias for name in extra), sorted(extra)
    for name, view in views.items():
        if name in extra:
            view.zero_()
        else:
            assert view.shape == weights[name].shape, (name, view.shape, weights[name].shape)
            view.copy_(weights[name])

    def forward(given):
        if model.architecture != "bert":
            return theirs(given["tokens"], use_cache=False).logits, None
        real = (given["segments"] >= 0).long()
        found = theirs(given["tokens"], attention_mask=real, token_type_ids=given["token_types"])
        if model.next_sentence:
            return found.prediction_logits, found.seq_relationship_logits
        return found.logits, None

    found = outputs(forward, tensors, given)
    return {name: value for name, value in found.items() if name.removeprefix("grad.") not in extra}


def largest_difference(ours, reference):
    """Returns the largest |difference| / max(1, max|reference|) over all tensors, and the tensor's name."""
    assert ours.keys() == reference.keys(), sorted(ours.keys() ^ reference.keys())
    found = []
    for name, expected in reference.items():
        scale = max(1.0, expected.abs().max().item())
        found.append(((ours[name].double() - expected.double()).abs().max().item() / scale, name))
    return max(found)


def masked(case, targets, generator):
    """Draws what bert is given beside tokens: few targets, two types, padding, a label for each sequence."""
    segments, types = torch.zeros_like(targets), torch.zeros_like(targets)
    segments[1, -3:] = -1
    types[:, 5:] = case.model.token_types - 1
    kept = torch.rand(targets.shape, generator=generator) < 0.4
    targets = targets.masked_fill(~kept | (segments < 0), -1)
    given = {"targets": targets, "segments": segments, "token_types": types}
    return given | ({"labels": torch.tensor([1, 0])} if case.model.next_sentence else {})


def fixtures_of(case):
    """Yields (precision, tensors) for the case, once its twin is proven."""
    generator = torch.Generator().manual_seed(1000 + case.seed)
    draw = (case.batch, case.seq)
    tokens = torch.randint(case.model.vocab, draw, generator=generator)
    targets = torch.randint(case.model.vocab, draw, generator=generator)
    tokens[0, 0], targets[-1, -1] = case.model.vocab - 1, case.model.vocab - 1  # the last rank's last row is used

    given = {"tokens": tokens, "targets": targets}
    if case.model.architecture == "bert":
        given |= masked(case, targets, generator)
    twin = twin_of(case).float()
    weights = {name: parameter.data for name, parameter in twin.named_parameters()}
    computed = {
        "fp32": run_transformers(case.model, weights, given),
        "fp64": run_twin(twin_of(case), given),
    }
    error, name = largest_difference(run_twin(twin, given), computed["fp32"])
    print(f"{case.name}: fp32 twin against transformers {error:.1e} ({name})")
    assert error <= PROOF, f"{case.name}: the twin departs from transformers by {error} in {name}"
    for precision in case.precisions:
        yield precision, computed[precision]


def check(path, tensors, config, bound):
    """Compares the fixture on disk with what this run computed."""
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"config": config}, file.metadata()
        stored = {name: file.get_tensor(name) for name in file.keys()}
    error, name = largest_difference(tensors, stored)
    assert error <= bound, f"{path.name}: {name} differs by {error}"
    print(f"{path.name}: matches, {error:.1e}")


def main():
    """Writes every fixture, or with --check compares those that are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the files that are there, write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for case in CASES:
        for precision, tensors in fixtures_of(case):
            path = FOLDER / f"{case.name}_{precision}.safetensors"
            # One metadata key alone: safetensors writes several in no fixed order, and the bytes should repeat.
            if arguments.check:
                check(path, tensors, case.model.as_json(), REPEAT[precision])
            else:
                save_file(tensors, path, metadata={"config": case.model.as_json()})
                print(f"{path.name}: {path.stat().st_size} bytes, loss {tensors['loss'].item():.6f}")


if __name__ == "__main__":
    main()
