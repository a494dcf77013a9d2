"""The first screen of a report: the result in words, a short table, and the next commands."""

import shlex

from oodcli.cli.console import StyledText
from oodcli.cli.render.formats import Cell, Column, Table, percent
from oodcli.cli.render.formats.terminal import write_terminal
from oodcli.cli.render.metrics import format_signed
from oodcli.cli.render.report_table import method_name, value_text
from oodcli.reporting.results import (
    FULL_SPECTRUM,
    HardestSet,
    Leader,
    Report,
    ResultRow,
    RunSummary,
    Summary,
)
from oodcli.store.scores import AVERAGE
from oodcli.text import counted


def render_summary(report: Report, *, full: str) -> str:
    """Render the first screen of a report for a terminal.

    Parameters
    ----------
    report
        The report.
    full
        The command that shows the long table.
    """
    return StyledText(write_terminal(summary_table(report, full=full), to_file=False))


def summary_table(report: Report, *, full: str | None) -> Table:
    """Return the main results as a table, with the result in words above it.

    Parameters
    ----------
    report
        The report.
    full
        The command that shows the long table; None if it follows.
    """
    lead = [line for each in report.summaries for line in _in_words(report, each)]
    rows = [row for each in report.summaries for row in _rows(report, each)]
    groups = list(dict.fromkeys(each.group for own in report.summaries for each in own.leaders))
    notes = _choice_notes(report)
    if full is not None:
        notes += report.notes
        lead += ["", *_next_commands(report, full)]
    several = len(report.summaries) > 1
    n_runs = max((row.n_runs for row in report.rows), default=1)
    benchmark = "" if report.benchmark is None else f"benchmark {report.benchmark}, "
    return Table(
        lead=lead,
        title=(
            f"{benchmark}convention {report.convention}: {report.description}; in percent, means "
            "over the sets of each group"
            + (f", ± standard deviation of {n_runs} runs" if n_runs > 1 else ""),
        ),
        columns=[
            *([Column("run", "Run")] if several else []),
            Column("method", "Method"),
            Column("role", "Why shown"),
            *(
                Column(
                    f"{group}/{metric}",
                    heading,
                    right=True,
                    over="OOD" if group == "ood" else group,
                )
                for group in groups
                for metric, heading in (("fpr95", "FPR95 ↓"), ("auroc", "AUROC ↑"))
            ),
        ],
        rows=rows,
        notes=notes,
        droppable=("role",),
    )


def _in_words(report: Report, summary: Summary) -> list[str]:
    """Return one sentence each on the classifier, the best methods and the hardest set."""
    spectrum = {
        row.run: row.id_accuracy for row in report.rows if row.group in FULL_SPECTRUM.values()
    }
    lines = [_classifier(run, spectrum.get(run.name)) for run in _runs(report, summary)]
    lines += [_best(each) for each in summary.leaders]
    if summary.hardest is not None:
        lines.append(_hard(summary.hardest))
    return lines


def _runs(report: Report, summary: Summary) -> list[RunSummary]:
    """Return the runs of a summary."""
    names = {summary.run, *summary.run.split(", ")}
    return [run for run in report.runs if run.name in names]


def _classifier(run: RunSummary, spectrum: float | None) -> str:
    images = f"{counted(run.n_id, 'test image')} of {run.id_name}"
    if run.id_accuracy is None:
        return f"{run.name}: {images}, no classifier"
    members = f" ({run.arch})" if run.members else ""
    text = f"{run.name}{members}: accuracy {percent(run.id_accuracy)} % on {images}"
    if spectrum is not None:
        text += f", full-spectrum accuracy {percent(spectrum)} %"
    if run.chance is not None:
        text += (
            f"; hardly better than chance ({percent(run.chance)} %), so its scores are not "
            "informative"
        )
    return text


