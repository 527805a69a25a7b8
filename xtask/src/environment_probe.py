"""Exits with 0 if this process can read a child's memory by process_vm_readv."""

import ctypes
import os
import signal
import sys


class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def main():
    source = ctypes.create_string_buffer(b"mark", 8)
    sink = ctypes.create_string_buffer(8)
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        near = Vector(ctypes.addressof(sink), 8)
        far = Vector(ctypes.addressof(source), 8)
        count = libc.process_vm_readv(child, ctypes.byref(near), 1, ctypes.byref(far), 1, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    sys.exit(0 if count == 8 and sink.value == b"mark" else 1)


main()
