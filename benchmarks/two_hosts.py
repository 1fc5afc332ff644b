"""Training over a slow network: two network namespaces joined by a link held to 1 Gbit/s.

    sudo python benchmarks/two_hosts.py [--mbit 1000] [--only step|fashion] [--json FILE]

Rank 0 and rank 1 live in a namespace each and see each other through a pair of virtual Ethernet
devices that `tc` slows down. Both use torch.distributed (gloo); shared memory is switched off.
Every way of averaging takes its turn in each round, so that the ratios come from one run. Also
trains a small network on Fashion-MNIST, where Debian's dataset-fashion-mnist is installed, with and
without compression, from several seeds; `--only fashion` adds that to what the file holds. Needs
root, `ip` and `tc`; says why and ends with status 0 where that is not allowed.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOSTS = ("lepton_a", "lepton_b")
ADDRESSES = ("10.213.77.1", "10.213.77.2")
PORT = "29653"
LAYERS, WIDTH, BATCH, ROUNDS = 16, 1024, 32, 7
EPOCHS, SEEDS, GLOBAL_BATCH = 3, (0, 1, 2, 3, 4), 256
FACTORS = "+factors"  # the default; ways without it are measured with sufficient_factors=False
WAYS = ("ddp_fp32", "fp32", "bf16", "int8", "powersgd", "fp32+factors", "int8+factors")
FASHION_WAYS = ("fp32", "bf16", "int8")


def ip(*arguments: str) -> None:
    """Run `ip`; RuntimeError with what it said."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def join_hosts(mbit: int) -> None:
    """Two namespaces and a link between them, held to `mbit` each way."""
    for host in HOSTS:
        ip("netns", "add", host)
    ip("link", "add", "lepton0", "netns", HOSTS[0], "type", "veth", "peer", "lepton1")
    ip("link", "set", "lepton1", "netns", HOSTS[1])
    for i, host in enumerate(HOSTS):
        inside = ["netns", "exec", host]
        ip("-n", host, "addr", "add", f"{ADDRESSES[i]}/24", "dev", f"lepton{i}")
        ip("-n", host, "link", "set", f"lepton{i}", "up")
        ip("-n", host, "link", "set", "lo", "up")
        limit = ["root", "tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "50ms"]
        ip(*inside, "tc", "qdisc", "add", "dev", f"lepton{i}", *limit)


def part_hosts() -> None:
    """Remove what `join_hosts` made."""
    for host in HOSTS:
        subprocess.run(["ip", "netns", "del", host], capture_output=True, check=False)


def run_ranks(only: str | None) -> dict[str, Any]:
    """Start both ranks and return what rank 0 measured."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        ranks = []
        for number, host in enumerate(HOSTS):
            environment = {
                **os.environ,
                "MASTER_ADDR": ADDRESSES[0],
                "MASTER_PORT": PORT,
                "RANK": str(number),
                "WORLD_SIZE": "2",
                "GLOO_SOCKET_IFNAME": f"lepton{number}",
                "OMP_NUM_THREADS": "1",
            }
            own = [sys.executable, "-P", __file__, "--rank-result", str(result)]
            command = ["ip", "netns", "exec", host, *own, *(["--only", only] if only else [])]
            ranks.append(subprocess.Popen(command, env=environment))
        try:
            codes = [rank.wait() for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        if any(codes):
            raise RuntimeError(f"the ranks ended with {codes}")
        return json.loads(result.read_text())


def wrapped(way: str, module: Any) -> Any:
    """`module` averaged in one of the ways."""
    from lepton_train.distributed import BucketedDataParallel
    from torch.nn.parallel import DistributedDataParallel

    if way == "ddp_fp32":
        return DistributedDataParallel(module, gradient_as_bucket_view=True)
    kind = way.removesuffix(FACTORS)
    return BucketedDataParallel(
        module,
        shared_memory=False,
        compression=None if kind == "fp32" else kind,
        bucket_cap_mb=8,
        sufficient_factors=None if way.endswith(FACTORS) else False,
    )


def gradient_error(model: Any, exact: Any) -> float:
    """Of all gradients: the largest error, where 1 is the gradient's largest element."""
    plain = getattr(model, "module", model)
    return max(
        ((p.grad - q.grad).abs().max() / q.grad.abs().max()).item()
        for p, q in zip(plain.parameters(), exact.parameters(), strict=True)
    )


def step_seconds() -> tuple[dict[str, float], dict[str, float]]:
    """Of a forward and backward of sixteen linear layers, way by way: median seconds, and the
    error of the last gradients against float64."""
    import torch
    import torch.distributed as dist
    from torch import nn

    torch.manual_seed(0)
    layers = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])
    models = {way: wrapped(way, copy.deepcopy(layers)) for way in WAYS}
    inputs = torch.randn(dist.get_world_size(), BATCH, WIDTH)
    x = inputs[dist.get_rank()]
    exact = layers.double()
    for each in inputs.double():
        (exact(each).sin().mean() / len(inputs)).backward()

    def seconds(step: Callable[[], None]) -> float:
        dist.barrier()
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin

    def step_of(model: Any) -> Callable[[], None]:
        def step() -> None:
            model.zero_grad()
            model(x).sin().mean().backward()

        return step

    samples: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(ROUNDS + 3):  # three to learn the order and to leave PowerSGD's exact steps
        for way, model in models.items():
            taken = seconds(step_of(model))
            if turn >= 3:
                samples[way].append(taken)
    errors = {way: gradient_error(model, exact) for way, model in models.items()}
    return {way: statistics.median(values) for way, values in samples.items()}, errors


