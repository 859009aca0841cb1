"""What `kd-study validate` prints: the resolved plan of a study."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from study.baselines import baseline_search
from study.budget import epochs_of_a_trial
from study.cluster import uses_torch_trainer, worker_resources
from study.config import StudyConfig
from study.objectives import OBJECTIVES, objective
from study.preflight import StudyPlan, larger_than_an_epoch, stages_by_decomposition
from study.space import SearchRange
from trainable.plan import Stage
from trainable.tasks import BlockSummary, DataSummary, NetworkSummary

_SHAPING_STAGES = (
    "train.epochs",
    "distill.stage_split",
    "optim.schedule",
    "optim.peak_decay",
    "student.model",
)


def print_plan(plan: StudyPlan, console: Console) -> None:
    """Data, networks, stages, search, resources."""
    config = plan.config
    place = escape(config.place)
    console.print(f"[bold]{config.study.name}[/bold]  in {place}", soft_wrap=True)
    console.print(_data(config, plan.data), soft_wrap=True)
    for table in _networks(plan.student, plan.teacher):
        console.print(table)
    for name, stages in stages_by_decomposition(plan).items():
        console.print(_stages(name, stages, plan))
    if config.search:
        console.print(_search(config))
    if len(plan.parameters) > 1 or config.study.constraints.parameters is not None:
        console.print(_students(plan))
    console.print(_resources(plan), soft_wrap=True)


def _data(config: StudyConfig, data: DataSummary) -> str:
    height, width = data.image_size
    how = "streamed" if data.streamed else "decoded once"
    of_all = f" (of {data.train + data.left_out})" if data.left_out else ""
    text = (
        f"data        {config.data.source}: {data.train}{of_all} training, {data.val} validation and {data.test} "
        f"test pictures of {data.channels}×{height}×{width} in {len(data.classes)} classes, {how} "
        f"({data.decoded_gib:.2f} GiB)"
    )
    if data.unseen:
        text += (
            f"\n            {data.unseen} pictures of {len(data.unseen_classes)} unseen classes, for "
            "verification alone"
        )
    if data.overlap:
        text += f"\n            {data.overlap} test pictures also occur among the others"
    for place, size, pictures in larger_than_an_epoch(config, data):
        text += (
            f"\n            {place} {size} is more than the {pictures} training pictures: an epoch is one "
            "update of them all"
        )
    return text


def _networks(student: NetworkSummary, teacher: NetworkSummary | None) -> Iterator[Table]:
    others = () if teacher is None else teacher.blocks
    table = _table("block", "output", "parameters", "FLOPs", *(("projector",) if others else ()))
    table.title = f"student {student.model}"
    for mine, theirs in zip_longest(student.blocks, others[: len(student.blocks)]):
        table.add_row(*_block(mine, student), *((_projector(mine, theirs),) if others else ()))
    yield _with_total(table, student)
    if teacher is not None:
        table = _table("block", "output", "parameters", "FLOPs")
        table.title = f"teacher {teacher.model}"
        for theirs in teacher.blocks:
            table.add_row(*_block(theirs, teacher))
        yield _with_total(table, teacher)


def _block(block: BlockSummary, network: NetworkSummary) -> tuple[str, str, str, str]:
    shape = "×".join(str(size) for size in block.output)
    share = block.flops / max(1, network.flops)
    return escape(block.name), shape, f"{block.parameters:,}", f"{share:.1%}"


def _projector(mine: BlockSummary, theirs: BlockSummary | None) -> str:
    """Whether a width must change between the student's block and the teacher's, and whether it does."""
    if mine.projector is not None:
        return f"{mine.projector[0]} → {mine.projector[1]}"
    if theirs is None or mine.output == theirs.output:
        return "—"
    return "needed"


def _with_total(table: Table, network: NetworkSummary) -> Table:
    cost, unit = network.flops / 1e9, "G"
    if cost < 1:
        cost, unit = cost * 1000, "M"
    table.add_row("all", "", f"{network.parameters:,}", f"{cost:.3g} {unit}", style="bold")
    return table


def _stages(name: str, stages: tuple[Stage, ...], plan: StudyPlan) -> Table:
    table = _table("stage", "epochs", "groups", "peak lr", "blocks")
    counts = " → ".join(str(len(stage.groups)) for stage in stages)
    table.title = f"stages of {name}: {counts} group(s){_assumed(plan.config)}"
    names = [block.name for block in plan.student.blocks]
    first = stages[0].peak_lr
    for stage in stages:
        last = stage.first_epoch + stage.epochs - 1
        span = f"{stage.epochs} ({stage.first_epoch}–{last})"
        blocks = " | ".join(" ".join(names[start:stop]) for start, stop in stage.groups)
        peak = f"{stage.peak_lr:.4g}"
        if factor := _searched_peak(plan.config):
            peak = f"{stage.peak_lr / first:.4g} × {factor}"
        table.add_row(str(stage.number), span, str(len(stage.groups)), peak, escape(blocks))
    return table


def _searched_peak(config: StudyConfig) -> str:
    """What the search makes of the first stage's peak, in the config's keys; "" where it has no part in it."""
    scales, size = config.optim.lr_batch_size is not None, "data.batch_size"
    if not ({"optim.lr", *((size, "optim.name") if scales else ())} & config.search.keys()):
        return ""
    if not scales:
        return "optim.lr"
    ratio = f"({size} / {config.optim.lr_batch_size})"
    root = f"√{ratio}"
    if "optim.name" in config.search:
        return f"optim.lr × {ratio}, for adamw {root}"
    return f"optim.lr × {ratio if config.optim.name == 'sgd' else root}"


def _assumed(config: StudyConfig) -> str:
    """The searched values that shape the stages, where one had to be taken."""
    taken = {p: v for p, v in config.space.usual.items() if p in _SHAPING_STAGES}
    return "".join(f", where {path} is {value}" for path, value in taken.items())


def _search(config: StudyConfig) -> Table:
    conditions = config.space.conditions
    table = _table("searched", "values", *(("drawn only where",) if conditions else ()))
    for path, values in config.ranges.items():
        where = [conditions[path].where if path in conditions else ""] if conditions else []
        table.add_row(path, _range(values), *where)
    return table


def _students(plan: StudyPlan) -> Table:
    """Which students fewer parameters leave out is known before any trains."""
    bound = plan.config.study.constraints.parameters
    table = _table("student", "parameters", *(() if bound is None else ("trained",)))
    for name, count in plan.parameters.items():
        kept = () if bound is None else ("yes" if count <= bound else "no: over the constraint",)
        table.add_row(escape(name), f"{count:,}", *kept)
    return table


def _range(values: SearchRange) -> str:
    if values.choice is not None:
        return escape(", ".join(str(value) for value in values.choice))
    low, high = values.candidates
    kind = "integers " if values.integers else "log-uniform " if values.loguniform else ""
    return f"{kind}{low:g} … {high:g}"


def _resources(plan: StudyPlan) -> str:
    config, capacity = plan.config, plan.capacity
    need = worker_resources(config)
    each = f"{need['CPU']:g} CPU(s)" + (f" and {need['GPU']:g} GPU(s)" if "GPU" in need else "")
    launcher = "a TorchTrainer" if uses_torch_trainer(config) else "the loop in Tune's actor"
    searched = config.search.get("train.epochs")
    epochs = str(config.train.epochs) if searched is None else _range(searched)
    at_a_time = f"{plan.concurrency} trial(s) at a time"
    if plan.is_unsettled:
        at_a_time += ", or as many as a measurement before the first lets share a GPU"
    lines = [
        f"a trial     {config.train.workers} worker(s) of {each}, {epochs} epochs, by {launcher}",
        f"the cluster {capacity.cpus:g} CPU(s) and {capacity.gpus:g} GPU(s): {at_a_time}",
        _trials(config),
        *_sought(config),
        *_answer(config),
    ]
    return "\n".join(lines)


def _trials(config: StudyConfig) -> str:
    section = config.study
    if config.search:
        how = f"seed {section.seed}, sampler {section.sampler}, pruner {section.pruner.name}"
        return f"trials      {section.trials}, {how}"
    told = "trials      1, at the base values: nothing is searched"
    if section.trials > 1:
        told += ". `kd-study train` trains it; `kd-study run` needs a path under search, or study.trials: 1"
    return told


def _sought(config: StudyConfig) -> Iterator[str]:
    """Where it is not the accuracy alone, and of any student."""
    section = config.study
    most = {name: "most" if objective(name).seeks_most else "least" for name in OBJECTIVES}
    if len(section.objectives) > 1:
        yield f"sought      {', '.join(f'{most[name]} {name}' for name in section.objectives)}"
    if bounds := section.constraints.bounds:
        signs = {name: ">=" if objective(name).seeks_most else "<=" for name in bounds}
        kept = ", ".join(f"{name} {signs[name]} {bound:g}" for name, bound in bounds.items())
        yield f"constraints {kept}"


def _answer(config: StudyConfig) -> Iterator[str]:
    """What is trained beside the trials of the search, so that its answer can be trusted."""
    study = config.study
    if (screening := study.screening) is not None:
        epochs = "as many epochs" if screening.epochs is None else f"{screening.epochs} epochs"
        yield (
            f"screening   {epochs} on {screening.subset:.3g} of a trial's pictures, after which "
            f"{screening.keep:.3g} of each kind of trial begin"
        )
    if study.epoch_budget is not None:
        yield f"budget      {study.epoch_budget} epochs of the search, {epochs_of_a_trial(config)} a trial at most"
    for name, trials in study.baselines.items():
        searched = ", ".join(baseline_search(config, name).search)
        yield f"baseline    {name}: {trials} trials, searching {searched}"
    if (replicates := study.replicates) is not None:
        repeated = replicates.finalists + (1 if config.search else 0) + len(study.baselines)
        yield (
            f"replicates  {replicates.seeds} of each of {replicates.finalists} finalist(s) and of each baseline: "
            f"{repeated * replicates.seeds} trainings more, on all training pictures"
        )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column)
    return table
