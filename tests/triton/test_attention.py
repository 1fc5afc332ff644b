"""Attention on Triton kernels, in the interpreter: process_attention.py in a process of its own."""

from pathlib import Path


def test_in_the_interpreter(in_process):
    in_process(Path(__file__).with_name("process_attention.py"), interpret=True)
