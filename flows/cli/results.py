"""``visionmill query | report | export | verify``: what can be done with the committed Parquet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from flows.cli.console import JsonFlag, Summary, answers, command, long_work, people, say, table
from infra.errors import UsageError
from tasks.parameters import MIN_SCORE
from tasks.product import Exporter, products

OutputArgument = Annotated[str, typer.Argument(help="Output of a job: folder or s3:// prefix.")]
ProductFlag = Annotated[str | None, typer.Option(help="Whose results, where the output holds those of several.")]

MinScoreFlag = Annotated[
    float, typer.Option(min=0, max=1, help="What scores less is left out; 0 takes all that is stored.")
]

FORMATS = ("table", "csv", "json")


def query_command() -> Callable[..., None]:
    """``query``, whose help names the views and functions of every product that is known by now."""
    own = products().values()
    views = dict.fromkeys(["items", *(view for each in own for view in each.views), "failures", "all_items"])
    functions = ", ".join(words for each in own for words in each.function_words)
    words = f"SQL over the views {', '.join(views)}; functions: {functions}."
    query.__annotations__["sql"] = Annotated[str, typer.Argument(help=words)]
    return command(query)


def export_command() -> Callable[..., None]:
    """``export``, whose help names the forms of every product that is known by now."""
    forms: dict[str, list[Exporter]] = {}
    for each in products().values():
        for name, form in each.exporters.items():
            forms.setdefault(name, []).append(form)
    said = (f"{name}: {', or '.join(dict.fromkeys(each.words for each in of_it))}" for name, of_it in forms.items())
    words = "; ".join(said) + "."
    with_images = ", ".join(name for name, of_it in forms.items() if any(each.takes_images for each in of_it))
    images = f"Write the images and frames, too ({with_images})."
    export.__annotations__["to"] = Annotated[str, typer.Option("--to", metavar="|".join(forms), help=words)]
    export.__annotations__["images"] = Annotated[bool, typer.Option("--images", help=images)]
    return command(export)


def query(
    output: OutputArgument,
    sql: str,
    format: Annotated[str, typer.Option(metavar="table|csv|json", help="How rows are printed on stdout.")] = "table",
    max_rows: Annotated[int, typer.Option(help="Rows shown in a table; csv and json print all.")] = 100,
    product: ProductFlag = None,
    as_json: JsonFlag = False,
) -> Summary:
    """Ask the results in SQL (DuckDB)."""
    if format not in FORMATS:
        raise UsageError(f"unknown format {format!r}", hint=f"one of {', '.join(FORMATS)}")
    with long_work():
        from infra.telling import tell
        from tasks.output.query import run_query

        tell(f"asking {output}")
        rows = run_query(output, sql, product=product)
    records = [_readable(row) for row in rows.to_pylist()] if as_json or format == "json" else []
    if as_json:
        _print_table(rows, max_rows, to_people=True)
    elif format == "json":
        for record in records:
            answers.print_json(data=record, indent=None, default=str)
    elif format == "csv":
        _print_csv(rows)
    else:
        _print_table(rows, max_rows, to_people=False)
    return {"columns": rows.column_names, "num_rows": rows.num_rows, "rows": records}


def _readable(value: object) -> object:
    """JSON has no bytes: run lengths are ASCII by construction, anything else becomes hex."""
    if isinstance(value, bytes):
        return value.decode("ascii") if value.isascii() else value.hex()
    if isinstance(value, dict):
        return {key: _readable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_readable(inner) for inner in value]
    return value


def _print_table(rows, max_rows: int, *, to_people: bool) -> None:  # type: ignore[no-untyped-def]
    from rich.markup import escape

    listing = table(*rows.column_names)
    for row in rows.slice(0, max_rows).to_pylist():
        listing.add_row(*[escape(_cell(value)) for value in row.values()])
    (people if to_people else answers).print(listing)
    if rows.num_rows > max_rows:
        say(f"... {rows.num_rows - max_rows} more rows (--max-rows, or --format csv)", style="dim")


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(_readable(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _print_csv(rows) -> None:  # type: ignore[no-untyped-def]
    import csv
    import sys

    writer = csv.writer(sys.stdout)
    writer.writerow(rows.column_names)
    for batch in rows.to_batches(max_chunksize=10_000):
        writer.writerows([[_readable(v) for v in row.values()] for row in batch.to_pylist()])


@command
def report(
    output: OutputArgument,
    samples: Annotated[int, typer.Option(help="Pictures in the report.")] = 24,
    min_score: MinScoreFlag = MIN_SCORE,
    compare: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="Also compare the newest version with another one of the output."),
    ] = None,
    product: ProductFlag = None,
) -> Summary:
    """Write report/index.html into the output of a job or of `retrain`: numbers, reasons, pictures."""
    from flows.refusals import refuse_no_results

    with long_work():
        refuse_no_results(output, product)
        from infra.telling import tell
        from tasks.report.report import write_report
        from tasks.report.round_page import has_rounds, write_loop_report

        tell("writing the report")
        if has_rounds(output):
            written = write_loop_report(output, samples=samples)
        else:
            written = write_report(output, samples=samples, product=product, min_score=min_score, compare_with=compare)
    say(f"report: {written.index_uri}", style="green")
    return {"report": written.index_uri}


def export(
    output: OutputArgument,
    destination: Annotated[str, typer.Argument(help="File or folder, as the form has it, local or s3://.")],
    to: str,
    images: bool = False,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="Only what fulfils a condition, as `query` has it.")
    ] = None,
    min_score: MinScoreFlag = MIN_SCORE,
    product: ProductFlag = None,
) -> Summary:
    """Export the newest results for other tools. Failed items are left out and counted."""
    with long_work():
        from tasks.report.export import export as export_results

        summary = export_results(
            output, to, destination, product=product, images=images, min_score=min_score, where=where
        )
    say(
        f"{summary.num_found} {summary.unit} of {summary.num_items} items written to {summary.destination}"
        + (f"; {summary.num_skipped} failed items left out" if summary.num_skipped else ""),
        style="green",
    )
    return {
        "to": to,
        "destination": summary.destination,
        "num_items": summary.num_items,
        f"num_{summary.unit}": summary.num_found,
        "num_skipped": summary.num_skipped,
        "files": summary.files,
    }


@command
def verify(
    output: OutputArgument,
    deep: Annotated[bool, typer.Option("--deep", help="Also read every column and check what was found.")] = False,
    product: ProductFlag = None,
) -> Summary:
    """Recount: every planned item has exactly one row in its shard, every footer is true. Exit code 1 if not."""
    from flows.refusals import refuse_no_results

    with long_work():
        refuse_no_results(output, product)
        from tasks.report.verify import verify as verify_results

        found = verify_results(output, deep=deep, product=product)
    for problem in found.problems:
        say(f"problem: {problem}", style="red")
    if not found.problems:
        rounds = f"; {found.num_rounds} rounds: decided again alike" if found.num_rounds else ""
        say(f"{found.num_rows} rows in {found.num_shards} shards: as planned, no duplicates{rounds}", style="green")
    return {
        "num_rows": found.num_rows,
        "num_shards": found.num_shards,
        "open_shards": found.open_shards,
        "num_rounds": found.num_rounds,
        "problems": list(found.problems),
        "exit_code": 1 if found.problems else 0,
    }
