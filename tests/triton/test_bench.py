"""Triton's rows of the benchmark."""

from pathlib import Path


def test_in_the_interpreter(in_process):
    in_process(Path(__file__).parent / "process_bench.py", interpret=True)
