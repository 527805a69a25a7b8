"""Trains a model of given sizes on random tokens in plain PyTorch, eager or compiled, and prints tokens/s: the peer of
`bench train`.

A step is what ours is: forward, backward, clipping by the global norm, fused AdamW. With bf16 the parameters, gradients
and optimizer state stay fp32 and autocast runs the products in bf16, PyTorch's usual mixed precision.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import time

import torch

from model import LanguageModel, Sizes, adamw, clip


def arguments():
    """Reads the command line; 0 and the families' own choices stand for what is left out, as in our configuration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", choices=["llama", "gpt2"], default="llama")
    for name, default in {"hidden": 384, "layers": 6, "heads": 6, "kv-heads": 0, "ffn": 0, "vocab": 4096}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8, help="sequences in a step")
    parser.add_argument("--micro-batch", type=int, default=0, help="sequences in a forward; 0: the whole batch")
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them that are not timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tie", action=argparse.BooleanOptionalAction, help="default: gpt2 yes, llama no")
    parser.add_argument("--bias", action=argparse.BooleanOptionalAction, help="default: gpt2 yes, llama no")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model; the default is eager")
    parser.add_argument("--json", type=pathlib.Path, help="where the result goes as one JSON object")
    found = parser.parse_args()
    if found.batch % (found.micro_batch or found.batch):
        parser.error(f"--batch {found.batch} is no multiple of --micro-batch {found.micro_batch}")
    return found


def sizes_of(given):
    """Fills in what the family chooses."""
    gpt2 = given.architecture == "gpt2"
    # Two thirds of 4·hidden, rounded up to a multiple of 32.
    ffn = 4 * given.hidden if gpt2 else (8 * given.hidden + 95) // 96 * 32
    return Sizes(
        architecture=given.architecture,
        hidden=given.hidden,
        layers=given.layers,
        heads=given.heads,
        kv_heads=given.kv_heads or given.heads,
        ffn=given.ffn or ffn,
        vocab=given.vocab,
        max_seq=given.seq,
        tie_embeddings=gpt2 if given.tie is None else given.tie,
        bias=gpt2 if given.bias is None else given.bias,
    )


def step(model, optimizer, batch, micro_batch, precision):
    """Makes one update and returns the mean loss, still on the device."""
    mixed = precision == "bf16"
    parts = batch.split(micro_batch)
    total = 0.0
    for part in parts:
        with torch.autocast(batch.device.type, torch.bfloat16) if mixed else contextlib.nullcontext():
            loss = model(part[:, :-1].contiguous(), part[:, 1:].contiguous()) / len(parts)
        loss.backward()
        total = total + loss.detach()
    clip(model, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def main():
    """Runs the steps and writes the result."""
    given = arguments()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    sizes = sizes_of(given)
    model = LanguageModel(sizes).to(given.device)
    optimizer = adamw(model, 1e-3, (0.9, 0.95), weight_decay=0.1)
    runner = torch.compile(model) if given.compile else model
    on_gpu = given.device.startswith("cuda")
    seconds = []
    for number in range(1, given.warmup + given.steps + 1):
        if on_gpu and number == given.warmup + 1:
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        batch = torch.randint(sizes.vocab, (given.batch, given.seq + 1), device=given.device)
        # Reading the loss waits for the device.
        loss = step(runner, optimizer, batch, given.micro_batch or given.batch, given.precision).item()
        seconds.append(time.perf_counter() - begun)
        if number % 10 == 0:
            print(f"step {number}  loss {loss:.4f}  {seconds[-1] * 1e3:.1f} ms", flush=True)
    median = statistics.median(seconds[given.warmup :])
    result = {
        "tokens_per_second": given.batch * given.seq / median,
        "step_seconds": median,
        "loss": loss,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "precision": given.precision,
        "threads": given.threads,
        "device": given.device,
        "compiled": given.compile,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "torch": torch.__version__,
    }
    print(f"{result['tokens_per_second']:.0f} tokens/s, {median * 1e3:.1f} ms a step, {result['parameters']} parameters")
    print(json.dumps(result))
    if given.json:
        given.json.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
