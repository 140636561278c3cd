"""The classifier head on top of block5_pool: one function in HEADS for each recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras

from train.network.descriptor import channel_means, descriptor_layers
from train.network.novelty import NoveltyModel, novelty_layers
from train.network.vgg import POOLS, Weights, base_layers, load_weights, picture_input
from train.settings import Settings

Head = Callable[[int, Settings], list[keras.layers.Layer]]


def pooled(classes: int, settings: Settings) -> list[keras.layers.Layer]:
    """Mean over positions, scaled to length 1, then one Dense layer: [N, 7, 7, 512] → [N, classes].

    With length 1 the contrast of a photo does not change its probability, and int8 rounding changes the
    answer less (benchmarks/heads.md).
    """
    dropout = keras.layers.Dropout(settings.dropout, seed=settings.seed, name="dropout")
    return [
        keras.layers.GlobalAveragePooling2D(name="pool"),
        keras.layers.UnitNormalization(name="unit"),
        *([dropout] if settings.dropout else []),
        keras.layers.Dense(classes, name="logits"),
        keras.layers.Softmax(name="probabilities"),
    ]


def article(classes: int, settings: Settings) -> list[keras.layers.Layer]:
    """The article's head: [N, 7, 7, 512] → [N, 25088] → 256 → [N, classes]."""
    return [
        keras.layers.Flatten(name="flatten"),
        keras.layers.Dense(256, activation="relu", name="hidden"),
        keras.layers.Dropout(settings.dropout, seed=settings.seed, name="dropout"),
        keras.layers.Dense(classes, name="logits"),
        keras.layers.Softmax(name="probabilities"),
    ]


HEADS: dict[str, Head] = {"pooled": pooled, "article": article}


def build_classifier(
    weights: Weights,
    head: Sequence[keras.layers.Layer],
    known: NoveltyModel | None = None,
) -> keras.Model:
    """The complete model as one flat graph: `image` uint8 [N, *weights.input_size, 3] → `probabilities`
    float32 [N, classes], and with `known` also `known` float32 [N, 1].

    `head` holds the layers of a trained head. The model gets copies, because a layer belongs to one model.
    """
    image = picture_input(weights.input_size)
    base = keras.Model(image, base_layers(image, widths=weights.widths))
    copies = [keras.layers.deserialize(keras.layers.serialize(layer)) for layer in head]
    x = base.output
    for copy in copies:
        x = copy(x)
    outputs = [x]
    if known:
        means = [channel_means(base.get_layer(pool).output) for pool in POOLS]
        outputs.append(novelty_layers(descriptor_layers(means), known))
    model = keras.Model(image, outputs if known else x, name="vgg16")
    load_weights(model, weights)
    for layer, copy in zip(head, copies, strict=True):
        copy.set_weights(layer.get_weights())
    return model