def _best(lead: Leader) -> str:
    """Return which method is best on a group of sets, and by how much."""
    n = len(lead.datasets)
    sets = lead.datasets[0] if n == 1 else f"{n} sets"
    where = f"{lead.group} ({sets})" if lead.group != "ood" else sets if n == 1 else f"{n} OOD sets"
    text = f"{where}: {lead.method} is best, AUROC {percent(lead.auroc)} %, FPR95 "
    text += f"{percent(lead.fpr95)} %"
    if lead.runner_up is None or lead.delta is None or lead.interval is None:
        return text
    low, high = (format_signed(end, 2) for end in lead.interval)
    between = f"95 % interval {low} to {high}"
    if lead.ahead:
        return f"{text}; {percent(lead.delta)} points of AUROC above {lead.runner_up} ({between})"
    return f"{text}; not significantly above {lead.runner_up} ({between})"


def _hard(found: HardestSet) -> str:
    group = "" if found.group == "ood" else f" ({found.group})"
    return (
        f"hardest set: {found.dataset}{group}; the best method there, {found.method}, has AUROC "
        f"{percent(found.auroc)} %, FPR95 {percent(found.fpr95)} %"
    )


def _rows(report: Report, summary: Summary) -> list[dict[str, Cell]]:
    """Return one row per method that is best, recommended, or a reference."""
    means = {
        (row.method, row.group): row
        for row in report.rows
        if row.run == summary.run and row.dataset == AVERAGE
    }
    best = {each.group: each.method for each in summary.leaders}
    named = [*best.values(), summary.recommended, summary.baseline, summary.featurenorm]
    shown = [name for name in dict.fromkeys(named) if name is not None]
    rows = []
    for method in shown:
        own = {group: row for (name, group), row in means.items() if name == method}
        if not own:
            continue  # a recommended method that was not scored
        cells = {
            "run": Cell(summary.run),
            "method": Cell(method_name(next(iter(own.values())))),
            "role": Cell(_role(summary, method, best)),
        }
        for group, leader in best.items():
            cells |= _values(own.get(group), group, bold=leader == method)
        rows.append(cells)
    return rows


def _values(row: ResultRow | None, group: str, *, bold: bool) -> dict[str, Cell]:
    return {
        f"{group}/{metric}": Cell(value_text(row, metric, 2), bold=bold and metric == "auroc")
        for metric in ("fpr95", "auroc")
    }


def _role(summary: Summary, method: str, best: dict[str, str]) -> str:
    """Return why a method is in the short table."""
    groups = [group for group, leader in best.items() if leader == method]
    roles = ["best" if groups == ["ood"] else f"best {' and '.join(groups)}"] if groups else []
    if method == summary.recommended:
        roles.append("recommended")
    if method == summary.baseline:
        roles.append("baseline")
    return ", ".join(roles)


def _choice_notes(report: Report) -> list[str]:
    """Say that the best of many methods is chosen on the images that it is shown for."""
    most = max((each.n_methods for each in report.summaries), default=0)
    if most < 3:
        return []
    return [
        f"the best of {most} methods is chosen on the images of this table, which favours it; ood "
        "recommend chooses one without OOD images"
    ]


def _next_commands(report: Report, full: str) -> list[str]:
    """Return two commands that continue from here."""
    lines = [f"next: {full}  # every method on every set"]
    summary = report.summaries[0]
    if len(report.summaries) == 1 and report.runs[0].versions and len(report.runs) == 1:
        run = shlex.quote(summary.run)
        if report.runs[0].members:
            every = [*(each.name for each in report.runs[0].members), summary.run]
            named = " ".join(f"--run {shlex.quote(name)}" for name in every)
            return [*lines, f"next: ood report {named}  # beside its members"]
        lines.append(
            f"next: ood recommend --run {run}  # a method chosen without these OOD images"
            if summary.recommended is None
            else f"next: ood predict IMAGES --run {run} --method auto  # {summary.recommended}"
        )
    return lines
