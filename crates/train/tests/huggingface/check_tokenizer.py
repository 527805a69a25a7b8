"""Loads the tokenizers of exported byte runs as AutoTokenizer does: their tokens must be the 256 bytes and no more.

    python check_tokenizer.py FOLDER...
"""

import sys

import transformers

TEXT = "na\u00efve \u20ac .\n"

for folder in sys.argv[1:]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT)["input_ids"]
    assert ids == list(TEXT.encode()), f"{folder}: {ids}"
    assert tokenizer.decode(ids) == TEXT, f"{folder}: {tokenizer.decode(ids)!r}"
    assert len(tokenizer) == 256, f"{folder}: {type(tokenizer).__name__} of length {len(tokenizer)}"
    assert tokenizer.eos_token_id is None, f"{folder}: texts end at {tokenizer.eos_token_id}"
    print(f"{folder}: bytes")
