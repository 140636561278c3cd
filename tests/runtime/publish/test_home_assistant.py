"""Home Assistant's discovery: ids, topics, and templates, rendered by Jinja as Home Assistant does."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runtime.publish.home_assistant import discovery_messages
from tests.runtime.publish.conftest import MakeAnswer


def configs(topic: str = "home/garden") -> dict[str, dict[str, Any]]:
    """The configuration of each entity, by its id."""
    found = {}
    for place, payload in discovery_messages(topic, "flowers"):
        match = re.fullmatch(
            r"homeassistant/(sensor|camera|binary_sensor)/[a-zA-Z0-9_-]+/([a-z_]+)/config", place
        )
        assert match
        found[match[2]] = json.loads(payload)
    return found


def render(template: str, payload: dict[str, Any]) -> str:
    return ImmutableSandboxedEnvironment().from_string(template).render(value_json=payload)


def test_all_entities_belong_to_one_device_and_have_unique_ids() -> None:
    entities = configs()
    assert set(entities) == {"label", "probability", "picture", "problem", "model", "engine"}
    assert len({entity["unique_id"] for entity in entities.values()}) == len(entities)
    assert len({json.dumps(entity["device"]) for entity in entities.values()}) == 1
    diagnostic = {name for name, entity in entities.items() if entity.get("entity_category") == "diagnostic"}
    assert diagnostic == {"problem", "model", "engine"}


def test_two_topics_are_two_devices() -> None:
    ids = [configs(topic)["label"]["unique_id"] for topic in ("a/b", "a_b", "a.b", "ä/b", "ö/b")]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("known", "shown"), [(True, "roses"), (None, "roses"), (False, "none of these")])
def test_the_templates_read_a_published_answer(
    known: bool | None, shown: str, make_answer: MakeAnswer
) -> None:
    entities = configs()
    state = json.loads(json.dumps(make_answer("roses", known=known).fields()))
    assert render(entities["label"]["value_template"], state) == shown
    assert render(entities["probability"]["value_template"], state) == "90.0"


def test_the_templates_read_diagnostics() -> None:
    entities = configs()
    facts = {"model": "flowers", "engine": "litert 2.3.0", "problem": ""}
    assert render(entities["model"]["value_template"], facts) == "flowers"
    assert render(entities["engine"]["value_template"], facts) == "litert 2.3.0"
    assert render(entities["problem"]["value_template"], facts) == "OFF"
    assert render(entities["problem"]["value_template"], {**facts, "problem": "lost"}) == "ON"


@pytest.mark.parametrize(("problem", "answer"), [("", "online"), ("the camera is lost", "offline")])
def test_an_answer_is_available_while_there_is_no_problem(problem: str, answer: str) -> None:
    facts = {"model": "flowers", "engine": "litert 2.3.0", "problem": problem}
    for name, entity in configs().items():
        is_running, *others = entity["availability"]
        assert is_running == {"topic": "home/garden/availability"} and entity["availability_mode"] == "all"
        assert "availability_topic" not in entity  # Home Assistant accepts only one of both
        states = [render(other["value_template"], facts) for other in others]
        assert {other["topic"] for other in others} <= {"home/garden/diagnostics"}
        assert states == ([answer] if name in ("label", "probability", "picture") else [])
