"""A BERT sentence encoder as an ONNX graph, built from its safetensors without torch.

The graph takes `ids` and `mask` (int64, batch x tokens, padded on the right) and gives
`embedding`: the mean of the tokens' last states, of length 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from pipeline.progress import track
from pipeline_plugins.infer.derived import digest_of, read_sealed, write_sealed
from pipeline_plugins.infer.models import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

VERSION = 1
"""To be raised whenever `build` changes: it is part of the cached graph's key."""

OPSET = 20
IR_VERSION = 10
MICROSOFT = "com.microsoft"

log = structlog.get_logger(__name__)


@dataclass(slots=True, frozen=True)
class Shape:
    """The numbers that make up an encoder."""

    hidden: int
    layers: int
    heads: int
    positions: int
    vocabulary: int
    epsilon: float


def read_shape(folder: Path) -> Shape:
    """Read `config.json`. Raises `ModelError` for a model of another make."""
    config = _json(folder / "config.json")
    kind, activation = config.get("model_type"), config.get("hidden_act")
    if kind != "bert" or activation != "gelu" or config.get("position_embedding_type") != "absolute":
        raise ModelError(f"`{folder}` is no BERT encoder with gelu, but {kind} with {activation}.")
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.exists() and not _json(pooling).get("pooling_mode_mean_tokens"):
        raise ModelError(f"`{folder}` does not use mean pooling, the only kind that is supported.")
    try:
        return Shape(
            hidden=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            positions=int(config["max_position_embeddings"]),
            vocabulary=int(config["vocab_size"]),
            epsilon=float(config["layer_norm_eps"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"`{folder / 'config.json'}` is not complete: {error!r}.") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"`{path}` can't be read: {error}.") from None
    if not isinstance(value, dict):
        raise ModelError(f"`{path}` is not a JSON object.")
    return value


def cached_graph(weights: Path, shape: Shape, cache: Path) -> bytes:
    """The serialised graph of these weights, from the cache if it is there and whole.

    Several processes may do this at once: each writes a file of its own and renames it.
    Where the cache can't be written, the graph is built anew each time.
    """
    path = cache / f"{weights.stem}-{digest_of(weights, VERSION, shape)}.onnx"
    found = read_sealed(path)
    if found is not None:
        return found
    with track("building the embedding graph"):
        graph = build(_load(weights), shape)
    try:
        write_sealed(path, graph)
    except OSError as error:
        log.warning("the embedding graph can't be kept for the next start", path=str(path), error=str(error))
    return graph


def _load(path: Path) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        loaded = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"`{path}` can't be read: {error}.", "Get the file again.") from None
    return {
        name.removeprefix("bert."): tensor.astype("float32", copy=False) for name, tensor in loaded.items()
    }


def build(weights: dict[str, Array], shape: Shape) -> bytes:
    """Build and serialise the graph. Raises `ModelError` when weights are missing."""
    try:
        return _Builder(weights, shape).model()
    except KeyError as error:
        raise ModelError(f"the weights have no tensor {error}.") from None


