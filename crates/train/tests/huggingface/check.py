"""Loads exported models in transformers and compares their logits with a fixture's.

    python check.py FOLDER golden.safetensors [FOLDER golden.safetensors…]
"""

import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

# Both sides come from the same weights in fp64; the fixture's logits were then rounded to fp32.
TOLERANCE = 2e-6

arguments = sys.argv[1:]
for folder, golden in zip(arguments[::2], arguments[1::2]):
    values = load_file(golden)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float64, output_loading_info=True
    )
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[key], f"{folder}: {key}: {report[key]}"
    with torch.no_grad():
        logits = model.eval()(values["tokens"]).logits
    worst = (logits - values["logits"]).abs().max().item()
    assert worst < TOLERANCE, f"{folder}: logits differ by {worst:.1e}"
    print(f"{folder}: the same ({worst:.1e})")
