"""The int8 family on Triton's interpreter, in a process of its own."""

from pathlib import Path


def test_in_the_interpreter(in_process):
    in_process(Path(__file__).with_name("process_int8.py"), interpret=True)
