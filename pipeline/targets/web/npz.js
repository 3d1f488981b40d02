// Reads the .npz files that numpy writes: a zip of .npy arrays, stored or deflated.
//
//     const arrays = await readNpz(bytes); // a Map: name -> {dtype, shape, data}
//
// The dtypes are numpy's names, "object" for texts, as in manifest.json.

const END_OF_ZIP = 0x06054b50, ENTRY = 0x02014b50;
const STORED = 0, DEFLATED = 8;
const KINDS = { i: "int", u: "uint", f: "float", b: "bool", U: "object" };

export const ARRAYS = {
  bool: Uint8Array,
  uint8: Uint8Array,
  int8: Int8Array,
  uint16: Uint16Array,
  int16: Int16Array,
  float16: globalThis.Float16Array ?? Uint16Array, // or their bits; see `fromHalf`
  uint32: Uint32Array,
  int32: Int32Array,
  float32: Float32Array,
  uint64: BigUint64Array,
  int64: BigInt64Array,
  float64: Float64Array,
};

export async function readNpz(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const arrays = new Map();
  let [at, left] = directory(view);
  for (; left > 0; left--) {
    if (view.getUint32(at, true) !== ENTRY) throw new Error("golden.npz is no zip file");
    const length = view.getUint16(at + 28, true);
    const name = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + length));
    arrays.set(name.replace(/\.npy$/, ""), readNpy(await content(bytes, view, at)));
    at += 46 + length + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  }
  return arrays;
}

/** Where the directory of a zip begins, and how many entries it has. */
function directory(view) {
  for (let at = view.byteLength - 22; at >= 0; at--) {
    if (view.getUint32(at, true) === END_OF_ZIP) {
      return [view.getUint32(at + 16, true), view.getUint16(at + 10, true)];
    }
  }
  throw new Error("golden.npz is no zip file");
}

async function content(bytes, view, entry) {
  const method = view.getUint16(entry + 10, true);
  const size = view.getUint32(entry + 20, true);
  const local = view.getUint32(entry + 42, true);
  // The header before the data has lengths of its own.
  const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
  const packed = bytes.slice(start, start + size);
  if (method === STORED) return packed;
  if (method !== DEFLATED) throw new Error(`golden.npz is packed by method ${method}`);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** One array; numpy's header is the text of a Python dict. */
export function readNpy(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const wide = bytes[6] > 1;
  const start = wide ? 12 + view.getUint32(8, true) : 10 + view.getUint16(8, true);
  const header = new TextDecoder().decode(bytes.subarray(wide ? 12 : 10, start));
  const [, order, kind, size] = header.match(/'descr': '([<>|=])([a-zA-Z])(\d+)'/) ?? [];
  const shape = header.match(/'shape': \(([^)]*)\)/)[1].split(",").filter((n) => n.trim()).map(Number);
  const fortran = header.includes("'fortran_order': True") && shape.length > 1;
  if (!(kind in KINDS) || order === ">" || fortran) throw new Error(`no known array: ${header}`);
  const count = shape.reduce((a, b) => a * b, 1);
  if (kind === "U") return { dtype: "object", shape, data: texts(view, start, count, Number(size)) };
  const dtype = kind === "b" ? "bool" : KINDS[kind] + 8 * Number(size);
  const data = bytes.slice(start, start + count * Number(size)); // a copy begins where it may
  return { dtype, shape, data: new ARRAYS[dtype](data.buffer) };
}

/** Texts of `width` characters each, which zeros fill up. */
function texts(view, start, count, width) {
  return Array.from({ length: count }, (_, row) => {
    let text = "";
    for (let at = 0; at < width; at++) {
      text += String.fromCodePoint(view.getUint32(start + 4 * (row * width + at), true));
    }
    return text.replace(/\0+$/, "");
  });
}

/** The number whose half precision has these bits. */
export function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
}
