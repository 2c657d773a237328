"""Draw the pictures of figures.md: run its blocks in an empty folder, and keep two figures."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
PICTURES = ("steps", "loss")


def main() -> None:
    """Write the pictures."""
    page = (DOCS / "figures.md").read_text()
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    commands = [text for language, text in blocks if language == "bash"][:2]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "monomials.py").write_text(blocks[0][1])
        for command in commands:
            subprocess.run(
                ["bash", "-euc", command.replace("steps.pdf", "steps.png")], cwd=folder, check=True
            )
        (DOCS / "figures").mkdir(exist_ok=True)
        for picture in PICTURES:
            shutil.copy(folder / f"{picture}.png", DOCS / "figures")


if __name__ == "__main__":
    main()
