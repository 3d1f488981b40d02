// From picture files to the uint8 pixels that a model takes.
//
// As `ferry predict --resize` reads them, pixel for pixel: upright, over white, grey by ITU-R 601,
// resized by Pillow's bilinear filter.

const GREY = [19595, 38470, 7471]; // ITU-R 601-2 luma in parts of 65,536, as Pillow has it
const BITS = 22; // of a weight, as Pillow has it

/** The pixels of an image file: {data, width, height, channels}, and its `bitmap`. */
export async function readPicture(file, channels) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(file, options);
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (channels < 4) {
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
  }
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data;
  return { data: converted(rgba, channels), width, height, channels, bitmap };
}

function converted(rgba, channels) {
  if (channels === 4) return new Uint8Array(rgba);
  const found = new Uint8Array((rgba.length / 4) * channels);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    const [red, green, blue] = [rgba[from], rgba[from + 1], rgba[from + 2]];
    if (channels === 1) {
      found[to++] = (red * GREY[0] + green * GREY[1] + blue * GREY[2] + 0x8000) >> 16;
    } else {
      found[to++] = red;
      found[to++] = green;
      found[to++] = blue;
    }
  }
  return found;
}

/** A picture in another size, by Pillow's Image.resize(..., BILINEAR): columns first, then rows. */
export function resized({ data, width, height, channels }, newWidth, newHeight) {
  if (newWidth !== width) data = resampled(data, height, width, newWidth, channels);
  if (newHeight !== height) data = resampled(data, 1, height, newHeight, newWidth * channels);
  return { data, width: newWidth, height: newHeight, channels };
}

/** The middle axis of `data`, uint8 [outer, size, inner], with `newSize` entries. */
function resampled(data, outer, size, newSize, inner) {
  const found = new Uint8Array(outer * newSize * inner);
  for (let at = 0; at < newSize; at++) {
    const { first, weights } = weightsOf(at, size, newSize);
    for (let line = 0; line < outer; line++) {
      for (let lane = 0; lane < inner; lane++) {
        let sum = 1 << (BITS - 1); // rounds
        let from = (line * size + first) * inner + lane;
        for (const weight of weights) {
          sum += data[from] * weight;
          from += inner;
        }
        found[(line * newSize + at) * inner + lane] = Math.min(255, sum >> BITS);
      }
    }
  }
  return found;
}

/** What a new pixel takes of the old ones: a triangle over as many as it covers. */
function weightsOf(at, size, newSize) {
  const scale = size / newSize, wide = Math.max(scale, 1), centre = (at + 0.5) * scale;
  const first = Math.max(0, Math.trunc(centre - wide + 0.5));
  const end = Math.min(size, Math.trunc(centre + wide + 0.5));
  const raw = Array.from({ length: end - first }, (_, tap) => {
    return Math.max(0, 1 - Math.abs((tap + first - centre + 0.5) / wide));
  });
  const total = raw.reduce((a, b) => a + b, 0);
  return { first, weights: raw.map((weight) => Math.trunc(0.5 + (weight / total) * 2 ** BITS)) };
}

/** Put pixels of 1, 3 or 4 channels on a canvas of their size, `scale` times as bright. */
export function paintPixels(canvas, { data, width, height, channels }, scale) {
  const image = new ImageData(width, height);
  for (let at = 0; at < width * height; at++) {
    for (let channel = 0; channel < 4; channel++) {
      const grey = channels === 1 && channel < 3;
      const there = channel < channels || grey;
      image.data[4 * at + channel] = there ? data[at * channels + (grey ? 0 : channel)] * scale : 255;
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}
