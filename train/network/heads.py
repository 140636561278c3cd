"""The classifier head on top of block5_pool: one function in HEADS for each recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras

from train.network.descriptor import channel_means, descriptor_layers
from train.network.novelty import NoveltyModel, novelty_layers
from train.network.vgg import POOLS, Weights, base_layers, load_weights, picture_input
from train.settings import Settings

SMALLEST_LENGTH = 1e-3  # of the channel means of block 5, for a picture that activates nothing

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
    """The complete model as one flat graph, from `image` uint8 [N, *weights.input_size, 3] to the float32
    outputs `probabilities` [N, classes], `known` [N, 1] if a detector is given, and `features` [N, D].

    Both other outputs are computed from `features`. Of a pooled head they are the descriptor of all pooling
    layers, of another head the input of its last Dense layer. `head` holds the layers of a trained head. The
    model gets copies, because a layer belongs to one model.
    """
    image = picture_input(weights.input_size)
    base = keras.Model(image, base_layers(image, widths=weights.widths))
    copies = [keras.layers.deserialize(keras.layers.serialize(layer)) for layer in head]
    if [copy.name for copy in copies[:2]] == ["pool", "unit"]:
        means = [channel_means(base.get_layer(pool).output, f"{pool}_means") for pool in POOLS]
        features = descriptor_layers(means)
        x, following = _unit_means(features, weights), copies[2:]  # instead of the layers `pool` and `unit`
    else:
        last = max(i for i, copy in enumerate(copies) if isinstance(copy, keras.layers.Dense))
        x = _chain(copies[:last], base.output)
        x = features = keras.layers.Identity(name="features")(x)
        following = copies[last:]
    outputs = [_chain(following, x), *([novelty_layers(features, known)] if known else []), features]
    model = keras.Model(image, outputs, name="vgg16")
    load_weights(model, weights)
    for layer, copy in zip(head, copies, strict=True):
        copy.set_weights(layer.get_weights())
    return model


def _chain(layers: Sequence[keras.layers.Layer], x: keras.KerasTensor) -> keras.KerasTensor:
    for layer in layers:
        x = layer(x)
    return x


def _unit_means(features: keras.KerasTensor, weights: Weights) -> keras.KerasTensor:
    """The channel means of block 5 scaled to length 1, [N, W], from descriptors [N, D].

    The squared descriptor is the mean of a channel as a multiple of the mean of all: unlike the means, which
    can be hundreds, it can be squared and summed in float16.
    """
    width = weights.output_shape(POOLS[-1])[2]
    root = features[:, -width:]
    means = root * (root / width**0.5)  # their squares sum up to W at most
    length = keras.ops.sqrt(keras.ops.sum(means * means, axis=1, keepdims=True))
    return means / keras.ops.maximum(length, SMALLEST_LENGTH)
