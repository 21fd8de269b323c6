"""Networks as files for other programs, each checked against the original: safetensors, `torch.export`, ONNX."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError, unknown_name
from postgrad.files import write_atomic
from postgrad.models.preprocessing import own_preprocessing, set_preprocessing
from postgrad.models.programs import read_program
from postgrad.models.weights import check_finite
from postgrad.validation import validated

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
"""Largest difference of the logits that is rounding, relative to the largest logit (or to 1)."""

_METADATA = "postgrad.json"
_ONNX_TYPES = {"tensor(double)": torch.float64, "tensor(float16)": torch.float16}


def export(model: nn.Module, path: str | os.PathLike[str], *, format: str, example: Tensor) -> float:
    """Write a network as "safetensors", "pt2" or "onnx"; returns the largest difference of its logits.

    >>> export(network, "network.onnx", format="onnx", example=preprocess(images[:2]))
    2.4e-07

    `example` is what the network sees: preprocessed images (N, C, H, W). The file takes any number of images. Before it
    is written it is read back and run on one, two and three images; nothing is written if it differs. Preprocessing and
    class names, where the network has them as attributes, go into the file. "onnx" needs `postgrad[export]`.
    """
    if format not in _WRITERS:
        raise unknown_name("export format", format, _WRITERS)
    network = deepcopy(model).cpu().eval()
    check_finite(network.state_dict(), "the network")
    batch = example.detach().cpu()
    pair = batch[:2] if len(batch) > 1 else batch.repeat(2, 1, 1, 1)  # a size of 1 would be taken as fixed
    content, read_back = _WRITERS[format](network, pair)
    error = _difference(network, read_back, pair)
    write_atomic(Path(path), content)
    return error


def load_exported(path: str | os.PathLike[str]) -> nn.Module:
    """A .pt2 or .onnx file as a network for `NetworkClassifier`, on the CPU.

    >>> network = load_exported("network.onnx")
    >>> network.preprocess, network.class_names         # where the file says them

    Neither is trusted: a .pt2 program is opened only if it holds nothing but tensors and arithmetic.
    """
    file = Path(path).expanduser()
    if file.suffix not in (".pt2", ".onnx"):
        raise UserError(f"{file}: exported networks end in .pt2 or .onnx")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    return _read_pt2(content, str(file)) if file.suffix == ".pt2" else _read_onnx(content, str(file))


class Metadata(BaseModel):
    """What an exported file says of itself besides the computation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preprocess: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    num_parameters: int | None = None


