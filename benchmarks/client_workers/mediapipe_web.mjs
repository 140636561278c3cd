// The ImageClassifier of MediaPipe Tasks for the web.

import { FilesetResolver, ImageClassifier } from "/node_modules/@mediapipe/tasks-vision/vision_bundle.mjs";
import { withOpacity } from "./npy.mjs";

export async function classify(bytes, pictures, classes) {
  const files = await FilesetResolver.forVisionTasks("/node_modules/@mediapipe/tasks-vision/wasm");
  const baseOptions = { modelAssetBuffer: bytes, delegate: "CPU" };
  const classifier = await ImageClassifier.createFromOptions(files, { baseOptions });
  return pictures.map((picture) => {
    const row = new Array(classes).fill(0);
    const { categories } = classifier.classify(withOpacity(picture)).classifications[0];
    for (const category of categories) row[category.index] = category.score;
    return row;
  });
}
