# SPDX-License-Identifier: Apache-2.0
"""What TFRecord files hold: `Example`, lists of numbers or bytes by name, and `SequenceExample`, lists of those.

The messages are those of tensorflow/core/example/example.proto and feature.proto, described here field by field.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from poptransformer.errors import PopTransformerError

Values = Sequence[int] | Sequence[float] | Sequence[bytes] | np.ndarray
_FIELD = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "tensorflow"

# Message -> fields: name, number, type, and whether it repeats. A message's name stands for its type.
_MESSAGES: dict[str, list[tuple[str, int, Any, bool]]] = {
    "BytesList": [("value", 1, _FIELD.TYPE_BYTES, True)],
    "FloatList": [("value", 1, _FIELD.TYPE_FLOAT, True)],
    "Int64List": [("value", 1, _FIELD.TYPE_INT64, True)],
    "Feature": [
        ("bytes_list", 1, "BytesList", False),
        ("float_list", 2, "FloatList", False),
        ("int64_list", 3, "Int64List", False),
    ],
    "FeatureList": [("feature", 1, "Feature", True)],
    # A map is a repeated pair.
    "NamedFeature": [("key", 1, _FIELD.TYPE_STRING, False), ("value", 2, "Feature", False)],
    "NamedFeatureList": [("key", 1, _FIELD.TYPE_STRING, False), ("value", 2, "FeatureList", False)],
    "Features": [("feature", 1, "NamedFeature", True)],
    "FeatureLists": [("feature_list", 1, "NamedFeatureList", True)],
    "Example": [("features", 1, "Features", False)],
    "SequenceExample": [("context", 1, "Features", False), ("feature_lists", 2, "FeatureLists", False)],
}


@functools.cache
def _classes() -> dict[str, Any]:
    """The message classes by name."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        described = file.message_type.add(name=name)
        for field, number, kind, repeats in fields:
            entry = described.field.add(name=field, number=number)
            entry.label = _FIELD.LABEL_REPEATED if repeats else _FIELD.LABEL_OPTIONAL
            if isinstance(kind, str):
                entry.type, entry.type_name = _FIELD.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                entry.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


def _fill(feature: Any, values: Values) -> None:
    """Sets a feature to integers, floats or bytes, as the first value says."""
    array = values if isinstance(values, np.ndarray) else list(values)
    first = array[0] if len(array) else 0
    if isinstance(first, bytes):
        feature.bytes_list.value.extend(array)
    elif isinstance(first, (float, np.floating)):
        feature.float_list.value.extend(map(float, array))
    else:
        feature.int64_list.value.extend(map(int, array))


def encode_example(features: Mapping[str, Values]) -> bytes:
    """Returns an `Example`: integers, floats or bytes by name."""
    example = _classes()["Example"]()
    for name, values in features.items():
        _fill(example.features.feature.add(key=name).value, values)
    return example.SerializeToString(deterministic=True)


def encode_sequence_example(feature_lists: Mapping[str, Iterable[Values]]) -> bytes:
    """Returns a `SequenceExample` without a context: lists of integers, floats or bytes by name."""
    example = _classes()["SequenceExample"]()
    for name, rows in feature_lists.items():
        entry = example.feature_lists.feature_list.add(key=name)
        for values in rows:
            _fill(entry.value.feature.add(), values)
    return example.SerializeToString(deterministic=True)


def _values(feature: Any) -> list[Any]:
    return [*feature.bytes_list.value, *feature.float_list.value, *feature.int64_list.value]


def decode_example(data: bytes) -> dict[str, list[Any]]:
    """Returns the features of an `Example`.

    Raises:
        PopTransformerError: it is none.
    """
    return {entry.key: _values(entry.value) for entry in _parsed("Example", data).features.feature}


def decode_sequence_example(data: bytes) -> dict[str, list[list[Any]]]:
    """Returns the feature lists of a `SequenceExample`.

    Raises:
        PopTransformerError: it is none.
    """
    lists = _parsed("SequenceExample", data).feature_lists.feature_list
    return {entry.key: [_values(feature) for feature in entry.value.feature] for entry in lists}


def _parsed(name: str, data: bytes) -> Any:
    try:
        return _classes()[name].FromString(data)
    except message.DecodeError as error:
        raise PopTransformerError(f"The record is no {name}: {error}.") from error
