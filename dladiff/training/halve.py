"""Store the weights of an ONNX encoder as float16, cast to float32 at run time: `python -m dladiff.training.halve`.

So `embedded:mobilefacenet` was made of `mobilefacenet_tf`, whose published weights are float16 (docs/encoders.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from dladiff.faces.onnx_session import onnx_session


def halved(model: onnx.ModelProto, properties: dict[str, str]) -> onnx.ModelProto:
    """Return a model whose float32 initialisers are float16 and a cast; `properties` become its metadata."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    casts: list[onnx.NodeProto] = []
    for tensor in out.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        name = tensor.name
        half: npt.NDArray[np.float16] = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], name=f"cast_{name}", to=TensorProto.FLOAT))
    nodes = [*casts, *out.graph.node]
    del out.graph.node[:]
    out.graph.node.extend(nodes)
    helper.set_model_props(out, properties)
    onnx.checker.check_model(out)
    return out


def main() -> None:
    """Write the halved file and print how far its embeddings are from the given file's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--licence", required=True, help="of the weights, kept in the file")
    parser.add_argument("--source", required=True, help="who published them, kept in the file")
    given = parser.parse_args()
    model = onnx.load(given.model, load_external_data=False)
    given.out.write_bytes(halved(model, {"licence": given.licence, "source": given.source}).SerializeToString())
    crops = np.random.default_rng(0).uniform(-1, 1, (8, 3, 112, 112)).astype(np.float32)
    before, after = (onnx_session(file).run(None, {"input": crops})[0] for file in (given.model, given.out))
    cosines = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    print(f"{given.out.stat().st_size} bytes, smallest cosine to the given file {float(np.min(cosines)):.6f}")


if __name__ == "__main__":
    main()
