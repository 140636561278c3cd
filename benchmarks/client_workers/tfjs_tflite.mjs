// TensorFlow.js with its package for TFLite files, in WebAssembly.

const PACKAGES = "/node_modules/@tensorflow";

export async function classify(bytes, pictures, classes) {
  await load(`${PACKAGES}/tfjs-core/dist/tf-core.min.js`);
  await load(`${PACKAGES}/tfjs-backend-cpu/dist/tf-backend-cpu.min.js`);
  await load(`${PACKAGES}/tfjs-tflite/dist/tf-tflite.min.js`);
  const { tf, tflite } = window;
  tflite.setWasmPath(`${PACKAGES}/tfjs-tflite/wasm/`);
  const model = await tflite.loadTFLiteModel(bytes.buffer, { numThreads: 1 });
  const rows = [];
  for (const { pixels, height, width } of pictures) {
    const input = tf.tensor(pixels, [1, height, width, 3], "int32");
    const outputs = Object.values(model.predict(input)).map((output) => [...output.dataSync()]);
    input.dispose();
    rows.push(outputs.find((output) => output.length === classes));
  }
  return rows;
}

// Loads a script that defines a global variable.
function load(url) {
  return new Promise((resolve, reject) => {
    const script = Object.assign(document.createElement("script"), { src: url, onload: resolve });
    script.onerror = () => reject(new Error(`cannot load ${url}`));
    document.head.append(script);
  });
}
