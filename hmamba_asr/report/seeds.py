"""Models: runs that differ only in the seed, their names, and which runs of two models are compared."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hmamba_asr.evaluation.finished_run import FinishedRun
from hmamba_asr.report.results_table import format_wer, model_name, same_experiment


@dataclass(frozen=True)
class Model:
    """Runs that differ only in the seed.

    Attributes
    ----------
    label
        A name that tells the model apart from others; with one run, the run's label.
    runs
        The runs, in the order in which they were given.
    """

    label: str
    runs: tuple[FinishedRun, ...]

    @property
    def several(self) -> bool:
        """Whether there is more than one seed."""
        return len(self.runs) > 1

    def rates(self, split: str, search: str) -> list[float]:
        """Return the WERs of the runs that were evaluated so, in percent."""
        entries = (run.results.evaluation.get(split, {}).get(search) for run in self.runs)
        return [entry.wer.rate for entry in entries if entry]

    def wer(self, split: str, search: str) -> str:
        """Write the WER: mean ± standard deviation over seeds, or that of one run with half its interval."""
        rates = self.rates(split, search)
        if not rates:
            return ""
        if self.several:
            spread = f" ± {statistics.stdev(rates):.2f}" if len(rates) > 1 else ""
            return f"{statistics.mean(rates):.2f}{spread}"
        return format_wer(self.runs[0].results.evaluation[split][search].wer)


def group_runs(runs: Sequence[FinishedRun]) -> list[Model]:
    """Group runs that differ only in the seed, and give each run and each model a label of its own.

    A model is called as its YAML. As far as needed, what the command line changed, the seeds and the folder
    follow.

    Raises
    ------
    ValueError
        If a run is named twice.
    """
    folders = [run.folder.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        raise ValueError("a run is named twice; give each output folder once.")
    groups: list[list[FinishedRun]] = []
    for run in runs:
        for group in groups:
            if all(same_experiment(run.results, other.results) for other in group):
                group.append(run)
                break
        else:
            groups.append([run])
    bases = _lengthen(
        [group[0].results.name for group in groups], lambda index, _: model_name(groups[index][0].results)
    )
    labels = _lengthen(bases, lambda index, label: f"{label}, {_seeds(groups[index])}")
    labels = _lengthen(labels, lambda index, label: f"{label}, {groups[index][0].folder.name}")
    members = [(index, run) for index, group in enumerate(groups) for run in group]
    names = [
        f"{bases[index]}, seed {run.results.seed}" if len(groups[index]) > 1 else labels[index]
        for index, run in members
    ]
    names = _lengthen(names, lambda index, name: f"{name}, {members[index][1].folder.name}")
    models = []
    for index, label in enumerate(labels):
        labelled = tuple(
            FinishedRun(run.folder, run.results, name)
            for (of, run), name in zip(members, names, strict=True)
            if of == index
        )
        models.append(Model(label if len(labelled) > 1 else labelled[0].label, labelled))
    return models


def pair_runs(a: Model, b: Model) -> list[tuple[FinishedRun, FinishedRun]]:
    """Pair the runs of two models: those with the same seed, then the others in order.

    Each run is in one pair at least. The model with fewer runs takes part again.
    """
    seeds = {run.results.seed: run for run in b.runs}
    shared = [(run, seeds[run.results.seed]) for run in a.runs if run.results.seed in seeds]
    taken = {one.results.seed for one, _ in shared}
    left = [run for run in a.runs if run.results.seed not in taken]
    right = [run for run in b.runs if run.results.seed not in taken]
    count = max(len(left), len(right))
    return shared + [_pick(left or a.runs, right or b.runs, at) for at in range(count)]


def describe_training(model: Model) -> tuple[str, str]:
    """Return the epochs and the training data of a model; empty texts where they are not known."""
    records = [run.results.training for run in model.runs if run.results.training]
    epochs = dict.fromkeys(str(record.epochs) for record in records if record.epochs is not None)
    data = dict.fromkeys(" + ".join(record.train_splits) for record in records)
    return " / ".join(epochs), " / ".join(data)


def training_flags(first: Model, other: Model) -> list[str]:
    """Say where two models are no fair pair: another number of epochs, or other training data.

    The other model's value comes first.
    """
    (epochs, data), (first_epochs, first_data) = describe_training(other), describe_training(first)
    flags = []
    if epochs != first_epochs:
        flags.append(f"{_epochs(epochs)} against {_epochs(first_epochs)}")
    if data != first_data:
        flags.append(f"trained on {data or 'unknown data'} against {first_data or 'unknown data'}")
    return flags


def _epochs(count: str) -> str:
    return f"{count} epoch{'' if count == '1' else 's'}" if count else "an unknown number of epochs"


def _pick(
    left: Sequence[FinishedRun], right: Sequence[FinishedRun], at: int
) -> tuple[FinishedRun, FinishedRun]:
    return left[at % len(left)], right[at % len(right)]


def _seeds(runs: Sequence[FinishedRun]) -> str:
    seeds = [str(run.results.seed) for run in runs]
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(seeds[:-1])} and {seeds[-1]}"


def _lengthen(names: list[str], longer: Callable[[int, str], str]) -> list[str]:
    """Make the names longer that occur more than once."""
    return [longer(index, name) if names.count(name) > 1 else name for index, name in enumerate(names)]