class _Builder:
    """Collects nodes and constants. Methods take and return the names of tensors."""

    def __init__(self, weights: dict[str, Array], shape: Shape) -> None:
        import numpy
        import onnx

        self.np = numpy
        self.onnx = onnx
        self.weights = weights
        self.shape = shape
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def model(self) -> bytes:
        """The whole graph, serialised."""
        state = self.embeddings()
        lengths = self.lengths()
        for index in range(self.shape.layers):
            state = self.layer(f"encoder.layer.{index}", state, lengths)
        self.pooled(state)
        helper, types = self.onnx.helper, self.onnx.TensorProto
        graph = helper.make_graph(
            self.nodes,
            "sentence-encoder",
            [
                helper.make_tensor_value_info(name, types.INT64, ["batch", "tokens"])
                for name in ("ids", "mask")
            ],
            [helper.make_tensor_value_info("embedding", types.FLOAT, ["batch", self.shape.hidden])],
            self.constants,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        return bytes(model.SerializeToString())

    def constant(self, name: str, value: Any) -> str:
        array = self.np.ascontiguousarray(value)
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [output], **attributes))
        return output

    def embeddings(self) -> str:
        """Sum of word, position and (always the first) segment embeddings, normalised."""
        weights, prefix = self.weights, "embeddings."
        words = self.constant("words", weights[prefix + "word_embeddings.weight"])
        first_segment = weights[prefix + "token_type_embeddings.weight"][0]
        places = self.constant("places", weights[prefix + "position_embeddings.weight"] + first_segment)
        self.constant("axis0", self.np.array([0]))
        self.constant("axis1", self.np.array([1]))
        self.node("Gather", [words, "ids"], "word")
        self.node("Shape", ["ids"], "shape")
        self.node("Gather", ["shape", "axis1"], "tokens")
        self.node("Slice", [places, "axis0", "tokens", "axis0"], "place")
        self.node("Add", ["word", "place"], "embedded")
        return self.norm("embeddings.LayerNorm", "embedded")

    def lengths(self) -> str:
        """Tokens per row, as the attention operator wants to know the padding."""
        mask = self.node("Cast", ["mask"], "mask32", to=self.onnx.TensorProto.INT32)
        return self.node("ReduceSum", [mask, "axis1"], "lengths", keepdims=0)

    def layer(self, prefix: str, state: str, lengths: str) -> str:
        attended = self.attention(f"{prefix}.attention.self", state, lengths)
        projected = self.linear(f"{prefix}.attention.output.dense", attended)
        summed = self.node("Add", [projected, state], f"{prefix}.attention.sum")
        state = self.norm(f"{prefix}.attention.output.LayerNorm", summed)
        wide = self.linear(f"{prefix}.intermediate.dense", state)
        active = self.node("Gelu", [wide], f"{prefix}.active")
        narrow = self.linear(f"{prefix}.output.dense", active)
        summed = self.node("Add", [narrow, state], f"{prefix}.sum")
        return self.norm(f"{prefix}.output.LayerNorm", summed)

    def attention(self, prefix: str, state: str, lengths: str) -> str:
        """Fused attention: onnxruntime does not find it by itself in the plain operators."""
        parts = [f"{prefix}.{part}" for part in ("query", "key", "value")]
        matrix = self.np.concatenate([self.weights[f"{part}.weight"].T for part in parts], axis=1)
        bias = self.np.concatenate([self.weights[f"{part}.bias"] for part in parts])
        inputs = [
            state,
            self.constant(f"{prefix}.matrix", matrix),
            self.constant(f"{prefix}.bias", bias),
            lengths,
        ]
        return self.node("Attention", inputs, f"{prefix}.out", domain=MICROSOFT, num_heads=self.shape.heads)

    def linear(self, name: str, value: str) -> str:
        matrix = self.constant(f"{name}.matrix", self.weights[f"{name}.weight"].T)
        product = self.node("MatMul", [value, matrix], f"{name}.product")
        return self.node(
            "Add", [product, self.constant(f"{name}.bias", self.weights[f"{name}.bias"])], f"{name}.out"
        )

    def norm(self, name: str, value: str) -> str:
        inputs = [
            value,
            *(self.constant(f"{name}.{p}", self.weights[f"{name}.{p}"]) for p in ("weight", "bias")),
        ]
        return self.node("LayerNormalization", inputs, f"{name}.out", axis=-1, epsilon=self.shape.epsilon)

    def pooled(self, state: str) -> str:
        """The unit vector along the tokens' sum, which is the one along their mean."""
        self.constant("last", self.np.array([-1]))
        mask = self.node("Cast", ["mask"], "mask_float", to=self.onnx.TensorProto.FLOAT)
        self.node("Unsqueeze", [mask, "last"], "mask_wide")
        self.node("Mul", [state, "mask_wide"], "kept")
        total = self.node("ReduceSum", ["kept", "axis1"], "total", keepdims=0)
        length = self.node("ReduceL2", [total, "last"], "length", keepdims=1)
        return self.node("Div", [total, length], "embedding")
