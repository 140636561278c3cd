// Reads the pictures of a .npy file of version 1, uint8 [N, H, W, 3]: bytes → [{pixels, height, width}].

export function readPictures(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const start = 10 + view.getUint16(8, true); // of the values, behind the header
  const header = new TextDecoder("latin1").decode(bytes.subarray(10, start));
  const [count, height, width] = /\((\d+), (\d+), (\d+), 3\)/.exec(header).slice(1).map(Number);
  const size = height * width * 3;
  return Array.from({ length: count }, (_, at) => {
    return { pixels: bytes.slice(start + at * size, start + (at + 1) * size), height, width };
  });
}

// Returns the pixels with a fourth value, the opacity, as a canvas stores them.
export function withOpacity({ pixels, height, width }) {
  const rgba = new Uint8ClampedArray(height * width * 4).fill(255);
  for (let at = 0; at < height * width; at++) rgba.set(pixels.subarray(3 * at, 3 * at + 3), 4 * at);
  return new ImageData(rgba, width, height);
}
