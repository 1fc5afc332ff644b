"""Run the application with uvicorn."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from lepton_train.bundle.architecture import Builder
from lepton_train.packages import require
from lepton_train.serve.app import Limits, create_app
from lepton_train.serve.predictor import Predictor


def serve(
    path: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    builders: Mapping[str, Builder] | None = None,
    digest: str | None = None,
) -> None:
    """Serve a bundle until the process is told to stop.

    Args:
        path (str or path): the bundle; checked first, golden outputs included.
        host (str): address to listen on; there is no login, so anything but this machine belongs
            behind a proxy that has one. Default: "127.0.0.1".
        port (int): 0 takes a free one. Default: 8000.
        limits (Limits, optional): of requests. Default: None (`Limits()`).
        builders, digest: as in `bundle.load`.

    Raises:
        BundleError: the bundle is not served.
        OSError: the port is taken.
    """
    uvicorn = require("uvicorn", "lepton serve", extra="serve")
    limits = limits or Limits()
    predictor = Predictor(path, builders=builders, digest=digest, max_batch=limits.max_batch)
    app = create_app(predictor, limits=limits)
    config = uvicorn.Config(
        app,
        log_level="warning",
        server_header=False,
        limit_concurrency=8 * limits.max_waiting,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
    )
    with socket.create_server((host, port)) as listening:
        address = "{}:{}".format(*listening.getsockname()[:2])
        name = predictor.manifest.metadata.name
        print(
            f"serving {name} on http://{address} (POST /predict, GET /health, /metrics)", flush=True
        )
        try:
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            app.state.server.close()
