"""Try every inference configuration of a folder of MONAI bundles with the declared loader, and write a table."""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path

from pacs_ai.errors import PacsAiError
from pacs_ai.models.runtimes.monai_bundle import MonaiBundlePackage
from pacs_ai.testing import zoo

HEAD = "| bundle | configuration | declared | with random weights on a small phantom |\n|---|---|---|---|\n"


def row(bundle: Path, configuration: str) -> tuple[str, str]:
    """Return what became of loading one configuration, and of running it."""
    case = zoo.case_of(bundle.name, configuration)
    with tempfile.TemporaryDirectory() as folder:
        package = zoo.trial(bundle, configuration, Path(folder) / bundle.name, case)
        try:
            pipeline = MonaiBundlePackage(package)
            pipeline.prepare("cpu")
        except PacsAiError as error:
            return f"refused: {' '.join(str(error).partition(' The declared loader')[0].split())}", ""
        if case is None:
            return "loaded", "not tried"
        start = time.monotonic()
        try:
            found = pipeline.run(zoo.phantom_for(case))
        except PacsAiError as error:
            return "loaded", f"failed: {error}"
        what = f"{len(found.classifications)} answers" if case.classes else f"{len(found.segments)} segments"
        return "loaded", f"ran, {what} ({time.monotonic() - start:.1f} s)"


def main() -> None:
    """Write the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, help="folder of bundles")
    parser.add_argument("out", type=Path, help="markdown to write")
    parser.add_argument("--only", nargs="*", default=[], help="names of bundles; all others are left out")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = [HEAD]
    for bundle in sorted(path for path in options.bundles.iterdir() if (path / "configs").is_dir()):
        if options.only and bundle.name not in options.only:
            continue
        for configuration in zoo.configurations(bundle):
            loaded, ran = row(bundle, configuration)
            rows.append(f"| {bundle.name} | {configuration} | {loaded.replace('|', '/')} | {ran} |\n")
            options.out.write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
