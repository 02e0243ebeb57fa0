"""A BERT encoder as an ONNX graph, built from its safetensors: no torch, no converted file.

The graph's text is a few kilobytes and takes milliseconds to write; the weights stay
beside it as arrays that onnxruntime takes over, so there is nothing to keep on disk. It
uses standard operators only: onnxruntime fuses them as well as its own fused ones do.

Products may be of 8-bit integers instead of floats: weights by column, what they are multiplied with by
its range in each pass. A short text then takes 0.4 times as long. Its vector is off by a cosine of 0.993 on
average, and as much by what shares its pass: what depends on vectors is to be measured with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_plugins.infer.models import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.float32 | np.int8]]

OPSET = 20
IR_VERSION = 10
EXTENSIONS = "com.microsoft"
"""The domain of onnxruntime's own operators."""

INLINE_BYTES = 1024
"""Constants up to this size stand in the graph itself."""


@dataclass(slots=True, frozen=True)
class Shape:
    """The sizes of an encoder, by its `config.json`; `tokens` is the longest input."""

    vocabulary: int
    tokens: int
    hidden: int
    inner: int
    heads: int
    layers: int
    epsilon: float

    @classmethod
    def read(cls, folder: Path) -> Shape:
        """Read a model folder's `config.json`. Raises `ModelError` for another architecture."""
        config = read_json(folder / "config.json")
        if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
            raise ModelError(
                f"`{folder}` holds a `{config.get('model_type')}` model.",
                "Expected a BERT encoder with `gelu`, such as all-MiniLM-L6-v2.",
            )
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise ModelError(f"`{folder}` has position embeddings that are not absolute.")
        names = {
            "vocabulary": "vocab_size",
            "tokens": "max_position_embeddings",
            "hidden": "hidden_size",
            "inner": "intermediate_size",
            "heads": "num_attention_heads",
            "layers": "num_hidden_layers",
        }
        sizes = {field: _size(config, name, folder) for field, name in names.items()}
        return cls(**sizes, epsilon=float(config.get("layer_norm_eps", 1e-12)))


def _size(config: dict[str, Any], name: str, folder: Path) -> int:
    value = config.get(name)
    if not isinstance(value, int) or not 0 < value <= 1_000_000:
        raise ModelError(f"`{folder / 'config.json'}` has no usable `{name}`: {value!r}.")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """A model folder's JSON file, empty where there is none. Raises `ModelError` if damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"`{path}` can't be read: {error}.") from None
    return value if isinstance(value, dict) else {}


def read_weights(path: Path, shape: Shape) -> Arrays:
    """The encoder's tensors as float32. Raises `ModelError` for missing or misshapen ones."""
    import numpy as np
    from safetensors import SafetensorError, safe_open

    weights: Arrays = {}
    try:
        with safe_open(path, framework="np") as file:
            present = set(file.keys())
            prefix = "bert." if any(name.startswith("bert.") for name in present) else ""
            for name, size in _sizes(shape).items():
                if prefix + name not in present:
                    raise ModelError(f"`{path}` has no tensor `{name}`.")
                found = tuple(file.get_slice(prefix + name).get_shape())
                if found != size:
                    raise ModelError(f"`{path}`: tensor `{name}` is {found}, expected {size}.")
                weights[name] = np.asarray(file.get_tensor(prefix + name), dtype=np.float32)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"`{path}` can't be read as safetensors: {error}.") from None
    return weights


