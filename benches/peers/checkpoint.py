"""Saves and loads a state of a given size with torch.save and torch.distributed.checkpoint: the peers of `bench checkpoint`.

The state is what ours is: a model's parameters and two moments of each, in single precision, as tensors of the size of a
GPT-2 matrix. Files are flushed to the disk, as ours are.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import tempfile
import time
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

MATRIX = 768 * 3072


def state(elements):
    """Makes the parameters and their moments."""
    made = {}
    for part in ["model", "first_moment", "second_moment"]:
        for index, start in enumerate(range(0, elements, MATRIX)):
            made[f"{part}.{index}"] = torch.randn(min(MATRIX, elements - start))
    return made


def timed(work):
    """Returns the seconds that a call takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def torch_save(saved, path):
    """torch.save, flushed."""
    with open(path, "wb") as file:
        torch.save(saved, file)
        file.flush()
        os.fsync(file.fileno())


def one_round(saved, folder):
    """Measures each way once."""
    seconds = {}
    single = folder / "single.pt"
    seconds["torch.save, flushed"] = timed(lambda: torch_save(saved, single))
    seconds["torch.load"] = timed(lambda: torch.load(single))
    single.unlink()
    sharded = folder / "dcp"
    seconds["torch.distributed.checkpoint.save"] = timed(lambda: dcp.save(saved, checkpoint_id=sharded))
    into = {name: torch.empty_like(tensor) for name, tensor in saved.items()}
    seconds["torch.distributed.checkpoint.load"] = timed(lambda: dcp.load(into, checkpoint_id=sharded))
    shutil.rmtree(sharded)
    begun = time.perf_counter()
    pending = dcp.async_save(saved, checkpoint_id=sharded)
    held = time.perf_counter() - begun
    pending.result()
    seconds["torch.distributed.checkpoint.async_save, until complete"] = time.perf_counter() - begun
    seconds["  of which a step is held up"] = held
    shutil.rmtree(sharded)
    return seconds


def main():
    """Measures in rounds and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--bytes", type=int, required=True, help="of the whole state")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        folder = pathlib.Path(folder)
        store = dist.FileStore(str(folder / "store"), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        saved = state(options.bytes // 12)
        rounds = [one_round(saved, folder) for _ in range(options.rounds)]
        dist.destroy_process_group()
    print(f"PyTorch {torch.__version__}, one process, {options.bytes / 1e6:.0f} MB, medians of {options.rounds}")
    for name in rounds[0]:
        seconds = statistics.median(one[name] for one in rounds)
        pace = "" if name.startswith(" ") else f"{options.bytes / 1e6 / seconds:8.0f} MB/s"
        print(f"  {name:<56} {seconds:8.3f} s {pace}")


if __name__ == "__main__":
    main()
