import json
import threading
import time

import lepton_train as lt
import pytest
import torch
from lepton_train.bundle import BundleError
from lepton_train.serve import Limits, Predictor, statistics
from torch import nn


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


@pytest.fixture
def saved(tmp_path, model):
    lt.quantize_(model)
    lt.bundle.save(
        model,
        tmp_path / "model",
        metadata={
            "name": "iris",
            "labels": ["a", "b", "c"],
            "preprocessing": {"kind": "standardize", "mean": [1.0] * 6, "std": 2.0},
        },
        example_inputs=torch.randn(4, 6),
        input_statistics=statistics(torch.randn(4000, 6)),
    )
    return tmp_path / "model"


def test_predict(saved, model, run_server):
    x = torch.randn(5, 6)
    expected = model((x - 1) / 2)
    with run_server(Predictor(saved)) as client:
        status, answer = client.predict(x.tolist())
    assert status == 200
    assert torch.equal(torch.tensor(answer["outputs"]["output"]), expected)
    assert [p["index"] for p in answer["predictions"]] == expected.argmax(1).tolist()
    assert answer["predictions"][0]["label"] in "abc"
    assert answer["model"] == "iris"
    assert answer["version"] == 1


def test_health_manifest_and_unknown_paths(saved, run_server):
    with run_server(Predictor(saved)) as client:
        status, answer = client.get("/health")
        assert (status, answer["status"]) == (200, "ok")
        assert answer["digest"] == lt.bundle.verify(saved).digest
        assert client.get("/manifest")[1]["metadata"]["name"] == "iris"
        status, answer = client.get("/nothing")
        assert (status, answer["error"]["code"]) == (404, "not_found")
        assert "POST /predict" in answer["error"]["message"]
        assert client.get("/predict")[0] == 405


ROW = [0.0] * 6


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ("{", 400, "not valid JSON"),
        ('{"inputs": [[NaN, 0, 0, 0, 0, 0]]}', 400, "NaN is no JSON number"),
        ("[" * 100_000, 400, "not valid JSON"),
        ("[]", 422, 'must be an object {"inputs": ...}'),
        ({"inputs": [ROW], "more": 1}, 422, 'must be an object {"inputs": ...}'),
        ({"inputs": []}, 422, "inputs must hold 1 to 8 samples, got 0"),
        ({"inputs": [ROW] * 9}, 422, "inputs must hold 1 to 8 samples, got 9"),
        ({"inputs": [ROW, [1.0]]}, 422, "nested lists of numbers, all of one length"),
        ({"inputs": [["a"] * 6]}, 422, "nested lists of numbers"),
        ({"inputs": [[1.0] * 5]}, 422, r"must have shape (samples, 6), got (1, 5)"),
        ({"inputs": [1.0]}, 422, r"must have shape (samples, 6), got (1,)"),
        ({"inputs": [[1e999] * 6]}, 400, "Infinity is no JSON number"),
        ({"inputs": {"x": [ROW]}}, 422, "inputs must be an object with input_0; got x"),
        ({"inputs": 3}, 422, "must be a list of samples, got int"),
        ({"inputs": [[10**400] * 6]}, 422, "nested lists of numbers"),
    ],
)
def test_bad_requests(saved, run_server, body, status, text):
    with run_server(Predictor(saved, max_batch=8)) as client:
        got, answer = client.send("POST", "/predict", body, **{"Content-Type": "application/json"})
        assert (got, text in answer["error"]["message"]) == (status, True), answer
        assert client.predict([ROW])[0] == 200


def test_huge_numbers_that_json_reads_as_infinity(saved, run_server):
    with run_server(Predictor(saved)) as client:
        body = '{"inputs": [[1e999, 0, 0, 0, 0, 0]]}'
        status, answer = client.send(
            "POST", "/predict", body, **{"Content-Type": "application/json"}
        )
    assert status == 422
    assert "must be finite" in answer["error"]["message"]


def test_content_type(saved, run_server):
    with run_server(Predictor(saved)) as client:
        status, answer = client.send("POST", "/predict", "inputs=1", **{"Content-Type": "text/x"})
    assert status == 415
    assert "application/json" in answer["error"]["message"]


def test_too_large_by_its_header_and_by_its_body(saved, run_server):
    limits = Limits(max_bytes=1000)
    with run_server(Predictor(saved), limits=limits) as client:
        status, answer = client.send("POST", "/predict", {"inputs": [ROW] * 100})
        assert (status, answer["error"]["code"]) == (413, "too_large")
        assert "at most 1000 bytes" in answer["error"]["message"]
        head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        chunked = head + "Transfer-Encoding: chunked\r\n\r\n" + "400\r\n" + "1" * 1024 + "\r\n"
        assert client.raw(chunked.encode()).startswith(b"HTTP/1.1 413")
        lying = head + "Content-Length: 99999999999\r\n\r\n"
        assert client.raw(lying.encode()).startswith(b"HTTP/1.1 413")
        assert client.predict([ROW])[0] == 200