def _sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Every tensor that the graph needs, with its size."""
    hidden, inner = shape.hidden, shape.inner
    sizes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (shape.vocabulary, hidden),
        "embeddings.position_embeddings.weight": (shape.tokens, hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(shape.layers):
        at = f"encoder.layer.{layer}"
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
        dense = {
            f"{at}.attention.self.query": (hidden, hidden),
            f"{at}.attention.self.key": (hidden, hidden),
            f"{at}.attention.self.value": (hidden, hidden),
            f"{at}.attention.output.dense": (hidden, hidden),
            f"{at}.intermediate.dense": (inner, hidden),
            f"{at}.output.dense": (hidden, inner),
        }
        for name, size in dense.items():
            sizes |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
    for name in norms:
        sizes |= {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}
    return sizes


def build(weights: Mapping[str, Any], shape: Shape, *, integers: bool = False) -> tuple[bytes, Arrays]:
    """The encoder as a serialised ONNX model, and the arrays to be given to its session.

    Inputs are `ids` and `mask`, int64 of (batch, tokens), the mask 1 for tokens and 0
    for padding; the output `vectors` is float32 of (batch, hidden): the mean of the
    tokens' last states, of length 1. With `integers` products are of 8-bit numbers.
    """
    writer = _Writer(weights, integers)
    mask = writer.op("Cast", "mask", to=writer.FLOAT)
    hidden = _embed(writer, shape)
    outside = writer.op("Sub", writer.floats("one", 1.0), mask)
    outside = writer.op("Mul", outside, writer.floats("minus", -1e9))
    outside = writer.op("Unsqueeze", outside, writer.ints("heads_axes", [1, 2]))
    for layer in range(shape.layers):
        hidden = _layer(writer, f"encoder.layer.{layer}", hidden, outside, shape)
    # The sum over the tokens has the direction of their mean, and only that is kept.
    row = writer.op("Unsqueeze", mask, writer.ints("row_axis", [1]))
    total = writer.op("Squeeze", writer.op("MatMul", row, hidden), "row_axis")
    writer.op("LpNormalization", total, out="vectors", axis=-1, p=2)
    return writer.model(shape.hidden), writer.arrays


def _embed(writer: _Writer, shape: Shape) -> str:
    words = writer.op("Gather", writer.weight("embeddings.word_embeddings.weight"), "ids")
    places = writer.weights["embeddings.position_embeddings.weight"]
    places = places + writer.weights["embeddings.token_type_embeddings.weight"][0]
    length = writer.op("Shape", "ids", start=1, end=2)
    start = writer.ints("start", [0])
    places = writer.op("Slice", writer.array("places", places), start, length, start)
    return writer.norm("embeddings.LayerNorm", writer.op("Add", words, places), shape.epsilon)


def _layer(writer: _Writer, at: str, hidden: str, outside: str, shape: Shape) -> str:
    context = _attention(writer, f"{at}.attention.self", hidden, outside, shape)
    attended = writer.op("Add", writer.dense(f"{at}.attention.output.dense", context), hidden)
    attended = writer.norm(f"{at}.attention.output.LayerNorm", attended, shape.epsilon)
    inner = writer.op("Gelu", writer.dense(f"{at}.intermediate.dense", attended))
    out = writer.op("Add", writer.dense(f"{at}.output.dense", inner), attended)
    return writer.norm(f"{at}.output.LayerNorm", out, shape.epsilon)


def _attention(writer: _Writer, at: str, hidden: str, outside: str, shape: Shape) -> str:
    """All heads at once, from one product for queries, keys and values."""
    import numpy as np

    size = shape.hidden // shape.heads
    parts = [(writer.weights[f"{at}.{n}.weight"], writer.weights[f"{at}.{n}.bias"]) for n in _PARTS]
    weight = np.concatenate([part[0] for part in parts]).T.copy()
    bias = np.concatenate([part[1] for part in parts])
    weight[:, : shape.hidden] *= size**-0.5  # the scale of the scores, put into the queries
    bias[: shape.hidden] *= size**-0.5
    product = writer.product(at, hidden, weight, writer.array(f"{at}.bias", bias))
    split = writer.ops("Split", 3, product, axis=-1, num_outputs=3)
    heads = writer.ints("heads", [0, 0, shape.heads, size])
    query, key, value = (
        writer.op("Transpose", writer.op("Reshape", part, heads), perm=order)
        for part, order in zip(split, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
    )
    scores = writer.op("Add", writer.op("MatMul", query, key), outside)
    mixed = writer.op("MatMul", writer.op("Softmax", scores, axis=-1), value)
    merged = writer.op("Transpose", mixed, perm=[0, 2, 1, 3])
    return writer.op("Reshape", merged, writer.ints("merged", [0, 0, shape.hidden]))


_PARTS = ("query", "key", "value")


class _Writer:
    """Collects nodes and constants. Every value's name is unique; a constant is kept once."""

    def __init__(self, weights: Mapping[str, Any], integers: bool) -> None:
        from onnx import TensorProto, helper, numpy_helper

        self.FLOAT = TensorProto.FLOAT
        self._integers = integers
        self._kind_of = helper.np_dtype_to_tensor_dtype
        self.weights = weights
        self.arrays: Arrays = {}
        self._types = TensorProto
        self._helper = helper
        self._inline = numpy_helper.from_array
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Add a node with one output."""
        return self._node(kind, inputs, [out or f"{kind}_{len(self._nodes)}"], attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node with several outputs."""
        names = [f"{kind}_{len(self._nodes)}_{i}" for i in range(outputs)]
        return self._node(kind, inputs, names, attributes)

    def _node(
        self, kind: str, inputs: tuple[str, ...], outputs: list[str], attributes: dict[str, Any]
    ) -> list[str]:
        self._nodes.append(self._helper.make_node(kind, list(inputs), outputs, **attributes))
        return outputs

    def array(self, name: str, value: Any) -> str:
        """Add a constant; a large one is left to be given to the session."""
        if name in self._constants:
            return name
        if value.nbytes <= INLINE_BYTES:
            self._constants[name] = self._inline(value, name)
            return name
        import numpy as np

        self.arrays[name] = np.ascontiguousarray(value)
        kind, place = self._kind_of(value.dtype), self._types.EXTERNAL
        tensor = self._types(name=name, dims=value.shape, data_type=kind, data_location=place)
        for key, text in (("location", "given"), ("offset", "0"), ("length", str(value.nbytes))):
            tensor.external_data.add(key=key, value=text)
        self._constants[name] = tensor
        return name

    def weight(self, name: str) -> str:
        """Add a tensor of the model as it is."""
        return self.array(name, self.weights[name])

    def ints(self, name: str, values: list[int]) -> str:
        """Add a small constant of int64."""
        import numpy as np

        return self.array(name, np.array(values, dtype=np.int64))

    def floats(self, name: str, value: float) -> str:
        """Add a scalar of float32."""
        import numpy as np

        return self.array(name, np.array(value, dtype=np.float32))

    def dense(self, name: str, value: str) -> str:
        """A linear layer. The weight is transposed here: as stored, products are slower."""
        return self.product(name, value, self.weights[f"{name}.weight"].T, self.weight(f"{name}.bias"))

    def product(self, name: str, value: str, weight: Any, bias: str) -> str:
        """A value times a weight of (inputs, outputs), plus a bias."""
        if not self._integers:
            product = self.op("MatMul", value, self.array(f"{name}.weight", weight))
            return self.op("Add", product, bias)
        import numpy as np

        scale = np.abs(weight).max(axis=0).astype(np.float32) / 127
        scale[scale == 0] = 1
        whole = self.array(f"{name}.integers", np.rint(weight / scale).astype(np.int8))
        scales = self.array(f"{name}.scale", scale)
        return self.op("DynamicQuantizeMatMul", value, whole, scales, "", bias, domain=EXTENSIONS)

    def norm(self, name: str, value: str, epsilon: float) -> str:
        """A layer normalisation."""
        return self.op(
            "LayerNormalization",
            value,
            self.weight(f"{name}.weight"),
            self.weight(f"{name}.bias"),
            axis=-1,
            epsilon=epsilon,
        )

    def model(self, hidden: int) -> bytes:
        """The serialised model."""
        make, types = self._helper, self._types
        size = ["batch", "tokens"]
        graph = make.make_graph(
            self._nodes,
            "encoder",
            [make.make_tensor_value_info(name, types.INT64, size) for name in ("ids", "mask")],
            [make.make_tensor_value_info("vectors", self.FLOAT, ["batch", hidden])],
            list(self._constants.values()),
        )
        opset = [make.make_opsetid("", OPSET), make.make_opsetid(EXTENSIONS, 1)]
        return bytes(make.make_model(graph, opset_imports=opset, ir_version=IR_VERSION).SerializeToString())
