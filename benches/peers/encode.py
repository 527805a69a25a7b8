"""The Python tokenizers package on the text of `cargo xtask bench data`: the same file, tokenizer and number of threads.

Prints one JSON object: seconds of `encode_batch` alone, and of the whole way from JSON lines to two-byte tokens on disk.
"""
import argparse
import array
import json
import os
import time

parser = argparse.ArgumentParser()
parser.add_argument("--folder", required=True)
parser.add_argument("--threads", required=True)
options = parser.parse_args()
# Read by the package when it starts its threads.
os.environ["RAYON_NUM_THREADS"] = options.threads
os.environ["TOKENIZERS_PARALLELISM"] = "true"

from tokenizers import Tokenizer  # noqa: E402

tokenizer = Tokenizer.from_file(os.path.join(options.folder, "tokenizer.json"))
end = tokenizer.token_to_id("<|endoftext|>")
BATCH = 1000


def batches(lines):
    batch = []
    for line in lines:
        batch.append(json.loads(line)["text"])
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


begun = time.perf_counter()
encoding, tokens = 0.0, 0
with open(os.path.join(options.folder, "text.jsonl"), encoding="utf-8") as lines, open(
    os.path.join(options.folder, "peer.bin"), "wb"
) as out:
    for batch in batches(lines):
        started = time.perf_counter()
        encoded = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        encoding += time.perf_counter() - started
        for document in encoded:
            ids = array.array("H", document.ids)
            ids.append(end)
            ids.tofile(out)
            tokens += len(ids)
print(json.dumps({"encode_seconds": encoding, "whole_seconds": time.perf_counter() - begun, "tokens": tokens}))
