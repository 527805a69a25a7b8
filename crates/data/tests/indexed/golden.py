"""Writes the datasets of `golden.rs` from the description of the format alone: `python3 golden.py [FOLDER]`.

Knows nothing of the Rust code: numbers are packed by NumPy where it is there, and by `struct` where it is not. Documents are
lists of sequences; the third has none, the second and the last several.
"""
import struct
import sys
from pathlib import Path

CODES = {"uint8": (1, "B"), "int8": (2, "b"), "int16": (3, "h"), "int32": (4, "i"), "int64": (5, "q"), "uint16": (8, "H")}
DOCUMENTS = [[[1, 2, 3]], [[4], [5, 6, 7, 8]], [], [[9]], [[]], [[10, 11], [], [12, 13, 14]]]
LARGEST = {"uint8": 255, "int8": 127, "int16": 32767, "int32": 2**31 - 1, "int64": 2**32 - 1, "uint16": 65535}


def pack(kind: str, numbers: list) -> bytes:
    try:
        import numpy

        return numpy.array(numbers, dtype=numpy.dtype(kind).newbyteorder("<")).tobytes()
    except ModuleNotFoundError:
        return struct.pack(f"<{len(numbers)}{CODES[kind][1]}", *numbers)


def write(folder: Path, kind: str) -> None:
    documents = [*DOCUMENTS, [[LARGEST[kind]]]]
    sequences = [sequence for document in documents for sequence in document]
    size = struct.calcsize("<" + CODES[kind][1])
    pointers, bounds, at = [], [0], 0
    for sequence in sequences:
        pointers.append(at)
        at += len(sequence) * size
    for document in documents:
        bounds.append(bounds[-1] + len(document))
    (folder / f"{kind}.bin").write_bytes(b"".join(pack(kind, sequence) for sequence in sequences))
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, CODES[kind][0], len(sequences), len(bounds))
    index += pack("int32", [len(sequence) for sequence in sequences]) + pack("int64", pointers) + pack("int64", bounds)
    (folder / f"{kind}.idx").write_bytes(index)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name in CODES:
        write(target, name)
