"""Splits of a data set over clients, with unbalanced labels."""

from __future__ import annotations

import torch


def dirichlet_partition(
    labels: torch.Tensor, clients: int, *, alpha: float = 0.5, seed: int = 0, least: int = 10
) -> list[torch.Tensor]:
    """Give each client its own mix of labels: for every label, shares drawn from Dir(alpha).

    Args:
        labels (Tensor): int, shape (examples,).
        clients (int): at least 1.
        alpha (float): above 0; small is unbalanced, 100 is nearly even. Default: 0.5.
        seed (int): of the draw. Default: 0.
        least (int): examples that each client gets at least; drawn again until so. Default: 10.

    Returns:
        list of Tensor: int64 indices of each client, each example once, in random order.

    Raises:
        ValueError: arguments out of range, or too few examples.

    Source: Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for
    Federated Visual Classification", 2019.

    Example:
        >>> parts = dirichlet_partition(torch.arange(1000) % 10, 4, alpha=0.5)
        >>> sorted(torch.cat(parts).tolist()) == list(range(1000))
        True
    """
    op = "dirichlet_partition"
    if clients < 1 or not alpha > 0 or least < 0:
        raise ValueError(
            f"{op}: clients must be at least 1, alpha above 0, least at least 0; "
            f"got {clients}, {alpha}, {least}"
        )
    if len(labels) < clients * least:
        raise ValueError(f"{op}: {len(labels)} examples can't give {clients} clients {least} each")
    generator = torch.Generator().manual_seed(seed)
    by_label = [torch.nonzero(labels == value).flatten() for value in labels.unique()]
    for _ in range(1000):
        parts: list[list[torch.Tensor]] = [[] for _ in range(clients)]
        for indices in by_label:
            order = indices[torch.randperm(len(indices), generator=generator)]
            gamma = torch._standard_gamma(
                torch.full((clients,), alpha, dtype=torch.float64), generator=generator
            ).clamp(min=1e-300)
            bounds = (gamma.cumsum(0) / gamma.sum() * len(order)).round().long()[:-1]
            for part, piece in zip(parts, order.tensor_split(bounds), strict=True):
                part.append(piece)
        found = [torch.cat(part) for part in parts]
        if min(len(each) for each in found) >= least:
            return [each[torch.randperm(len(each), generator=generator)] for each in found]
    raise ValueError(
        f"{op}: no draw gave each of {clients} clients {least} examples; raise alpha or lower least"
    )
