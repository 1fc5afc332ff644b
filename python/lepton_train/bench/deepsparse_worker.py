"""The other end of `deepsparse_peer`: runs in an interpreter that has deepsparse and onnx.

Reads one JSON request a line and answers each with one line. Times are taken here, without the way
between the processes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def _model(weight: Any, bias: Any, batch: int) -> Any:
    """An ONNX model of x @ weight.T + bias."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    out_features, in_features = weight.shape
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["y"]),
    ]
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", kind, [batch, in_features])],
        [helper.make_tensor_value_info("y", kind, [batch, out_features])],
        [
            numpy_helper.from_array(np.ascontiguousarray(weight.T), "w"),
            numpy_helper.from_array(bias, "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    model.ir_version = 7
    return model


def _build(request: dict[str, Any]) -> tuple[list[Any], Any]:
    import deepsparse
    import numpy as np
    import onnx

    given = np.load(request["arrays"])
    model = _model(given["weight"], given["bias"], len(given["x"]))
    engines = []
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "linear.onnx")
        onnx.save(model, path)
        for _ in range(request["copies"]):
            engines.append(
                deepsparse.Engine(path, batch_size=len(given["x"]), num_cores=request["threads"])
            )
    return engines, given["x"]


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the engine prints
    engines: list[Any] = []
    x: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if "arrays" in request:
                engines = []
                engines, x = _build(request)
            elif "save" in request:
                import numpy as np

                np.save(request["save"], engines[0].run([x])[0])
            else:
                engine = engines[request["time"]]
                start = time.perf_counter_ns()
                engine.run([x], val_inp=False)
                answer["seconds"] = (time.perf_counter_ns() - start) * 1e-9
        except Exception as error:  # the answer carries it to the other side
            answer["error"] = f"{type(error).__name__}: {error}"
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
