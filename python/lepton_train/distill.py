"""Distillation: a small model learns what a large one answers."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from lepton_train.arguments import check_number
from lepton_train.data.examples import BatchedDataset
from lepton_train.files import write_whole
from lepton_train.training import FitResult, fit
from lepton_train.training.batches import Batches, as_data, labelled, rows_of, to_device
from lepton_train.training.evaluation import device_of
from lepton_train.training.outputs import Loss, call, check_range, choose_loss

LABELS = ("soft", "hard", "both")
SOFT_LOSSES = ("kl", "mse", "cosine")
# The label of an example that has none: the class that torch's cross entropy ignores.
UNLABELLED = -100
_OP = "Distiller"


class Distiller(nn.Module):
    """Trains a student on a teacher's answers; called, it is the student.

    The loss is `alpha * soft + (1 - alpha) * hard + layer_weight * layers`, of which "soft" and
    "hard" have one of the first two alone. Soft: temperature**2 times the Kullback-Leibler
    divergence of the softened distributions (or a distance of outputs that are no logits). Hard:
    the usual loss against labels; with labels "hard" the teacher's own decisions, with "both" those
    of the data where they have any (-100 says that an example has none).

    Args:
        teacher (nn.Module): not changed; runs in evaluation mode without gradients.
        student (nn.Module): trained in place; gives outputs of the teacher's shape.
        labels (str): "soft", "hard" or "both". Default: "both".
        temperature (float): softens both distributions; positive. Default: 2.
        alpha (float): weight of soft against hard, in [0, 1]; of use with "both". Default: 0.5.
        soft_loss (str): "kl" for logits, "mse", or "cosine" for embeddings. Default: "kl".
        hard_labels (str, optional): "teacher" or "data". Default: None ("teacher" with "hard",
            "data" with "both").
        layers (mapping, optional): name of a module of the teacher to one of the student, whose
            outputs shall be alike; where their last dimensions differ a linear projection of the
            student's is trained along. Default: None.
        layer_weight (float): Default: 1.
        loss (str or callable, optional): the hard loss, as in `fit`. Default: None.

    Raises:
        ValueError: an argument is unknown or out of range, or names no module (the message gives
            the nearest name).
        TypeError: teacher or student is no nn.Module, or a number is none.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015 (soft);
    Touvron et al., "Training data-efficient image transformers", 2021 (the teacher's decisions);
    Romero et al., "FitNets", 2015 (layers).

    Example:
        >>> import torch, lepton_train as lt
        >>> teacher, student = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
        >>> distiller = lt.Distiller(teacher, student, labels="soft", temperature=3.0)
        >>> x = torch.randn(64, 4)
        >>> result = distiller.fit((x, torch.zeros(64).long()), lr=0.05, epochs=2, progress=False)
        >>> result.history[1]["train_loss"] < result.history[0]["train_loss"]
        True
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        labels: str = "both",
        temperature: float = 2.0,
        alpha: float = 0.5,
        soft_loss: str = "kl",
        hard_labels: str | None = None,
        layers: Mapping[str, str] | None = None,
        layer_weight: float = 1.0,
        loss: str | Loss | None = None,
    ) -> None:
        super().__init__()
        for name, module in (("teacher", teacher), ("student", student)):
            if not isinstance(module, nn.Module):
                raise TypeError(
                    f"{_OP}: {name} must be a torch.nn.Module, got {type(module).__name__}"
                )
        for name, value, known in (
            ("labels", labels, LABELS),
            ("soft_loss", soft_loss, SOFT_LOSSES),
            ("hard_labels", hard_labels, (None, "teacher", "data")),
        ):
            if value not in known:
                names = ", ".join(map(str, known))
                raise ValueError(f"{_OP}: {name} must be one of {names}; got {value!r}")
        check_number(_OP, "temperature", temperature)
        check_number(_OP, "alpha", alpha)
        check_number(_OP, "layer_weight", layer_weight)
        if not temperature > 0:
            raise ValueError(f"{_OP}: temperature must be positive, got {temperature}")
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"{_OP}: alpha must lie in [0, 1], got {alpha}")
        # In a tuple, so that it is no part of the module: neither trained nor saved with it.
        self._teacher = (teacher,)
        self.student = student
        self.labels, self.temperature, self.alpha = labels, temperature, alpha
        self.soft_loss, self.layer_weight = soft_loss, layer_weight
        self.hard_labels = hard_labels or ("teacher" if labels == "hard" else "data")
        self.layers = dict(layers or {})
        self._hard = choose_loss(_OP, loss)
        self.projections = nn.ModuleDict()
        self._watched = [
            (_module(teacher, "teacher", t), _module(student, "student", s))
            for t, s in self.layers.items()
        ]

    @property
    def teacher(self) -> nn.Module:
        """The teacher."""
        return self._teacher[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The student's answer.

        Args:
            *args, **kwargs: as the student takes them.

        Returns:
            any: what the student gives.
        """
        return self.student(*args, **kwargs)

    def teach(self, inputs: Any) -> dict[str, torch.Tensor]:
        """The teacher's answers to the inputs of a batch.

        Args:
            inputs (any): of one batch, on the teacher's device.

        Returns:
            dict: `output`, and by name the outputs of `layers`.
        """
        self.teacher.eval()
        with torch.no_grad(), _Watch({n: m for (n, _), (m, _) in self._pairs()}) as seen:
            output = call(self.teacher, inputs)
        return {"output": output, **seen}

    def _pairs(self) -> list[tuple[tuple[str, str], tuple[nn.Module, nn.Module]]]:
        return list(zip(self.layers.items(), self._watched, strict=True))

    def step(self, model: Callable[..., Any], batch: Any) -> torch.Tensor:
        """Loss of a batch, to pass as `fit(training_step=...)`.

        Args:
            model (callable): the distiller, or a wrapper around it.
            batch (any): as in `fit`; one of `cache` carries the teacher's answers.

        Returns:
            Tensor: the loss, scalar.

        Raises:
            ValueError: the shapes of teacher and student do not match, or labels are missing.
        """
        answers = None
        if isinstance(batch, Mapping) and "teacher" in batch:
            answers, batch = batch["teacher"], batch["batch"]
        if self.labels == "soft" or self.hard_labels == "teacher":
            inputs = _inputs(batch)
            truth = None
        else:
            inputs, truth = labelled(_OP, batch)
        if answers is None:
            answers = self.teach(inputs)
        with _Watch({n: m for (_, n), (_, m) in self._pairs()}) as seen:
            output = call(model, inputs)
        target = answers["output"]
        if output.shape != target.shape:
            raise ValueError(
                f"{_OP}: student and teacher must give outputs of one shape, got "
                f"{tuple(output.shape)} and {tuple(target.shape)}"
            )
        loss = output.new_zeros((), dtype=torch.float32)
        if self.labels != "hard":
            share = 1.0 if self.labels == "soft" else self.alpha
            loss = loss + share * self._soft(output.float(), target.float())
        if self.labels != "soft":
            share = 1.0 if self.labels == "hard" else 1.0 - self.alpha
            if truth is None:
                truth = target.argmax(-1)
            elif not truth.is_floating_point() and bool((truth == UNLABELLED).any()):
                truth = torch.where(truth == UNLABELLED, target.argmax(-1), truth)
            check_range(_OP, output, truth)
            loss = loss + share * self._hard(output, truth)
        for (theirs, ours), _ in self._pairs():
            distance = self._layer_loss(theirs, answers[theirs].float(), seen[ours].float())
            loss = loss + self.layer_weight * distance
        return loss

    def _soft(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.soft_loss == "mse":
            return nn.functional.mse_loss(output, target)
        if self.soft_loss == "cosine":
            return (1.0 - nn.functional.cosine_similarity(output, target, dim=-1)).mean()
        # The factor keeps the gradients at the size that they have at temperature 1.
        return self.temperature**2 * nn.functional.kl_div(
            (output / self.temperature).log_softmax(-1).flatten(0, -2),
            (target / self.temperature).log_softmax(-1).flatten(0, -2),
            reduction="batchmean",
            log_target=True,
        )

    def _layer_loss(self, name: str, theirs: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
        key = name.replace(".", "/")
        if key in self.projections:
            ours = self.projections[key](ours)
        if theirs.shape != ours.shape:
            raise ValueError(
                f"{_OP}: layer {name!r} gives {tuple(theirs.shape)} in the teacher and "
                f"{tuple(ours.shape)} in the student; only the last dimension may differ"
            )
        return nn.functional.mse_loss(ours, theirs)

    def prepare(self, inputs: Any) -> None:
        """Make the projections that `layers` need; `fit` calls it.

        Args:
            inputs (any): of one batch, on the device of both models.
        """
        if not self.layers:
            return
        answers = self.teach(inputs)
        mode = self.student.training
        self.student.eval()
        with torch.no_grad(), _Watch({n: m for (_, n), (_, m) in self._pairs()}) as seen:
            call(self.student, inputs)
        self.student.train(mode)
        for (theirs, ours), _ in self._pairs():
            wide, narrow = answers[theirs].shape[-1], seen[ours].shape[-1]
            key = theirs.replace(".", "/")
            if wide != narrow and key not in self.projections:
                self.projections[key] = nn.Linear(narrow, wide).to(seen[ours].device)

    def cache(
        self, data: Any, path: str | os.PathLike[str] | None = None, *, batch_size: int = 64
    ) -> CachedAnswers:
        """Ask the teacher once; training then runs without it.

        Not with augmentation, which changes the inputs from epoch to epoch.

        Args:
            data (any): Examples, a Dataset or (inputs, labels) of tensors.
            path (str or path, optional): safetensors file, read if it is there and fits the data,
                else written. Default: None.
            batch_size (int): Default: 64.

        Returns:
            CachedAnswers: data for `fit`.

        Raises:
            TypeError: data have no places, as a DataLoader.
            ValueError: the file belongs to data of another length or other layers.
        """
        source = as_data(f"{_OP}.cache", data)
        if not hasattr(source, "__getitem__"):
            raise TypeError(f"{_OP}.cache: data must be a Dataset or tensors, not a DataLoader")
        file = None if path is None else Path(path)
        if file is not None and file.is_file():
            return CachedAnswers(source, _read_answers(file, len(source), set(self.layers)))
        device = device_of(self.teacher)
        parts = [
            self.teach(to_device(_inputs(batch), device))
            for batch in Batches(f"{_OP}.cache", source, batch_size).epoch(0)
        ]
        answers = {key: torch.cat([part[key].cpu() for part in parts]) for key in parts[0]}
        if file is not None:
            from safetensors.torch import save_file

            plain = {key: value.contiguous() for key, value in answers.items()}
            write_whole(file, lambda place: save_file(plain, place))
        return CachedAnswers(source, answers)

    def fit(self, train_data: Any, val_data: Any = None, **options: Any) -> FitResult:
        """Train the student: `lt.fit` with this loss.

        Args:
            train_data (any): as in `fit`, or what `cache` gave.
            val_data (any, optional): as in `fit`. Default: None.
            **options: of `fit`.

        Returns:
            FitResult: as `fit`.

        Raises:
            ValueError: augment with cached answers, or as `fit`.
        """
        cached = isinstance(train_data, CachedAnswers)
        if cached and options.get("augment") is not None:
            raise ValueError(f"{_OP}.fit: augment changes inputs that the cached answers belong to")
        device = device_of(self.student)
        self.teacher.to(device)
        if self.layers:
            source = train_data.source if cached else train_data
            first = next(iter(Batches(f"{_OP}.fit", source, 2).epoch(0)))
            self.prepare(to_device(_inputs(first), device))
        return fit(self, train_data, val_data, training_step=self.step, device=device, **options)


class CachedAnswers(BatchedDataset):
    """Data with a teacher's answers beside them; made by `Distiller.cache`.

    Args:
        source (Dataset): the data.
        answers (dict of Tensors): each with one entry per example.
    """

    def __init__(self, source: Any, answers: dict[str, torch.Tensor]) -> None:
        self.source, self.answers = source, answers

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.source)

    def batch(self, indices: Sequence[int] | torch.Tensor) -> dict[str, Any]:
        """`batch` as the data alone would give it, and `teacher`."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        if isinstance(self.source, BatchedDataset):
            batch = self.source.batch(chosen)
        else:
            batch = default_collate([self.source[index] for index in chosen.tolist()])
        return {"batch": batch, "teacher": {k: v[chosen] for k, v in self.answers.items()}}


class _Watch:
    """Collects the outputs of modules while it is open."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._hooks: list[Any] = []

    def __enter__(self) -> dict[str, torch.Tensor]:
        seen: dict[str, torch.Tensor] = {}

        def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                seen[name] = output[0] if isinstance(output, tuple | list) else output

            return hook

        self._hooks = [m.register_forward_hook(hook_for(n)) for n, m in self._modules.items()]
        return seen

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


def _module(model: nn.Module, role: str, name: str) -> nn.Module:
    modules = dict(model.named_modules())
    if name not in modules or not name:
        near = difflib.get_close_matches(name, [key for key in modules if key], n=3, cutoff=0.0)
        raise ValueError(
            f"{_OP}: layers names {name!r}, which the {role} lacks; nearest: {', '.join(near)}"
        )
    return modules[name]


def _inputs(batch: Any) -> Any:
    """Inputs of a batch that may have no labels."""
    try:
        return labelled(_OP, batch)[0]
    except ValueError:
        return batch[0] if isinstance(batch, tuple | list) and len(batch) == 1 else batch


def _read_answers(file: Path, count: int, layers: set[str]) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    answers: dict[str, torch.Tensor] = load_file(file)
    lengths = {rows_of(value) for value in answers.values()}
    if set(answers) != {"output", *layers} or lengths != {count}:
        raise ValueError(
            f"{_OP}.cache: {str(file)!r} holds answers of {', '.join(sorted(answers))} to "
            f"{', '.join(map(str, sorted(lengths)))} examples, needs those of "
            f"{', '.join(sorted({'output', *layers}))} to {count}"
        )
    return answers
