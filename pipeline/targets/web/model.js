// The model of this folder: its files are checked, it is opened, it answers rows, it tests itself.
//
//     const model = await openModel();
//     const outputs = await model.answer(rows, 2); // numbers or texts, and how many rows

import * as ort from "./ort.wasm.bundle.min.mjs";
import { ARRAYS, fromHalf, readNpz } from "./npz.js";

const WASM = "ort-wasm-simd-threaded.wasm";
const CHECKED = ["model.onnx", "golden.npz", "labels.txt"];
const MOST_THREADS = 4;
const SMALL = 1 << 16; // bytes of a model that threads make slower: they wait for one another
const KEPT_TIMES = 100;

export async function openModel() {
  const text = await read("manifest.json");
  const manifest = JSON.parse(new TextDecoder().decode(text));
  const files = await Promise.all(CHECKED.map(read));
  const checked = Boolean(globalThis.crypto?.subtle); // only in a secure context
  if (checked) await check(manifest, text, files);
  const [onnx, golden] = files;
  ort.env.wasm.wasmPaths = { wasm: new URL(WASM, import.meta.url).href };
  // Threads share memory, which a page may only when it is isolated from others.
  const several = globalThis.crossOriginIsolated && onnx.length > SMALL;
  ort.env.wasm.numThreads = several ? Math.min(navigator.hardwareConcurrency, MOST_THREADS) : 1;
  const session = await ort.InferenceSession.create(onnx, { executionProviders: ["wasm"] });
  return new Model(manifest, session, await readNpz(golden), checked);
}

async function read(name) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name} cannot be read: ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

async function check(manifest, text, files) {
  const { digest } = manifest;
  const content = new TextDecoder().decode(text).replace(`,\n  "digest": "${digest}"\n`, "\n");
  if ((await sha256(new TextEncoder().encode(content))) !== digest) {
    throw new Error("manifest.json was altered: its digest is another");
  }
  for (const [at, name] of CHECKED.entries()) {
    if ((await sha256(files[at])) !== manifest.files[name].sha256) {
      throw new Error(`${name} was altered: its sha256 is not the one in manifest.json`);
    }
  }
}

