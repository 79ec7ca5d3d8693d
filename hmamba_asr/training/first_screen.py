"""The first screen of a training command: data, model, device, output and amount of training, a line each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from speechbrain.dataio.dataset import DynamicItemDataset
from torch import nn

_BACKENDS: Mapping[str | None, str] = {"nccl": "NCCL"}
_SHOWN_SHARE = 0.1  # a part of the model with fewer of its parameters is not named


def hours(*datasets: DynamicItemDataset) -> str:
    """Say how much audio the datasets hold: '0.62 h', '100.6 h'."""
    total = sum(row["duration"] for dataset in datasets for row in dataset.data.values()) / 3600
    return f"{total:.2f} h" if total < 10 else f"{total:,.1f} h"


def data_fact(
    train: DynamicItemDataset, validation: DynamicItemDataset, tests: Mapping[str, DynamicItemDataset]
) -> str:
    """Say how much there is to train, validate and test on."""
    test = f"{hours(*tests.values())} in {_count(len(tests), 'split')}" if tests else "none"
    return f"train {hours(train)} ({len(train):,} utterances), validation {hours(validation)}, test {test}"


def model_fact(name: str, model: nn.Module) -> str:
    """Say how many parameters a model and its large parts have."""
    total = _parameters(model)
    parts = ", ".join(
        f"{part} {_amount(_parameters(child))}"
        for part, child in model.named_children()
        if _parameters(child) >= _SHOWN_SHARE * total
    )
    text = f"{name}: {_amount(total)} parameters" + (f" ({parts})" if parts else "")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return text if trained == total else f"{text}; {_amount(trained)} are trained"


def device_fact(machines: Sequence[Mapping[str, Any]], *, backend: str | None, precision: str) -> str:
    """Say what computes.

    Parameters
    ----------
    machines
        The machine of each process, as :func:`hmamba_asr.system.hardware.hardware` describes it.
    backend
        What several processes talk through: "nccl" or "gloo".
    precision
        "fp32", "fp16" or "bf16".
    """
    names = Counter(machine["gpu"] or f"CPU, {machine['cpu']}" for machine in machines)
    threads = "" if machines[0]["gpu"] else _count(machines[0]["torch_threads"], "thread")
    if len(machines) == 1:
        return "; ".join([", ".join(filter(None, [*names, threads])), precision])
    several = machines[0]["gpu"] is not None
    where = ", ".join(f"{count} x {name}" if several else name for name, count in names.items())
    each = f" with {threads} each" if threads else ""
    return f"{len(machines)} processes{each} on {where}; {_BACKENDS.get(backend, backend)}; {precision}"


def training_fact(
    *,
    epochs: int,
    batches: int,
    batch: int | str,
    items: str,
    processes: int,
    accumulated: int,
    step_limit: int | None,
) -> str:
    """Say how much training the YAML asks for.

    Parameters
    ----------
    epochs
        Number of epochs.
    batches
        Batches of an epoch, in each process.
    batch
        How large a batch is: the number of its items, or its limits in words.
    items
        What a batch holds: "utterances" or "sentences".
    processes
        Number of processes.
    accumulated
        Batches that an optimizer step takes together.
    step_limit
        The optimizer step after which training ends, if it has a limit.
    """
    text = f"{_count(epochs, 'epoch')} of {_count(batches, 'batch', 'batches')}"
    text += " in each process" if processes > 1 else ""
    if batch != "unknown":
        text += f", {f'{batch} {items}' if isinstance(batch, int) else batch} in a batch"
    text += f", {accumulated} batches in an optimizer step" if accumulated > 1 else ""
    return text + (f"; stops after {_count(step_limit, 'optimizer step')}" if step_limit is not None else "")


def resume_fact(*, epoch: int, epochs: int, batch: int, batches: int) -> str:
    """Say where a resumed run goes on.

    Parameters
    ----------
    epoch, epochs
        Number of finished epochs, and of all.
    batch, batches
        Number of finished batches of the current epoch, and of all.
    """
    if epoch >= epochs:
        return "all of it is done"
    if batch >= batches:
        return f"resumes at epoch {epoch + 1}, at its validation"
    return f"resumes at epoch {epoch + 1}, batch {batch + 1}"


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _amount(number: int) -> str:
    """Round a number of parameters: '14.1 M', '1.37 M', '36 k'."""
    if number < 100_000:
        return f"{number / 1e3:.0f} k"
    return f"{number / 1e6:.1f} M" if number >= 10_000_000 else f"{number / 1e6:.2f} M"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
