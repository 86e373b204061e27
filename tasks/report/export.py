"""The newest results in the forms of other tools, as the product knows them.

A form reads the views as a stream of batches, so an output of any size passes through bounded memory. Items that failed
have nothing to export; they are counted. A destination that holds something already is refused: mixing two exports
would look like one.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.errors import BucketMissing, UsageError
from infra.store import ObjectInfo, Store, is_local, open_store, split_uri
from infra.telling import tell
from tasks.output.query import choose
from tasks.output.views import Views, views_of
from tasks.parameters import MIN_SCORE
from tasks.product import Exporter, Product


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What an export wrote: so many of the product's ``unit``; ``num_skipped`` items failed or are in quarantine."""

    destination: str
    unit: str
    num_items: int
    num_found: int
    num_skipped: int
    files: int


def export(
    output: str,
    to: str,
    destination: str,
    *,
    product: str | None = None,
    images: bool = False,
    min_score: float = MIN_SCORE,
    where: str | None = None,
) -> ExportSummary:
    """Write the newest results of ``output`` in another form.

    Args:
        output: folder or ``s3://bucket/prefix`` of a job's output.
        to: name of a form, one of the product's ``exporters``.
        destination: the file or folder, as the form has it, local or ``s3://``; must not hold anything yet.
        product: whose results, where the output holds those of several.
        images: write the images of the items, too.
        min_score, where: what of it, see :func:`tasks.output.query.choose`.

    Raises:
        UsageError: an unknown form, one that takes no images, nothing to export, a condition that is none, or a
            destination that is taken.
        StoreError: as the stores report.
    """
    views = views_of(open_store(output), product=product)
    try:
        form, unit = _form(views.product, output, to)
        if images and not form.takes_images:
            takers = [name for name, each in views.product.exporters.items() if each.takes_images]  # type: ignore[union-attr]
            raise UsageError(f"{to} is written without images", hint=f"with images: {', '.join(takers) or 'nothing'}")
        tell(f"reading {output}")
        if not any(_count(views)):
            raise UsageError(f"{output} holds no results to export", hint="run the job first, or check the path")
        choose(views, min_score=min_score, where=where)
        num_ok, num_skipped = _count(views)
        tell(f"exporting {num_ok} items as {to}")
        if num_ok == 0 and where is not None:
            raise UsageError(f"no result fulfils {where!r}", hint="try the condition with `visionmill query`")
        write = _write_folder if form.file_name is None else _write_file
        num_found, files = write(views, to, form, destination, **({"images": True} if images else {}))
    finally:
        views.connection.close()
    return ExportSummary(destination, unit, num_ok, num_found, num_skipped, files)


def _form(product: Product | None, output: str, to: str) -> tuple[Exporter, str]:
    """The form of a name, and what it counts."""
    if product is None:
        raise UsageError(f"{output} holds no results to export", hint="run the job first, or check the path")
    if to not in product.exporters:
        raise UsageError(
            f"unknown export {to!r}",
            hint=f"{product.name} can be written as {', '.join(product.exporters) or 'nothing'}",
        )
    return product.exporters[to], product.unit


def _count(views: Views) -> tuple[int, int]:
    ok, skipped = views.connection.sql(
        "SELECT count(*) FILTER (status = 'ok'), count(*) FILTER (status <> 'ok') FROM items"
    ).fetchall()[0]
    return int(ok), int(skipped)


def _write_file(views: Views, to: str, form: Exporter, destination: str, **options: bool) -> tuple[int, int]:
    root, key = split_uri(destination)
    if not key:
        raise UsageError(
            f"{destination} is a folder; {to} is one file", hint=f"{destination.rstrip('/')}/{form.file_name}"
        )
    store = open_store(root)
    if any(info.key == key or info.key.startswith(f"{key}/") for info in _held(store, key)):
        raise _taken(destination)
    return int(form.write(views, store, key, **options)), 1


def _write_folder(views: Views, to: str, form: Exporter, destination: str, **options: bool) -> tuple[int, int]:
    store = open_store(destination)
    if _held(store, ""):
        raise _taken(destination)
    num_found, files = form.write(views, store, **options)
    return int(num_found), int(files)


def _held(store: Store, prefix: str) -> list[ObjectInfo]:
    """The first object below a prefix, or nothing; a folder that is not there yet holds nothing."""
    try:
        return [next(iter(store.list(prefix)))]
    except StopIteration:
        return []
    except BucketMissing:
        if is_local(store.uri):
            return []
        raise


def _taken(destination: str) -> UsageError:
    return UsageError(f"{destination} holds something already", hint="choose another destination, or remove it first")
