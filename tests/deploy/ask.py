"""Beside the service: asks it for a label, makes it hang, asks again, ends it. Writes asked.json."""

import json
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

TOKEN = Path("/etc/vgg-edge/token").read_text().strip()


def ask(token: str | None) -> dict[str, str]:
    headers = {"Content-Type": "image/png"} | ({"Authorization": f"Bearer {token}"} if token else {})
    photo = Path("/photo.png").read_bytes()
    request = urllib.request.Request("http://127.0.0.1:8080/classify", data=photo, headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def status(token: str | None) -> int:
    try:
        ask(token)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def shown(name: str) -> str:
    command = ["systemctl", "show", "--value", "--property", name, "vgg-edge.service"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


labels = [ask(TOKEN)["label"]]
refused = status(None)
subprocess.run(["kill", "-STOP", shown("MainPID")], check=True)
for _ in range(300):
    if shown("NRestarts") == "1" and shown("ActiveState") == "active":
        break
    time.sleep(0.1)
labels.append(ask(TOKEN)["label"])
restarts = shown("NRestarts")
started = time.monotonic()
subprocess.run(["systemctl", "stop", "vgg-edge.service"], check=True)
seconds = round(time.monotonic() - started, 2)
asked = {"labels": labels, "without the token": refused, "restarts": restarts, "ended": shown("Result")}
Path("/results/asked.json").write_text(json.dumps({**asked, "seconds to end": seconds}))