async function sha256(bytes) {
  const sum = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(sum, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

class Model {
  #session;
  #times = []; // milliseconds of the last single rows
  #last = Promise.resolve(); // answers come one after the other

  constructor(manifest, session, golden, checked) {
    this.manifest = manifest;
    this.input = manifest.inputs[0];
    this.golden = golden;
    this.rowShape = golden.get("input").shape.slice(1); // the model may leave an axis free
    this.checked = checked;
    this.threads = ort.env.wasm.numThreads;
    this.#session = session;
  }

  /** The numbers, or texts, in one row. */
  get rowSize() {
    return this.rowShape.reduce((a, b) => a * b, 1);
  }

  /** How long a row takes: the median of the last ones in milliseconds, and how many they are. */
  get latency() {
    const sorted = this.#times.toSorted((a, b) => a - b);
    return { median: sorted[sorted.length >> 1], count: sorted.length };
  }

  /** Forget the first answers, which allocate memory. */
  forgetLatency() {
    this.#times = [];
  }

  /** A row of the golden ones. */
  goldenRow(row) {
    return this.golden.get("input").data.slice(row * this.rowSize, (row + 1) * this.rowSize);
  }

  /** Every output of some rows, by name: {dims, data}; floats and whole numbers are numbers. */
  answer(rows, count = 1) {
    const answer = this.#last.then(() => this.#timed(rows, count));
    this.#last = answer.catch(() => {});
    return answer;
  }

  async #timed(rows, count) {
    const start = performance.now();
    const outputs = await this.#batches(rows, count);
    if (count === 1) this.#times = [...this.#times.slice(1 - KEPT_TIMES), performance.now() - start];
    return outputs;
  }

  async #batches(rows, count) {
    const size = this.input.shape[0]; // a number where the model takes one batch size alone
    if (!Number.isInteger(size)) return this.#run(rows, count);
    const parts = [];
    for (let start = 0; start < count; start += size) {
      const taken = Math.min(size, count - start);
      const part = rows.slice(start * this.rowSize, (start + taken) * this.rowSize);
      parts.push(cut(await this.#run(filled(part, size * this.rowSize), size), taken));
    }
    return joined(parts);
  }

  async #run(rows, count) {
    const { name, dtype } = this.input;
    const feeds = { [name]: tensor(dtype, rows, [count, ...this.rowShape]) };
    for (const one of this.manifest.shared) feeds[one.info.name] = sharedTensor(one, count);
    const found = await this.#session.run(feeds, this.manifest.outputs.map((one) => one.name));
    const outputs = {};
    for (const [output, { dims, data, type }] of Object.entries(found)) {
      outputs[output] = { dims, data: plain(data, type) };
    }
    return outputs;
  }

  /** The index of each row's label, or null for a model that has no classes. */
  labels(outputs) {
    const { label, scores, values } = this.manifest.classes;
    if (label && values.length) {
      return Array.from(outputs[label.name].data, (value) => values.indexOf(String(value)));
    }
    if (!scores) return null;
    const { dims: [rows, classes], data } = outputs[scores.name];
    return Array.from({ length: rows }, (_, row) => largest(data, row * classes, classes));
  }

  /** Run the golden rows: how far their outputs are off, and how many labels are others. */
  async selftest() {
    const rows = this.manifest.golden.rows, limit = this.manifest.golden.max_abs_diff;
    const found = await this.answer(this.golden.get("input").data, rows);
    const expected = {};
    let worst = 0;
    for (const { name } of this.manifest.outputs) {
      const { data, dtype, shape } = this.golden.get(name);
      expected[name] = { dims: shape, data: plain(data, dtype) };
      worst = Math.max(worst, difference(expected[name], found[name])); // NaN stays
    }
    const before = this.labels(expected), now = this.labels(found);
    const flips = before ? before.filter((label, row) => label !== now[row]).length : 0;
    return { passed: worst <= limit && flips === 0, rows, worst, limit, flips };
  }
}

function tensor(dtype, data, dims) {
  if (dtype === "object") return new ort.Tensor("string", Array.from(data), dims);
  const whole = dtype.endsWith("int64") ? BigInt : undefined;
  return new ort.Tensor(dtype, ARRAYS[dtype].from(data, whole), dims);
}

/** An input that is the same for all rows; its value is a number, a text or a list, as JSON. */
function sharedTensor({ info, value, rows_axis: rowsAxis }, rows) {
  let parsed = value;
  try {
    parsed = JSON.parse(value);
  } catch {
    // a text
  }
  const values = [parsed].flat(Infinity);
  const dims = info.shape.map((axis, at) => {
    if (at === rowsAxis) return rows;
    return Number.isInteger(axis) ? axis : lengthOf(parsed, at);
  });
  const length = dims.reduce((a, b) => a * b, 1);
  const data = Array.from({ length }, (_, at) => values[at % values.length]);
  return tensor(info.dtype, data, dims);
}

function lengthOf(list, axis) {
  for (let at = 0; at < axis; at++) list = list[0];
  return list.length;
}

/** Values as JavaScript's own numbers and texts; `type` is numpy's name or the runtime's. */
function plain(data, type) {
  if (type === "float16" && data instanceof Uint16Array) return Float64Array.from(data, fromHalf);
  return type.endsWith("int64") ? Float64Array.from(data, Number) : data;
}

function largest(data, start, count) {
  let best = start;
  for (let at = start + 1; at < start + count; at++) if (data[at] > data[best]) best = at;
  return best - start;
}

function difference(expected, found) {
  if (String(expected.dims) !== String(found.dims)) return Infinity;
  let worst = 0;
  for (let at = 0; at < expected.data.length; at++) {
    const [a, b] = [expected.data[at], found.data[at]];
    worst = Math.max(worst, typeof a === "string" ? (a === b ? 0 : Infinity) : Math.abs(a - b));
  }
  return worst;
}

/** Rows, and the first of them again until there are `length` numbers. */
function filled(rows, length) {
  const row = Array.from(rows);
  return Array.from({ length }, (_, at) => row[at % row.length]);
}

function cut(outputs, rows) {
  return Object.fromEntries(Object.entries(outputs).map(([name, { dims, data }]) => {
    const size = data.length / dims[0];
    return [name, { dims: [rows, ...dims.slice(1)], data: data.slice(0, rows * size) }];
  }));
}

function joined(parts) {
  return Object.fromEntries(Object.entries(parts[0]).map(([name, { dims }]) => {
    const data = parts.flatMap((part) => Array.from(part[name].data));
    const rows = parts.reduce((sum, part) => sum + part[name].dims[0], 0);
    return [name, { dims: [rows, ...dims.slice(1)], data }];
  }));
}
