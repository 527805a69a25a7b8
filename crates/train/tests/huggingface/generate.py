"""Writes the fixtures of this folder: tiny models with random weights as transformers saves them, and their logits.

Each case is a folder `NAME/` with what `save_pretrained` writes and `golden.safetensors`: inputs and `logits`. Adapters on
some of them are what PEFT saves. The logits are computed in fp64 where the file holds fp32, so that they are the model's own, and not those of an order of additions.

    python -m venv venv && venv/bin/pip install -r requirements.txt && venv/bin/python generate.py [CASE…]
"""

import pathlib
import shutil
import sys

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

FOLDER = pathlib.Path(__file__).resolve().parent
INPUTS = ("input_ids", "token_type_ids", "attention_mask")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}


def gpt2(**keys):
    """GPT-2 with four heads of width 4."""
    sizes = dict(vocab_size=37, n_positions=16, n_embd=16, n_layer=2, n_head=4)
    return "GPT2LMHeadModel", transformers.GPT2Config(**(sizes | keys))


def llama(kind="Llama", **keys):
    """Llama, or one like it, with four heads of width 4 and two for keys and values."""
    sizes = dict(
        vocab_size=37,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    return f"{kind}ForCausalLM", getattr(transformers, f"{kind}Config")(**(sizes | keys))


def bert(kind="MaskedLM", **keys):
    """BERT with four heads of width 4."""
    sizes = dict(
        vocab_size=37,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
    )
    return f"BertFor{kind}", transformers.BertConfig(**(sizes | keys))


def rope(theta=10_000.0, **scaling):
    """The rotary keys of transformers 5."""
    return {"rope_theta": theta, "rope_type": "default"} | scaling


# Name: class and configuration, and what `save_pretrained` and the conversion before it are told.
CASES = {
    "gpt2": (gpt2(), {}),
    "gpt2_odd": (gpt2(n_head=3, n_embd=12, n_inner=24, n_layer=3, tie_word_embeddings=False), {}),
    "gpt2_sharded": (gpt2(n_layer=3, vocab_size=41), {"max_shard_size": "8KB"}),
    "llama": (llama(num_key_value_heads=4), {}),
    "llama_odd": (llama(num_attention_heads=3, num_key_value_heads=1, hidden_size=18), {}),
    "llama_tied_linear": (
        llama(tie_word_embeddings=True, rope_parameters=rope(rope_type="linear", factor=2.0), rms_norm_eps=1e-5),
        {},
    ),
    "llama3": (llama(head_dim=6, rope_parameters=rope(500_000.0, **LLAMA3)), {"max_shard_size": "6KB"}),
    "llama_bias": (llama(attention_bias=True), {}),
    "llama_mlp_bias_bf16": (llama(mlp_bias=True), {"dtype": torch.bfloat16}),
    "mistral": (llama("Mistral", sliding_window=5, head_dim=8), {}),
    "mistral_fp16": (llama("Mistral", sliding_window=None), {"dtype": torch.float16}),
    "mistral_odd": (
        llama("Mistral", num_attention_heads=3, num_key_value_heads=1, hidden_size=18, sliding_window=5, head_dim=6),
        {"max_shard_size": "6KB"},
    ),
    "qwen2_odd": (
        llama("Qwen2", num_attention_heads=3, num_key_value_heads=3, hidden_size=18),
        {"max_shard_size": "6KB"},
    ),
    "qwen2": (llama("Qwen2", tie_word_embeddings=True), {}),
    "qwen2_window": (llama("Qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0), {}),
    "bert": (bert(), {}),
    "bert_odd": (
        bert("PreTraining", num_attention_heads=3, hidden_size=12, num_hidden_layers=3, type_vocab_size=3),
        {"max_shard_size": "8KB"},
    ),
}

# Name: the case under the adapters, and what they are.
ADAPTERS = {
    "adapter_gpt2": ("gpt2", dict(r=2, lora_alpha=6, target_modules=["c_attn", "c_proj", "c_fc"], lora_dropout=0.1)),
    "adapter_llama3": ("llama3", dict(r=3, lora_alpha=5, target_modules="all-linear", use_rslora=True)),
    "adapter_qwen2": ("qwen2", dict(r=4, lora_alpha=2, target_modules=["q_proj", "v_proj", "down_proj"])),
    "adapter_bert": ("bert", dict(r=2, target_modules=["query", "key", "intermediate.dense", "output.dense"])),
}


def make(name):
    """Writes one case."""
    (cls, config), options = CASES[name]
    torch.manual_seed(sum(map(ord, name)))
    model = getattr(transformers, cls)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Not the initial ones and zeros: every norm and bias must count.
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if parameter.dim() == 1 else 0.0))
    options = dict(options)
    model = model.to(options.pop("dtype", torch.float32))
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, **options)
    inputs = {"input_ids": torch.randint(0, config.vocab_size, (2, 12))}
    if cls.startswith("Bert"):
        inputs["token_type_ids"] = torch.randint(0, config.type_vocab_size, (2, 12))
        # The second sequence is shorter; what comes after it is padding.
        inputs["attention_mask"] = (torch.arange(12) < torch.tensor([[12], [9]])).long()
    with torch.no_grad():
        outputs = reference(cls, folder, inputs)
    save_file({name: value.contiguous() for name, value in (inputs | outputs).items()}, folder / "golden.safetensors")
    print(name, sum(file.stat().st_size for file in folder.iterdir()), "bytes")


def reference(cls, folder, inputs):
    """Computes logits in fp64 from what was saved, and rounds them."""
    # Not the fused kernel: on CPU it has another order of additions for each shape.
    model = getattr(transformers, cls).from_pretrained(folder, attn_implementation="eager", dtype=torch.float64)
    outputs = model.eval()(**inputs)
    if cls != "BertForPreTraining":
        return {"logits": outputs.logits.float()}
    return {"logits": outputs.prediction_logits.float(), "next_sentence": outputs.seq_relationship_logits.float()}


def adapt(name):
    """Writes adapters on a case."""
    base, options = ADAPTERS[name]
    folder, under = FOLDER / name, FOLDER / base
    torch.manual_seed(sum(map(ord, name)))
    cls, _ = CASES[base][0]
    task = None if cls.startswith("Bert") else "CAUSAL_LM"
    model = getattr(transformers, cls).from_pretrained(under, attn_implementation="eager", dtype=torch.float64)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type=task, **options))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                # The second factor too: adapters that are still zero show nothing. Numbers of single precision, as the file.
                parameter.copy_((torch.randn_like(parameter) * 0.2).float())
    inputs = {key: value for key, value in load_file(under / "golden.safetensors").items() if key in INPUTS}
    with torch.no_grad():
        logits = model.eval()(**inputs).logits.float()
    shutil.rmtree(folder, ignore_errors=True)
    model.float().peft_config["default"].base_model_name_or_path = f"../{base}"
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    save_file(inputs | {"logits": logits.contiguous()}, folder / "golden.safetensors")
    print(name, sum(file.stat().st_size for file in folder.iterdir()), "bytes")


for name in sys.argv[1:] or [*CASES, *ADAPTERS]:
    (adapt if name in ADAPTERS else make)(name)