def test_a_body_that_never_arrives(saved, run_server):
    with run_server(Predictor(saved), limits=Limits(read_seconds=0.2)) as client:
        head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        answer = client.raw((head + "Content-Length: 100\r\n\r\n{").encode())
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"must arrive within 0.2 s" in answer


class Gate(nn.Module):
    """Waits in its forward until it is let through."""

    opened = threading.Event()
    opened.set()

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        Gate.opened.wait(60)
        return self.linear(x)


@pytest.fixture
def slow(tmp_path):
    lt.bundle.register_builder("tests.gate", Gate)
    lt.bundle.save(Gate(), tmp_path / "slow", builder="tests.gate", example_inputs=torch.ones(1, 2))
    yield Predictor(tmp_path / "slow")
    Gate.opened.set()


def eventually(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_time_limit_and_full_queue(slow, run_server):
    limits = Limits(run_seconds=0.2, max_waiting=1)
    with run_server(slow, limits=limits) as client:
        Gate.opened.clear()
        status, answer = client.predict([[1.0, 2.0]])
        assert (status, answer["error"]["code"]) == (504, "timeout")
        # The model still runs: the place in the queue is not free yet.
        status, answer = client.predict([[1.0, 2.0]])
        assert (status, answer["error"]["code"]) == (503, "busy")
        assert client.get("/health")[0] == 503
        Gate.opened.set()
        eventually(lambda: client.get("/health")[0] == 200)
        assert client.predict([[1.0, 2.0]])[0] == 200


class Broken(Gate):
    def forward(self, x):
        if float(x[0, 0]) == 13:
            raise RuntimeError("secret detail")
        return self.linear(x)


def test_a_model_that_fails_tells_nothing_to_the_client(tmp_path, run_server, caplog):
    lt.bundle.register_builder("tests.broken", Broken)
    lt.bundle.save(
        Broken(), tmp_path / "b", builder="tests.broken", example_inputs=torch.ones(1, 2)
    )
    with run_server(Predictor(tmp_path / "b")) as client:
        status, answer = client.predict([[13, 0]])
        assert (status, answer["error"]["code"]) == (500, "internal")
        assert "secret" not in json.dumps(answer)
        assert client.predict([[1, 0]])[0] == 200
    assert "secret detail" in caplog.text


def test_many_clients_at_once(saved, model, run_server):
    x = torch.randn(12, 3, 6)
    answers = [None] * 12

    def ask(client, index):
        answers[index] = client.predict(x[index].tolist())

    with run_server(Predictor(saved)) as client:
        threads = [threading.Thread(target=ask, args=(client, i)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for index, (status, answer) in enumerate(answers):
        assert status == 200
        expected = model((x[index] - 1) / 2)
        assert torch.equal(torch.tensor(answer["outputs"]["output"]), expected)


def metric(page, name):
    lines = [line for line in page.splitlines() if line.startswith(name + " ")]
    return float(lines[0].split()[-1]) if lines else None


def test_metrics_and_drift(saved, run_server):
    with run_server(Predictor(saved), window=400) as client:
        # The model's inputs are standardised: these are like those in training, then not.
        for _ in range(6):
            assert client.predict((torch.randn(50, 6) * 2 + 1).tolist())[0] == 200
        client.predict([[1.0]])
        page = client.get("/metrics")[1].decode()
        assert metric(page, "lepton_samples_total") == 300
        assert metric(page, 'lepton_requests_total{status="200"}') == 6
        assert metric(page, 'lepton_requests_total{status="422"}') == 1
        assert metric(page, "lepton_request_seconds_count") == 7
        assert metric(page, "lepton_inference_seconds_count") == 6
        assert metric(page, "lepton_waiting_requests") == 0
        feature = 'lepton_input_drift_psi{feature="input_0[2]"}'
        assert metric(page, feature) < 0.25
        for _ in range(8):
            client.predict((torch.randn(50, 6) * 2 + 4).tolist())
        assert metric(client.get("/metrics")[1].decode(), feature) > 1
        assert 'lepton_model_info{digest="' in page


def test_a_damaged_bundle_is_not_served(saved):
    (saved / "weights.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match="truncated"):
        Predictor(saved)


def test_limits_are_checked():
    with pytest.raises(ValueError, match="Limits: max_batch must be above 0, got 0"):
        Limits(max_batch=0)
