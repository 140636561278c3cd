// ONNX Runtime in Node: run_onnxruntime_node.mjs MODEL PIXELS.npy CLASSES OUT.json. Started in the folder of node_modules.

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const [model, pixelsPath, , out] = process.argv.slice(2);
const ort = createRequire(`${process.cwd()}/`)("onnxruntime-node");
const file = readFileSync(pixelsPath);
const start = 10 + file.readUInt16LE(8); // of the values, behind the header of a .npy file of version 1
const [count, height, width] = /\((\d+), (\d+), (\d+), 3\)/.exec(file.toString("latin1", 10, start)).slice(1).map(Number);
const session = await ort.InferenceSession.create(model);
const rows = [];
for (let at = 0; at < count; at++) {
  const from = start + at * height * width * 3;
  const pixels = new Uint8Array(file.subarray(from, from + height * width * 3));
  const { probabilities } = await session.run({ image: new ort.Tensor("uint8", pixels, [1, height, width, 3]) });
  rows.push([...probabilities.data]);
}
writeFileSync(out, JSON.stringify(rows));
