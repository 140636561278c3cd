"""The retained messages by which Home Assistant finds the entities of this program.

Format: https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery
"""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from runtime.common.cli import version_text

PREFIX = "homeassistant"  # Home Assistant's default
# "unknown" is Home Assistant's own word for a sensor without a value.
NONE_OF_THESE = "none of these"
LABEL_TEMPLATE = f"{{{{ '{NONE_OF_THESE}' if value_json.known is false else value_json.label }}}}"
PERCENT_TEMPLATE = "{{ (100 * value_json.probability) | round(1) }}"
# While there is a problem, the last answer may be hours old, or that of an earlier process.
NO_PROBLEM_TEMPLATE = "{{ 'offline' if value_json.problem else 'online' }}"


def discovery_messages(topic: str, model_name: str) -> Iterator[tuple[str, bytes]]:
    """Yields topic and payload of the configuration of each entity, for states published below `topic`."""
    node = _node_id(topic)
    common = {
        "availability_mode": "all",
        "device": {
            "identifiers": [node],
            "name": topic.rpartition("/")[2],
            "manufacturer": "vgg-edge",
            "model": model_name,
            "sw_version": version_text(),
        },
        "origin": {"name": "vgg-edge", "sw_version": version_text()},
    }
    for component, object_id, fields in _entities(topic):
        config = {"unique_id": f"{node}_{object_id}", **common, **fields}
        yield f"{PREFIX}/{component}/{node}/{object_id}/config", json.dumps(config).encode()


def _entities(topic: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields the kind, the id and the own fields of each entity."""
    is_running = {"topic": f"{topic}/availability"}
    is_current = {"topic": f"{topic}/diagnostics", "value_template": NO_PROBLEM_TEMPLATE}
    answer = {"availability": [is_running, is_current]}
    state = {"state_topic": f"{topic}/state", **answer}
    diagnostics = {
        "state_topic": f"{topic}/diagnostics",
        "entity_category": "diagnostic",
        "availability": [is_running],
    }
    yield (
        "sensor",
        "label",
        {
            "name": "Label",
            "icon": "mdi:tag",
            "value_template": LABEL_TEMPLATE,
            "json_attributes_topic": f"{topic}/state",
            **state,
        },
    )
    yield (
        "sensor",
        "probability",
        {
            "name": "Probability",
            "icon": "mdi:percent",
            "unit_of_measurement": "%",
            "state_class": "measurement",
            "value_template": PERCENT_TEMPLATE,
            **state,
        },
    )
    yield "camera", "picture", {"name": "Picture", "topic": f"{topic}/picture", **answer}
    yield (
        "binary_sensor",
        "problem",
        {
            "name": "Problem",
            "device_class": "problem",
            "value_template": "{{ 'ON' if value_json.problem else 'OFF' }}",
            "json_attributes_topic": f"{topic}/diagnostics",
            **diagnostics,
        },
    )
    for object_id, name, icon in (("model", "Model", "mdi:brain"), ("engine", "Engine", "mdi:chip")):
        yield (
            "sensor",
            object_id,
            {
                "name": name,
                "icon": icon,
                "value_template": f"{{{{ value_json.{object_id} }}}}",
                **diagnostics,
            },
        )


def _node_id(topic: str) -> str:
    """Returns an id of letters, digits, - and _ that is different for each topic."""
    digest = hashlib.sha256(topic.encode()).hexdigest()[:6]
    return f"{re.sub('[^a-zA-Z0-9_-]', '_', topic)}_{digest}"
