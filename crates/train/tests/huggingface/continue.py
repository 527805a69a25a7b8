"""Writes how transformers goes on with a text: `generation.safetensors` beside some of the fixtures of this folder.

It holds `prompts`, int64 `[2, P]`; `greedy` and `penalized`, the 16 tokens after each, `penalized` with a repetition penalty of
1.3; `scores`, fp64 `[vocab]`, those after the first prompt; and of each row of `rules` (temperature, top-k, top-p, min-p,
penalty) the `probabilities`, fp64 `[rules, vocab]`, that transformers' own processors leave of them.

    venv/bin/python continue.py
"""

import pathlib

import torch
import transformers
from safetensors.torch import save_file
from transformers.generation import logits_process

FOLDER = pathlib.Path(__file__).resolve().parent
PENALTY = 1.3
# Name: class, and tokens of a prompt. GPT-2 here reads at most 16 tokens.
CASES = {"gpt2_odd": ("GPT2LMHeadModel", 1), "llama3": ("LlamaForCausalLM", 7), "mistral": ("MistralForCausalLM", 7)}
RULES = [
    (0.7, 0, 1.0, 0.0, 1.0),
    (1.0, 5, 1.0, 0.0, 1.0),
    (1.0, 0, 0.8, 0.0, 1.0),
    (1.0, 0, 1.0, 0.3, 1.0),
    (1.0, 0, 1.0, 0.0, PENALTY),
    (1.5, 12, 0.9, 0.2, PENALTY),
    (0.6, 20, 0.7, 0.05, PENALTY),
]


def warped(scores, ids, temperature, top_k, top_p, min_p, penalty):
    """Returns the probabilities after the processors, in the order in which `generate` applies them."""
    processors = transformers.LogitsProcessorList()
    if penalty != 1.0:
        processors.append(logits_process.RepetitionPenaltyLogitsProcessor(penalty))
    processors.append(logits_process.TemperatureLogitsWarper(temperature))
    if top_k:
        processors.append(logits_process.TopKLogitsWarper(top_k))
    if top_p < 1.0:
        processors.append(logits_process.TopPLogitsWarper(top_p))
    if min_p:
        processors.append(logits_process.MinPLogitsWarper(min_p))
    return processors(ids, scores.clone()).softmax(-1)[0]


def continued(model, prompts, penalty):
    """Returns the 16 tokens after each prompt."""
    options = dict(attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=16, pad_token_id=0)
    return model.generate(prompts, repetition_penalty=penalty, **options)[:, prompts.shape[1] :].contiguous()


def write(name):
    """Writes one case."""
    cls, length = CASES[name]
    folder = FOLDER / name
    model = getattr(transformers, cls).from_pretrained(folder, attn_implementation="eager", dtype=torch.float64).eval()
    # Texts do not end before their length.
    model.generation_config.eos_token_id = None
    torch.manual_seed(sum(map(ord, name)))
    drawn = torch.randint(0, model.config.vocab_size, (200, length)).unique(dim=0)
    tensors = {}
    with torch.no_grad():
        # Random models like to repeat themselves: the two that are gone on with most variedly can catch most.
        varied = [-len(set(row)) for row in continued(model, drawn, 1.0).tolist()]
        prompts = drawn[torch.tensor(varied).argsort(stable=True)[:2]].contiguous()
        tensors["prompts"] = prompts
        for key, penalty in [("greedy", 1.0), ("penalized", PENALTY)]:
            tensors[key] = continued(model, prompts, penalty)
        scores = model(prompts[:1]).logits[:, -1]
    assert tensors["greedy"].shape == (2, 16) and not torch.equal(tensors["greedy"], tensors["penalized"])
    tensors["scores"] = scores[0].contiguous()
    tensors["rules"] = torch.tensor(RULES, dtype=torch.float64)
    tensors["probabilities"] = torch.stack([warped(scores, prompts[:1], *rule) for rule in RULES])
    save_file(tensors, folder / "generation.safetensors")
    print(name, tensors["greedy"].tolist(), tensors["penalized"].tolist())
    print(name, "kept", (tensors["probabilities"] > 0).sum(-1).tolist(), tensors["probabilities"].dtype)


for name in CASES:
    write(name)
