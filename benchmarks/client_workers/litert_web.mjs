// LiteRT.js, in WebAssembly.

import { loadAndCompile, loadLiteRt, Tensor } from "/node_modules/@litertjs/core/dist/index.js";

export async function classify(bytes, pictures, classes) {
  await loadLiteRt("/node_modules/@litertjs/core/wasm/");
  const model = await loadAndCompile(bytes, { accelerator: "wasm" });
  const rows = [];
  for (const { pixels, height, width } of pictures) {
    const input = new Tensor(pixels, [1, height, width, 3]);
    const outputs = await model.run([input]);
    input.delete();
    const values = outputs.map((output) => [...output.toTypedArray()]);
    outputs.forEach((output) => output.delete());
    rows.push(values.find((value) => value.length === classes));
  }
  return rows;
}