def fashion_losses() -> dict[str, list[dict[str, float]]]:
    """Final test loss and accuracy of a small network, way by way and seed by seed."""
    import lepton_train as lt
    import torch
    from torch import nn

    rank = int(os.environ["RANK"])
    train, test = lt.data.load_fashion_mnist("train"), lt.data.load_fashion_mnist("test")
    results: dict[str, list[dict[str, float]]] = {way: [] for way in FASHION_WAYS}
    for seed in SEEDS:
        for way in FASHION_WAYS:
            torch.manual_seed(seed)
            layers = [nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10)]
            model = wrapped(way, nn.Sequential(*layers))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            for _ in range(EPOCHS):
                order = torch.randperm(len(train.labels))
                for i in range(0, len(order) - GLOBAL_BATCH + 1, GLOBAL_BATCH):
                    rows = order[i : i + GLOBAL_BATCH].chunk(2)[rank]
                    loss = nn.functional.cross_entropy(
                        model(train.inputs[rows]), train.labels[rows]
                    )
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            with torch.no_grad():
                out = model.module(test.inputs)
            found = {
                "loss": nn.functional.cross_entropy(out, test.labels).item(),
                "accuracy": (out.argmax(1) == test.labels).float().mean().item(),
            }
            results[way].append(found)
    return results


def measure(result: Path, only: str | None) -> None:
    """What each rank does."""
    import torch
    import torch.distributed as dist
    from lepton_train.distributed import join_torchrun
    from lepton_train.recipe_page import version_of

    torch.set_num_threads(1)
    join_torchrun()
    found: dict[str, Any] = {}
    where = f"torch {torch.__version__}, lepton-kernels {version_of(__file__)}"
    if only != "fashion":
        seconds, errors = step_seconds()
        found |= {"step": seconds, "step_errors": errors, "step_at": where}
    if only != "step":
        try:
            found |= {"fashion": fashion_losses(), "fashion_at": where}
        except FileNotFoundError as reason:
            print(f"Fashion-MNIST skipped: {reason}", file=sys.stderr)
    if dist.get_rank() == 0:
        result.write_text(json.dumps(found))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # the threads of gloo may complain about who leaves first


def step_table(found: dict[str, Any]) -> list[str]:
    """Steps, each beside DDP's."""
    base = found["step"]["ddp_fp32"]
    what = f"{LAYERS} linear layers, batch {BATCH}, {found['mbit']} Mbit/s"
    head = f"| {what} | ms a step | times DDP | largest error of a gradient |"
    lines = [found["step_at"] + ".", "", head, "|---|---|---|---|"]
    for way, seconds in found["step"].items():
        error = found["step_errors"][way]
        lines.append(f"| {way} | {1e3 * seconds:.0f} | {base / seconds:.2f} | {error:.1e} |")
    return lines


def fashion_table(found: dict[str, Any]) -> list[str]:
    """Losses and accuracies over the seeds, and what each seed loses to compression."""
    exact = found["fashion"]["fp32"]
    what = f"Fashion-MNIST, {EPOCHS} epochs, {len(exact)} seeds"
    head = f"| {what} | test loss | accuracy | loss minus fp32's, by seed |"
    lines = [found["fashion_at"] + ".", "", head, "|---|---|---|---|"]
    for way, rows in found["fashion"].items():
        cells = []
        for key in ("loss", "accuracy"):
            values = [row[key] for row in rows]
            spread = f"{min(values):.4f} to {max(values):.4f}"
            cells.append(f"{statistics.mean(values):.4f} ({spread})")
        more = [row["loss"] - other["loss"] for row, other in zip(rows, exact, strict=True)]
        spread = f"{min(more):+.4f} to {max(more):+.4f}"
        cells.append(f"{statistics.mean(more):+.4f} ({spread})" if way != "fp32" else "")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return lines


def tables(found: dict[str, Any]) -> list[str]:
    """What was measured, as Markdown."""
    parts = [step_table(found)] if "step" in found else []
    parts += [fashion_table(found)] if "fashion" in found else []
    return [line for part in parts for line in (*part, "")][:-1]


def main() -> int:
    """Make the hosts, measure, remove them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbit", type=int, default=1000, help="of the link (default: 1000)")
    parser.add_argument("--only", choices=("step", "fashion"), help="(default: both)")
    parser.add_argument("--json", type=Path, help="write what was measured, or add a part of it")
    parser.add_argument("--rank-result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_result is not None:
        measure(arguments.rank_result, arguments.only)
        return 0
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            print(f"skipped: {tool} is not installed (Debian: apt-get install iproute2)")
            return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing stays behind
    part_hosts()
    try:
        join_hosts(arguments.mbit)
    except RuntimeError as reason:
        part_hosts()
        print(f"skipped: network namespaces are not allowed here: {reason}")
        return 0
    try:
        found = run_ranks(arguments.only)
    finally:
        part_hosts()
    if "step" in found:
        found["mbit"] = arguments.mbit
    print("\n".join(tables(found)))
    if arguments.json is not None:
        if arguments.only and arguments.json.exists():
            found = json.loads(arguments.json.read_text()) | found
        arguments.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
