"""curl uploads pictures to the service: run_curl.py URL FOLDER OUT.json."""

import json
import subprocess
import sys
from pathlib import Path

url, folder, out = sys.argv[1:]
answers = [
    json.loads(
        subprocess.run(
            ["curl", "-sS", "-F", f"file=@{path}", f"{url}/classify"], capture_output=True, check=True
        ).stdout
    )
    for path in sorted(Path(folder).iterdir())
]
Path(out).write_text(json.dumps(answers))
