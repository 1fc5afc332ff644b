"""The HTTP application: predict, health, manifest, metrics; limits on size, time and number."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from lepton_train.packages import require
from lepton_train.serve.drift import Drift
from lepton_train.serve.predictor import InputError, Predictor

for _package in ("starlette", "prometheus_client"):
    require(_package, "lepton serve", _package.replace("_", "-"), extra="serve")

import prometheus_client as prometheus  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.exceptions import HTTPException  # noqa: E402
from starlette.requests import ClientDisconnect, Request  # noqa: E402
from starlette.responses import JSONResponse, Response  # noqa: E402
from starlette.routing import Route  # noqa: E402

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a server takes at most.

    Args:
        max_bytes (int): body of a request. Default: 4 MiB.
        max_batch (int): samples in a request. Default: 64.
        read_seconds (float): until the body has arrived. Default: 10.
        run_seconds (float): until the answer, waiting included. Default: 30.
        max_waiting (int): requests waiting or running. Default: 32.
    """

    max_bytes: int = 4 << 20
    max_batch: int = 64
    read_seconds: float = 10.0
    run_seconds: float = 30.0
    max_waiting: int = 32

    def __post_init__(self) -> None:
        """Check the values."""
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"Limits: {name} must be above 0, got {value}")


class RefusedError(Exception):
    """A request that is answered with an error.

    Args:
        status (int): of HTTP.
        code (str): for programs.
        message (str): for people.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Metrics:
    """What `/metrics` shows, in a registry of its own."""

    def __init__(self, predictor: Predictor, drift: Drift) -> None:
        registry = self.registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter(
            "lepton_requests", "Requests answered.", ["status"], registry=registry
        )
        self.samples = prometheus.Counter(
            "lepton_samples", "Samples predicted; its rate is the throughput.", registry=registry
        )
        self.latency = prometheus.Histogram(
            "lepton_request_seconds", "From the request's head to its answer.", registry=registry
        )
        self.inference = prometheus.Histogram(
            "lepton_inference_seconds", "In the model.", registry=registry
        )
        self.waiting = prometheus.Gauge(
            "lepton_waiting_requests", "Requests waiting for the model or in it.", registry=registry
        )
        self.drift = prometheus.Gauge(
            "lepton_input_drift_psi",
            "Population stability index of recent inputs against training; from 0.25 on another "
            "population.",
            ["feature"],
            registry=registry,
        )
        self._drift = drift
        info = prometheus.Info("lepton_model", "The model that is served.", registry=registry)
        metadata = predictor.manifest.metadata
        info.info(
            {
                "name": metadata.name,
                "version": str(predictor.manifest.version),
                "digest": predictor.digest,
            }
        )

    def text(self) -> bytes:
        """The page in Prometheus' text format."""
        for name, value in self._drift.indices().items():
            self.drift.labels(name).set(value)
        page: bytes = prometheus.generate_latest(self.registry)
        return page


