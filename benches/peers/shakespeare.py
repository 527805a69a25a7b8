"""Trains the preset `shakespeare` in plain PyTorch, for `cargo xtask bench shakespeare`.

Byte-level text, a GPT-2 of 4 layers, 4 heads and width 128, context 64, batch 12; the last tenth is held out. Offsets
are random and independent, as in nanoGPT; the learning rate's course is ours (`rates` in mp-train, which is nanoGPT's
but for one step of warm-up). A step's time covers the batch, forward, backward, clipping and update.
"""

import argparse
import json
import math
import pathlib
import statistics
import time

import numpy
import torch

from model import LanguageModel, Sizes, adamw, clip

BATCH, SEQ = 12, 64
HIGH, LOW, WARMUP = 1e-3, 1e-4, 100
# Not timed: caches fill, and the allocator finds its sizes.
WARM_UP_STEPS = 50


def arguments():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--json", type=pathlib.Path, help="where the result goes as one JSON object")
    parser.add_argument("--bias", action="store_true", help="biases in linear layers and LayerNorm")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model; the default is eager")
    found = parser.parse_args()
    if found.steps <= WARM_UP_STEPS:
        parser.error(f"--steps {found.steps}: the first {WARM_UP_STEPS} are not timed")
    return found


def rate(step, steps):
    """Returns the learning rate of the update that makes `step` finished ones."""
    if step <= WARMUP:
        return HIGH * step / WARMUP
    progress = (step - 1 - WARMUP) / max(steps - WARMUP, 1)
    return LOW + (HIGH - LOW) * 0.5 * (1.0 + math.cos(math.pi * progress))


@torch.no_grad()
def whole_loss(model, tokens):
    """Returns the mean loss over the part: windows of SEQ targets, each target once, the short last window too."""
    full = (len(tokens) - 1) // SEQ
    inputs, targets = tokens[: full * SEQ].view(full, SEQ), tokens[1 : full * SEQ + 1].view(full, SEQ)
    total = sum(model(x, y).item() * y.numel() for x, y in zip(inputs.split(64), targets.split(64)))
    if full * SEQ < len(tokens) - 1:
        x, y = tokens[None, full * SEQ : -1], tokens[None, full * SEQ + 1 :]
        total += model(x, y).item() * y.numel()
    return total / (len(tokens) - 1)


def train(model, tokens, steps):
    """Trains and returns each step's seconds."""
    optimizer = adamw(model, HIGH, (0.9, 0.99), weight_decay=0.1)
    window = torch.arange(SEQ + 1)
    seconds = []
    for step in range(1, steps + 1):
        begun = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        offsets = torch.randint(len(tokens) - SEQ, (BATCH, 1))
        batch = tokens[offsets + window]
        loss = model(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        clip(model, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begun)
        if step % 100 == 0 or step == steps:
            recent = statistics.median(seconds[-100:]) * 1e3
            print(f"step {step}/{steps}  loss {loss.item():.4f}  {recent:.1f} ms/step", flush=True)
    return seconds


def main():
    """Trains, evaluates the whole held-out part, and writes the result."""
    given = arguments()
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    text = torch.from_numpy(numpy.fromfile(given.text, dtype=numpy.uint8).astype(numpy.int64))
    cut = int(len(text) * 0.9)
    model = LanguageModel(
        Sizes(
            architecture="gpt2",
            hidden=128,
            layers=4,
            heads=4,
            kv_heads=4,
            ffn=512,
            vocab=256,
            max_seq=SEQ,
            tie_embeddings=True,
            bias=given.bias,
        )
    )
    runner = torch.compile(model) if given.compile else model
    seconds = train(runner, text[:cut], given.steps)
    step_seconds = statistics.median(seconds[WARM_UP_STEPS:])
    # The module itself: the windows' shapes would compile anew.
    loss = whole_loss(model, text[cut:])
    result = {
        "step_seconds": step_seconds,
        "validation_loss": loss,
        "ms_per_step": step_seconds * 1e3,
        "val_loss": loss,
        "train_seconds": sum(seconds),
        "steps": given.steps,
        "threads": given.threads,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "compiled": given.compile,
        "torch": torch.__version__,
    }
    print(json.dumps(result))
    if given.json:
        given.json.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
