"""Loads exported models in transformers and compares their logits with a fixture's.

    python check.py FOLDER golden.safetensors [FOLDER golden.safetensors…]
"""

import sys

import torch
import transformers
from safetensors.torch import load_file

# Both sides come from the same weights in fp64; the fixture's logits were then rounded to fp32.
TOLERANCE = 2e-6

arguments = sys.argv[1:]
for folder, golden in zip(arguments[::2], arguments[1::2]):
    values = load_file(golden)
    expected = [values.pop(name) for name in ("logits", "next_sentence") if name in values]
    (cls,) = transformers.AutoConfig.from_pretrained(folder).architectures
    model, report = getattr(transformers, cls).from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float64, output_loading_info=True
    )
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[key], f"{folder}: {key}: {report[key]}"
    with torch.no_grad():
        outputs = model.eval()(**values)
    computed = [outputs[name] for name in ("logits", "prediction_logits", "seq_relationship_logits") if name in outputs]
    assert len(computed) == len(expected), f"{folder}: {list(outputs)}"
    worst = max((a - b).abs().max().item() for a, b in zip(computed, expected))
    assert worst < TOLERANCE, f"{folder}: logits differ by {worst:.1e}"
    print(f"{folder}: the same ({worst:.1e})")
