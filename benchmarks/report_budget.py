"""What a report of 1,000 errors × 3 layers × 2 targets × 4 methods weighs, and how fast it opens and filters.

python benchmarks/report_budget.py [--runs 5] [--keep FOLDER]

Of every error the nearest images are in it, too; pictures are the bundled photographs and their mirror images, as many
as there are distinct ones, because noise and drawings pack unlike photographs.

Measured in headless Chromium from the file system. "first paint" is the browser's own first-contentful-paint,
"ready" the moment every control works and the first error is drawn; "filter" is the time from a change of filter to
the drawn result, over the confusion cells that hold errors, as milliseconds and as frames of 60 Hz. Beside wall time
stands the processor time of the page's main thread, which a busy machine does not lengthen.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from playwright.sync_api import CDPSession, sync_playwright

import whycam
from whycam.report import BUDGET, write_report
from whycam.study.folder import Study

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "report"))
from make_study import Recipe, make_study

FLAGS = ("--no-sandbox", "--disable-gpu", "--force-color-profile=srgb")
METHODS = ("gradcam", "hirescam", "layercam", "xgradcam")
TIMES = """() => {
  const paint = performance.getEntriesByName('first-contentful-paint')[0];
  return paint ? paint.startTime : null;
}"""
READY = """() => new Promise(done => {
  const look = () => document.documentElement.dataset.ready !== undefined && whycam.drawn()
    ? done(performance.now()) : requestAnimationFrame(look);
  look();
})"""
FILTERS = """() => {
  const {errors, core} = whycam, pairs = new Set(), times = [];
  for (let e = 0; e < core.ids.length; e++) pairs.add(errors.label[e] * 1000 + errors.predicted[e]);
  for (const pair of pairs) {
    for (const patch of [{actual: Math.floor(pair / 1000), predicted: pair % 1000}, {actual: -1, predicted: -1}]) {
      const begin = performance.now();
      whycam.update(patch);
      whycam.flush();
      document.body.getBoundingClientRect();  // layout belongs to the cost
      times.push(performance.now() - begin);
    }
  }
  return times;
}"""


class Photographs:
    """The bundled photographs one after another, then each turned and mirrored: 8,000 that differ."""

    def __init__(self) -> None:
        source = whycam.open_source("bundled")
        self.images = source.read(range(len(source))).permute(0, 2, 3, 1).numpy()
        self.given = 0

    def __call__(self, _: int) -> np.ndarray:
        turn, number = divmod(self.given, len(self.images))
        self.given += 1
        image = np.rot90(self.images[number], turn % 4)
        return np.ascontiguousarray(image[:, ::-1] if turn % 8 >= 4 else image)


def main_thread_ms(session: CDPSession) -> float:
    """Processor time that the page's main thread has used so far."""
    metrics = {entry["name"]: entry["value"] for entry in session.send("Performance.getMetrics")["metrics"]}
    return 1000 * metrics["TaskDuration"]


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "median": round(statistics.median(ordered), 1),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 1),
        "max": round(ordered[-1], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--errors", type=int, default=1000)
    parser.add_argument("--keep", type=Path, help="make the study and its report here, or measure those that are here")
    options = parser.parse_args()
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        sys.exit("no Chromium here")
    with tempfile.TemporaryDirectory() as folder:
        place = options.keep or Path(folder) / "study"
        page_file = place / "report.html"
        if not page_file.exists():
            recipe = Recipe(n=10 * options.errors, errors=options.errors, methods=METHODS, pictures=Photographs())
            write_report(Study.load(make_study(place, recipe)), page_file)
        paints, readies, filters, opening_cpu, filter_cpu, pictured = [], [], [], [], [], []
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_path, args=list(FLAGS))
            for _ in range(options.runs):
                context = browser.new_context(viewport={"width": 1440, "height": 1000}, offline=True)
                page = context.new_page()
                session = context.new_cdp_session(page)
                session.send("Performance.enable", {"timeDomain": "threadTicks"})
                page.goto(page_file.as_uri())
                readies.append(page.evaluate(READY))
                pictured.append(page.evaluate("[whycam.relations.pictured, whycam.relations.starts]"))
                page.wait_for_timeout(200)
                paints.append(page.evaluate(TIMES))
                opening_cpu.append(main_thread_ms(session))
                times = page.evaluate(FILTERS)
                filters += times
                filter_cpu.append((main_thread_ms(session) - opening_cpu[-1]) / len(times))
                context.close()
            browser.close()
        result = {
            "errors": options.errors,
            "maps": options.errors * len(METHODS) * 3 * 2,
            "megabytes": round(page_file.stat().st_size / 1e6, 2),
            "budget_megabytes": BUDGET / 1e6,
            "files_beside": len(list((place / "report_files").glob("*"))),
            "neighbors_pictured_of_each_class": pictured[0][0],
            "neighbors_by_rank": pictured[0][1],
            "first_paint_ms": spread([value for value in paints if value is not None]),
            "ready_ms": spread(readies),
            "opening_main_thread_ms": spread(opening_cpu),
            "filter_ms": spread(filters),
            "filter_main_thread_ms": spread(filter_cpu),
            "filter_frames_main_thread": round(statistics.median(filter_cpu) / (1000 / 60), 2),
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
