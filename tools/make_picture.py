"""Take a screenshot of the demo's report for the README: run the study, open the report in Chromium, write a PNG.

    python tools/make_picture.py [--study demo]

Needs the packages of `make install` and Chromium. Run it again whenever the report or the bundled weights change.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "demo.png"
SIZE = {"width": 1440, "height": 1000}


def take_screenshot(report: Path) -> bytes:
    """The report with its first error open, as PNG."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, reduced_motion="reduce", color_scheme="light")
        page.goto(report.as_uri())
        # Show the gallery of errors with the first error beside it.
        page.locator("#errors").evaluate("section => section.scrollIntoView()")
        page.wait_for_timeout(1500)
        content: bytes = page.screenshot()
        browser.close()
    return content


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, help="a finished study to show instead of a new demo")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = options.study or Path(folder) / "demo"
        if options.study is None:
            subprocess.run([sys.executable, "-m", "whycam", "demo", "--out", str(study)], check=True)
        screenshot = Image.open(io.BytesIO(take_screenshot((study / "report.html").resolve()))).convert("RGB")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    # Lossless, because a reduced palette would change the maps' colors.
    screenshot.save(PICTURE, optimize=True)
    sys.stdout.write(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
