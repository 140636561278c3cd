"""Home Assistant's discovery: ids, topics, and templates, rendered by Jinja as Home Assistant does."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image

from runtime.publish.home_assistant import discovery_messages
from tests.helpers import start_python, wait_for
from tests.runtime.camera.helpers import RED, jpeg, mjpeg_server, plain
from tests.runtime.publish.broker import Broker, Subscriber
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


@pytest.mark.slow
def test_each_entity_of_a_running_program_gets_what_its_configuration_names(
    broker: Broker, colours: Path
) -> None:
    red = jpeg(plain(RED))
    with mjpeg_server(lambda number: red) as server, broker.subscriber() as found:
        address = f"mqtt://127.0.0.1:{broker.port}/home/garden"
        process = start_python(
            *("-m", "runtime.classify", "--camera", server.address, "--model", colours, "--mqtt", address)
        )
        try:
            found.wait("home/garden/state")
            wait_for(lambda: json.loads(found.latest["home/garden/diagnostics"])["problem"] == "")
            wait_for(lambda: len(entities_of(found)) == 6)
            facts, entities = json.loads(found.latest["home/garden/diagnostics"]), entities_of(found)
            assert {name: shown(entity, found) for name, entity in entities.items()} == {
                "label": "红",
                "probability": shown_percent(found),
                "picture": "JPEG",
                "problem": "OFF",
                "model": facts["model"],
                "engine": facts["engine"],
            }
        finally:
            process.kill()
            process.communicate()


def entities_of(found: Subscriber) -> dict[str, dict[str, Any]]:
    """The configuration of each entity that was published, by its id."""
    return {
        topic.split("/")[-2]: json.loads(payload)
        for topic, payload in list(found.latest.items())
        if topic.startswith("homeassistant/")
    }


def shown(entity: dict[str, Any], found: Subscriber) -> str | None:
    """What Home Assistant shows for an entity, from the messages of the topics that it subscribes to."""
    for source in entity["availability"]:
        payload = found.wait(source["topic"])
        template = source.get("value_template")
        assert (render(template, json.loads(payload)) if template else payload.decode()) == "online"
    if attributes := entity.get("json_attributes_topic"):
        assert len(json.loads(found.wait(attributes))) > 1
    if "topic" in entity:  # a camera
        return Image.open(io.BytesIO(found.wait(entity["topic"]))).format
    return render(entity["value_template"], json.loads(found.wait(entity["state_topic"])))


def shown_percent(found: Subscriber) -> str:
    return str(round(100 * json.loads(found.latest["home/garden/state"])["probability"], 1))
