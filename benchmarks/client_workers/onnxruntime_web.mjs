// ONNX Runtime Web, in WebAssembly with one thread.

import * as ort from "/node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";

export async function classify(model, pictures) {
  ort.env.wasm.wasmPaths = "/node_modules/onnxruntime-web/dist/";
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(model);
  const rows = [];
  for (const { pixels, height, width } of pictures) {
    const { probabilities } = await session.run({ image: new ort.Tensor("uint8", pixels, [1, height, width, 3]) });
    rows.push([...probabilities.data]);
  }
  return rows;
}
