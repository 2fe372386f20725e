"""What is shown at the terminal."""

from collections.abc import Iterator, Mapping

from rich.table import Table

from handclip.datasets.manifest import Manifest
from handclip.datasets.summary import split_table


def split_tables(manifests: Mapping[str, Manifest]) -> Iterator[Table]:
    """Yield a table of the splits of each aspect."""
    for aspect, manifest in manifests.items():
        table = Table(title=f"{manifest.dataset} {aspect}", title_justify="left", title_style="bold")
        table.add_column("Split")
        for title in ("Identities", "Images", "Min (identities)", "Max (identities)", "Imbalance", "Distractors"):
            table.add_column(title, justify="right")
        for row in split_table(manifest):
            table.add_row(
                row.split,
                f"{row.identities:,}",
                f"{row.images:,}",
                f"{row.minimum} ({row.minimum_identities})",
                f"{row.maximum} ({row.maximum_identities})",
                "balanced" if row.balanced else "-" if row.imbalance is None else f"{row.imbalance:.1f}",
                f"{row.distractor_identities:,}",
            )
        left_out = {
            "absent": manifest.missing_images,
            "unreadable": manifest.unreadable_images,
            "no image files": manifest.ignored_files,
            "identities without images of their own": manifest.empty_identities,
        }
        if any(left_out.values()):
            table.caption = "Left out: " + ", ".join(f"{count:,} {what}" for what, count in left_out.items() if count)
        yield table
