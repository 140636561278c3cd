// ONNX Runtime in Node: run_onnxruntime_node.mjs MODEL PIXELS.npy CLASSES OUT.json. Started in the folder of node_modules.

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { readPictures } from "./npy.mjs";

const [model, pixelsPath, , out] = process.argv.slice(2);
const ort = createRequire(`${process.cwd()}/`)("onnxruntime-node");
const session = await ort.InferenceSession.create(model);
const rows = [];
for (const { pixels, height, width } of readPictures(readFileSync(pixelsPath))) {
  const { probabilities } = await session.run({ image: new ort.Tensor("uint8", pixels, [1, height, width, 3]) });
  rows.push([...probabilities.data]);
}
writeFileSync(out, JSON.stringify(rows));