class Server:
    """State of one application: the model, one thread that runs it, the limits.

    Args:
        predictor (Predictor): the model.
        limits (Limits): of requests.
        drift (Drift): watch on the inputs.
    """

    def __init__(self, predictor: Predictor, limits: Limits, drift: Drift) -> None:
        self.predictor, self.limits, self.drift = predictor, limits, drift
        self.metrics = Metrics(predictor, drift)
        # One at a time: a model uses all of torch's threads.
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lepton-model")
        self._waiting = 0

    async def body(self, request: Request) -> Any:
        """The request's JSON, read within the limits."""
        limits = self.limits
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RefusedError(
                415,
                "unsupported_media_type",
                f"content-type must be application/json, got {kind!r}",
            )
        too_large = RefusedError(
            413, "too_large", f"the request must be at most {limits.max_bytes} bytes"
        )
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > limits.max_bytes:
            raise too_large
        data = bytearray()

        async def read() -> None:
            async for chunk in request.stream():
                data.extend(chunk)
                if len(data) > limits.max_bytes:
                    raise too_large

        try:
            await asyncio.wait_for(read(), limits.read_seconds)
        except (TimeoutError, asyncio.TimeoutError):
            raise RefusedError(
                408, "timeout", f"the request must arrive within {limits.read_seconds:g} s"
            ) from None
        try:
            return json.loads(data, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise RefusedError(400, "bad_json", f"the request is not valid JSON: {error}") from None

    def _work(self, raw: Any) -> tuple[dict[str, Any], int]:
        inputs = self.predictor.inputs(raw)
        begin = time.perf_counter()
        result = self.predictor.predict(inputs)
        self.metrics.inference.observe(time.perf_counter() - begin)
        self.drift.add(inputs)
        return result, len(next(iter(inputs.values())))

    async def run(self, raw: Any) -> dict[str, Any]:
        """Predict in the model's thread, within the limits of time and number."""
        if self._waiting >= self.limits.max_waiting:
            raise RefusedError(503, "busy", "too many requests are waiting; try again later")
        self._waiting += 1
        self.metrics.waiting.set(self._waiting)
        future = self._pool.submit(self._work, raw)
        loop = asyncio.get_running_loop()
        # A thread can't be stopped: the request counts as waiting until it has really ended.
        future.add_done_callback(lambda _: _call_if_open(loop, self._ended))
        try:
            wrapped = asyncio.wrap_future(future)
            result, samples = await asyncio.wait_for(
                asyncio.shield(wrapped), self.limits.run_seconds
            )
        except (TimeoutError, asyncio.TimeoutError):
            future.cancel()
            wrapped.add_done_callback(_ignore)
            raise RefusedError(
                504, "timeout", f"no answer within {self.limits.run_seconds:g} s"
            ) from None
        except InputError as error:
            raise RefusedError(422, "bad_input", str(error)) from None
        self.metrics.samples.inc(samples)
        return result

    def _ended(self) -> None:
        self._waiting -= 1
        self.metrics.waiting.set(self._waiting)

    async def predict(self, request: Request) -> Response:
        """POST /predict."""
        value = await self.body(request)
        if not isinstance(value, dict) or set(value) != {"inputs"}:
            raise RefusedError(422, "bad_input", 'the request must be an object {"inputs": ...}')
        result = await self.run(value["inputs"])
        return JSONResponse(
            {
                "model": self.predictor.manifest.metadata.name,
                "version": self.predictor.manifest.version,
                **result,
            }
        )

    async def health(self, request: Request) -> Response:
        """GET /health: the model was checked at the start and its thread takes work."""
        busy = self._waiting >= self.limits.max_waiting
        return JSONResponse(
            {
                "status": "busy" if busy else "ok",
                "model": self.predictor.manifest.metadata.name,
                "version": self.predictor.manifest.version,
                "digest": self.predictor.digest,
                "torch": torch.__version__,
            },
            status_code=503 if busy else 200,
        )

    async def manifest(self, request: Request) -> Response:
        """GET /manifest."""
        return JSONResponse(self.predictor.manifest.model_dump())

    async def prometheus(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(self.metrics.text(), media_type=prometheus.CONTENT_TYPE_LATEST)

    async def answer(self, request: Request) -> Response:
        """`predict`, counted and timed, with every error as JSON."""
        begin = time.perf_counter()
        try:
            response = await self.predict(request)
        except RefusedError as error:
            response = _error(error.status, error.code, error.message)
        except ClientDisconnect:
            response = _error(400, "disconnected", "the client went away")
        except Exception:
            _LOG.exception("prediction failed")
            response = _error(500, "internal", "the model failed; see the server's log")
        self.metrics.latency.observe(time.perf_counter() - begin)
        self.metrics.requests.labels(str(response.status_code)).inc()
        return response

    def close(self) -> None:
        """End the model's thread; what waits is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def create_app(
    predictor: Predictor, *, limits: Limits | None = None, window: int = 1000
) -> Starlette:
    """The application around a checked bundle.

    Args:
        predictor (Predictor): the bundle's model.
        limits (Limits, optional): of requests. Default: None (`Limits()`).
        window (int): samples over which drift is measured. Default: 1000.

    Returns:
        Starlette: an ASGI application; `POST /predict`, `GET /health`, `/manifest`, `/metrics`.
    """
    drift = Drift(predictor.manifest.input_statistics, window)
    server = Server(predictor, limits or Limits(), drift)
    app = Starlette(
        routes=[
            Route("/predict", server.answer, methods=["POST"]),
            Route("/health", server.health, methods=["GET"]),
            Route("/manifest", server.manifest, methods=["GET"]),
            Route("/metrics", server.prometheus, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _any_error},
    )
    app.state.server = server
    return app


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _call_if_open(loop: asyncio.AbstractEventLoop, function: Any) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(function)


def _ignore(future: Any) -> None:
    if not future.cancelled():
        future.exception()


def _error(status: int, code: str, message: str) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 503 else {}
    if status in (408, 413):
        # What is left of the body is not read.
        headers["Connection"] = "close"
    value = {"error": {"code": code, "message": message}}
    return JSONResponse(value, status_code=status, headers=headers)


def _http_error(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    text = str(getattr(error, "detail", "")) or "error"
    paths = "POST /predict, GET /health, GET /manifest, GET /metrics"
    return _error(status, text.lower().replace(" ", "_"), f"{text}; there are {paths}")


def _any_error(request: Request, error: Exception) -> Response:
    return _error(500, "internal", "the server failed; see its log")
