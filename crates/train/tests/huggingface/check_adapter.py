"""Loads exported adapters in PEFT, beside the model that they name, and compares logits with a fixture's.

    python check_adapter.py FOLDER golden.safetensors [FOLDER golden.safetensors…]
"""

import sys
import warnings

import peft
import torch
import transformers
from safetensors.torch import load_file

# Both sides come from the same numbers in fp64; the fixture's logits were then rounded to fp32.
TOLERANCE = 2e-6

# What does not fit is only warned of.
warnings.filterwarnings("error", message=".*(missing|unexpected) .*")

arguments = sys.argv[1:]
for folder, golden in zip(arguments[::2], arguments[1::2]):
    values = load_file(golden)
    expected = values.pop("logits")
    base = peft.PeftConfig.from_pretrained(folder).base_model_name_or_path
    (cls,) = transformers.AutoConfig.from_pretrained(base).architectures
    model = getattr(transformers, cls).from_pretrained(base, attn_implementation="eager", dtype=torch.float64)
    with torch.no_grad():
        before = model.eval()(**values).logits
        model = peft.PeftModel.from_pretrained(model, folder).double().eval()
        computed = model(**values).logits
    worst = (computed - expected).abs().max().item()
    assert worst < TOLERANCE, f"{folder}: logits differ by {worst:.1e}"
    assert (before - expected).abs().max().item() > 1e-3, f"{folder}: the adapters change nothing"
    print(f"{folder}: the same ({worst:.1e})")
