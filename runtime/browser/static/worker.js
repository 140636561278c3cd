// Turns pictures into the model's input, as runtime/preprocess does, and runs the model. All of it in one worker, so
// that the page stays responsive.

const STRIP_ROWS = 256; // a strip of a large photo takes a few MB; the whole photo would take hundreds
const WEIGHT_BITS = 22; // of the resize's integer weights: 8 bits of a color and these fit 31 bits

let ort = null;
let session = null;
let size = null; // [height, width] of the model's input

const ACTIONS = { start, classify, infer, readPixels };

let previous = Promise.resolve(); // one picture at a time
self.onmessage = ({ data }) => { previous = previous.then(() => answer(data)); };

async function answer({ id, action, ...values }) {
  try {
    self.postMessage({ id, result: await ACTIONS[action](values) });
  } catch (error) {
    self.postMessage({ id, error: String(error?.message ?? error) });
  }
}

// --- the model ---

async function start({ script, wasm, model, inputSize }) {
  ort = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
  ort.env.wasm.wasmBinary = wasm; // given, nothing is fetched
  ort.env.wasm.numThreads = 1; // more threads need headers that a static server does not send
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  size = inputSize;
}

// Pixels, uint8 [H, W, 3], RGB → { probabilities: [C], known: a number or null, ms }.
async function infer({ pixels }) {
  const started = performance.now();
  const outputs = await session.run({ image: new ort.Tensor("uint8", pixels, [1, ...size, 3]) });
  const ms = performance.now() - started;
  return { probabilities: [...outputs.probabilities.data], known: outputs.known ? outputs.known.data[0] : null, ms };
}

// A Blob or an ImageBitmap → the outputs of `infer`, with the time of decoding and resizing.
async function classify({ picture }) {
  const started = performance.now();
  const pixels = await readPixels({ picture });
  const decodeMs = performance.now() - started;
  return { ...(await infer({ pixels })), decodeMs };
}

// --- pixels ---

// A Blob or an ImageBitmap → uint8 [H, W, 3], RGB: upright, in sRGB, transparency over white, stretched to the input.
async function readPixels({ picture }) {
  const bitmap = picture instanceof ImageBitmap ? picture : await decode(picture);
  try {
    const [height, width] = size;
    return resizeRows(resizeColumns(bitmap, width), width, bitmap.height, height);
  } finally {
    bitmap.close();
  }
}

async function decode(blob) {
  try {
    return await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "default" });
  } catch {
    throw new Error("this browser cannot read it: save it as JPEG or PNG");
  }
}

// Pillow's bilinear resize with antialiasing (libImaging/Resample.c): a triangle as wide as the reduction, integer
// weights, and 8 bits between the two passes. Where Pillow takes the rows first, as for a tall picture, values differ
// by 1 of 255; else by nothing.
function resizeWeights(from, to) {
  const scale = from / to, reach = Math.max(scale, 1);
  return Array.from({ length: to }, (_, at) => {
    const center = (at + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach + 0.5));
    const last = Math.min(from, Math.trunc(center + reach + 0.5));
    const shares = Array.from({ length: last - first }, (_, step) =>
      Math.max(0, 1 - Math.abs((first + step - center + 0.5) / reach)));
    const sum = shares.reduce((total, share) => total + share, 0);
    return { first, weights: Int32Array.from(shares, (share) => Math.trunc(0.5 + (share / sum) * 2 ** WEIGHT_BITS)) };
  });
}

const HALF = 2 ** (WEIGHT_BITS - 1); // rounds the weighted sums

// A bitmap → uint8 [its height, width, 3].
function resizeColumns(bitmap, width) {
  const columns = resizeWeights(bitmap.width, width);
  const resized = new Uint8ClampedArray(3 * width * bitmap.height);
  const canvas = new OffscreenCanvas(bitmap.width, Math.min(STRIP_ROWS, bitmap.height));
  const pen = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  pen.fillStyle = "white";
  let to = 0;
  for (let top = 0; top < bitmap.height; top += STRIP_ROWS) {
    const rows = Math.min(STRIP_ROWS, bitmap.height - top);
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(bitmap, 0, top, bitmap.width, rows, 0, 0, bitmap.width, rows);
    const { data } = pen.getImageData(0, 0, bitmap.width, rows); // RGBA
    for (let row = 0; row < rows; row++) {
      for (const { first, weights } of columns) {
        let red = HALF, green = HALF, blue = HALF, from = 4 * (row * bitmap.width + first);
        for (let step = 0; step < weights.length; step++, from += 4) {
          red += weights[step] * data[from];
          green += weights[step] * data[from + 1];
          blue += weights[step] * data[from + 2];
        }
        resized[to++] = red >> WEIGHT_BITS;
        resized[to++] = green >> WEIGHT_BITS;
        resized[to++] = blue >> WEIGHT_BITS;
      }
    }
  }
  return resized;
}

// uint8 [from, width, 3] → uint8 [to, width, 3].
function resizeRows(pixels, width, from, to) {
  const stride = 3 * width;
  const resized = new Uint8Array(stride * to);
  resizeWeights(from, to).forEach(({ first, weights }, row) => {
    for (let value = 0; value < stride; value++) {
      let sum = HALF;
      for (let step = 0; step < weights.length; step++) sum += weights[step] * pixels[(first + step) * stride + value];
      resized[row * stride + value] = Math.min(255, sum >> WEIGHT_BITS);
    }
  });
  return resized;
}