class ProgramNetwork(nn.Module):
    """A `torch.export` program; it is in eval mode for good."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self.program = program.module()

    def forward(self, x: Tensor) -> Tensor:
        return self.program(x)

    def train(self, mode: bool = True) -> Self:
        return self


class OnnxNetwork(nn.Module):
    """An ONNX graph run by onnxruntime on the CPU; torch sees no parameters in it, so their number is given."""

    def __init__(self, session: Any, num_parameters: int) -> None:
        super().__init__()
        self.session = session
        self.num_parameters = num_parameters
        self.input_name = session.get_inputs()[0].name
        self.input_shape = tuple(s if isinstance(s, int) else None for s in session.get_inputs()[0].shape[1:])
        self.input_dtype = _ONNX_TYPES.get(session.get_inputs()[0].type, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        array = x.detach().cpu().to(self.input_dtype).numpy()
        return torch.from_numpy(self.session.run(None, {self.input_name: array})[0])


def _write_safetensors(network: nn.Module, pair: Tensor) -> tuple[bytes, nn.Module]:
    weights = {key: value.contiguous().clone() for key, value in network.state_dict().items()}
    content = safetensors.torch.save(weights, metadata={_METADATA: _metadata(network)})
    again = deepcopy(network)
    again.load_state_dict(safetensors.torch.load(content))
    return content, again


def _write_pt2(network: nn.Module, pair: Tensor) -> tuple[bytes, nn.Module]:
    with _told("torch.export"), torch.no_grad():
        program = torch.export.export(network, (pair,), dynamic_shapes=_any_batch(), strict=False)
        program.example_inputs = None
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={_METADATA: _metadata(network)})
    return buffer.getvalue(), _read_pt2(buffer.getvalue(), "the exported program")


def _write_onnx(network: nn.Module, pair: Tensor) -> tuple[bytes, nn.Module]:
    _onnxruntime()
    with _told("torch.onnx"), torch.no_grad():
        program = torch.onnx.export(
            network, (pair,), dynamo=True, dynamic_shapes=_any_batch(), input_names=["images"], verbose=False
        )
        assert program is not None
        proto = program.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = _METADATA, _metadata(network)
    content = proto.SerializeToString()
    return content, _read_onnx(content, "the exported graph")


_WRITERS: dict[str, Callable[[nn.Module, Tensor], tuple[bytes, nn.Module]]] = {
    "safetensors": _write_safetensors,
    "pt2": _write_pt2,
    "onnx": _write_onnx,
}


def _read_pt2(content: bytes, where: str) -> nn.Module:
    program, extra = read_program(content, where)
    return _described(ProgramNetwork(program), _parsed(extra[_METADATA], where))


def _read_onnx(content: bytes, where: str) -> nn.Module:
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise UserError(f"{where}: damaged, cut off or no ONNX graph ({str(error).splitlines()[0]})") from error
    metadata = _parsed(session.get_modelmeta().custom_metadata_map.get(_METADATA, ""), where)
    return _described(OnnxNetwork(session, metadata.num_parameters or _constants(content)), metadata)


def _constants(content: bytes) -> int:
    """How many floating point numbers an ONNX graph holds."""
    import onnx

    kinds = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    tensors = onnx.load_from_string(content).graph.initializer
    return sum(math.prod(tensor.dims) for tensor in tensors if tensor.data_type in kinds)


def _onnxruntime() -> Any:
    try:
        import onnx  # noqa: F401, torch.onnx needs it
        import onnxruntime
        import onnxscript  # noqa: F401, likewise
    except ImportError as error:
        raise UserError(f"ONNX needs {error.name}; install it with: pip install 'postgrad[export]'") from error
    return onnxruntime


def _metadata(network: nn.Module) -> str:
    return Metadata(
        preprocess=own_preprocessing(network),
        class_names=getattr(network, "class_names", None),
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
    ).model_dump_json()


def _parsed(metadata: str, where: str) -> Metadata:
    """What the file says of itself; nothing where another program made it."""
    try:
        content = json.loads(metadata or "{}")
    except ValueError as error:
        raise UserError(f"{where}: its metadata are not readable as JSON ({error})") from error
    return validated(Metadata, content if isinstance(content, dict) else {}, source=where)


def _described(network: nn.Module, metadata: Metadata) -> nn.Module:
    """The network with its preprocessing and class names as attributes, where they are known."""
    if metadata.preprocess is not None:
        set_preprocessing(network, metadata.preprocess, "the exported file")
    if metadata.class_names is not None:
        object.__setattr__(network, "class_names", metadata.class_names)
    return network


def _difference(network: nn.Module, again: nn.Module, pair: Tensor) -> float:
    """The largest difference of the logits on one, two and three images."""
    largest = 0.0
    with torch.inference_mode():
        for batch in (pair, pair[:1], pair[[0, 1, 0]]):
            expected = network(batch)
            error = float((again(batch) - expected).abs().max())
            allowed = _TOLERANCE.get(expected.dtype, 0.05) * max(1.0, float(expected.abs().max()))
            if not error <= allowed:
                raise UserError(f"the exported network differs from the original by {error:.2g}; nothing was written")
            largest = max(largest, error)
    return largest


def _any_batch() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim.DYNAMIC},)


@contextlib.contextmanager
def _told(exporter: str) -> Iterator[None]:
    """Keep the exporters' own notes off the screen, and say in one line why one of them failed."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # the exporters raise many kinds, some of them private
        raise UserError(
            f"{exporter} cannot express this network: {str(error).strip().splitlines()[0][:300]}"
        ) from error
    finally:
        logging.disable(level)
