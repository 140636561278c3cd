"""Runs next to the service in the container: classifies, stops the process, classifies again.

Writes /results/client.json.
"""

import json
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

TOKEN = Path("/etc/vgg-edge/token").read_text().strip()


def classify(token: str | None) -> dict[str, str]:
    headers = {"Content-Type": "image/png"} | ({"Authorization": f"Bearer {token}"} if token else {})
    photo = Path("/photo.png").read_bytes()
    request = urllib.request.Request("http://127.0.0.1:8080/classify", data=photo, headers=headers)
    with urllib.request.urlopen(request, timeout=200) as answer:
        return json.load(answer)


def status(token: str | None) -> int:
    try:
        classify(token)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def unit_property(name: str) -> str:
    command = ["systemctl", "show", "--value", "--property", name, "vgg-edge.service"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


results: dict[str, object] = {"label before": classify(TOKEN)["label"], "status without token": status(None)}
results["arguments"] = Path("/proc", unit_property("MainPID"), "cmdline").read_text().split("\0")
subprocess.run(["kill", "-STOP", unit_property("MainPID")], check=True)
for _ in range(3000):
    if unit_property("NRestarts") == "1" and unit_property("ActiveState") == "active":
        break
    time.sleep(0.1)
results |= {"label after": classify(TOKEN)["label"], "restarts": unit_property("NRestarts")}
subprocess.run(["systemctl", "stop", "vgg-edge.service"], check=True)
results["result"] = unit_property("Result")  # "timeout" if systemd had to kill it
Path("/results/client.json").write_text(json.dumps(results))
