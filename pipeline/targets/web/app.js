// The page: opens the model of this folder, answers what is given, and tests itself.

import { Answers } from "./answers.js";
import { find, inputFor } from "./inputs.js";
import { openModel } from "./model.js";

const MEASURED = 9; // answers, before anything is given

/** Resolves when the page has answered its first example and tested itself. */
export const started = start().catch(refuse);

async function start() {
  find("problem").textContent = "Loading …";
  const model = await openModel();
  const page = new Page(model);
  describe(model);
  find("problem").hidden = true;
  find("main").hidden = find("facts").hidden = false;
  await page.next();
  performance.mark("first answer");
  showSelftest(model, await model.selftest());
  await page.measure();
  return page;
}

function refuse(error) {
  find("main").hidden = true;
  find("problem").hidden = false;
  find("problem").textContent = `Nothing runs here: ${error.message}`;
  throw error;
}

class Page {
  #given = null;
  #wanted = null;
  #busy = null;
  #example = -1;

  constructor(model) {
    this.model = model;
    this.answers = new Answers(model);
    this.input = inputFor(model, (row, note) => this.take(row, note));
    this.examples = surestFirst(model);
    find("example").addEventListener("click", () => this.next());
    find("clear").addEventListener("click", () => this.clear());
    addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.clear();
    });
  }

  /** Answer a row; of those that come meanwhile, the last one alone. */
  take(row, note = "") {
    find("note").textContent = note;
    this.#given = this.#wanted = row;
    if (!row) this.answers.blank(this.input.asks);
    this.#busy ??= this.#work().finally(() => (this.#busy = null));
    return this.#busy;
  }

  async #work() {
    while (this.#wanted) {
      const row = this.#wanted;
      this.#wanted = null;
      try {
        const outputs = await this.model.answer(row);
        if (this.#given) this.answers.show(outputs); // else it was cleared meanwhile
        this.#showLatency();
      } catch (error) {
        this.answers.blank(`The model refuses this: ${error.message}`);
      }
    }
  }

  /** Resolves when everything that was given is answered. */
  get answered() {
    return Promise.resolve(this.#busy);
  }

  #showLatency() {
    const { median, count } = this.model.latency;
    find("latency").textContent = `${median.toFixed(2)} ms, median of ${count}`;
  }

  next() {
    this.#example = (this.#example + 1) % this.examples.length;
    const row = this.model.goldenRow(this.examples[this.#example]);
    this.input.show(row);
    const place = `${this.#example + 1} of ${this.examples.length}`;
    const kind = this.model.manifest.classes.scores ? "the hardest test rows" : "the test rows";
    return this.take(row, `Example ${place}, from ${kind} of this model.`);
  }

  /** Tell the latency without the first answers, which allocate memory. */
  async measure() {
    this.model.forgetLatency();
    for (let at = 0; at < MEASURED; at++) await this.model.answer(this.model.goldenRow(0));
    this.#showLatency();
  }

  clear() {
    this.input.clear();
    this.take(null);
  }
}

/** The golden rows, those first that the model is surest of. */
function surestFirst({ manifest, golden }) {
  const order = Array.from({ length: manifest.golden.rows }, (_, row) => row);
  const { scores } = manifest.classes;
  if (!scores) return order;
  const { data } = golden.get(scores.name);
  const size = data.length / order.length;
  const best = order.map((row) => Math.max(...data.subarray(row * size, (row + 1) * size)));
  return order.sort((a, b) => best[b] - best[a]);
}

function describe({ manifest, threads, checked }) {
  document.title = find("name").textContent = manifest.name;
  find("provider").textContent = "WebAssembly";
  find("threads").textContent = String(threads);
  const sum = manifest.files["model.onnx"].sha256;
  const sure = checked ? "checked" : "not checked: browsers do so over https or on localhost only";
  find("digest").textContent = [
    `${manifest.name} ${manifest.variant}`,
    `digest ${manifest.digest.slice(0, 12)}`,
    `model.onnx sha256 ${sum.slice(0, 12)} (${sure})`,
  ].join(" · ");
  find("digest").title = `digest ${manifest.digest}\nmodel.onnx sha256 ${sum}`;
}

function showSelftest(model, { passed, rows, worst, limit, flips }) {
  find("selftest").hidden = false;
  find("selftest").classList.add(passed ? "passed" : "failed");
  find("verdict").textContent = passed ? "Selftest passed" : "Selftest FAILED";
  const [most, allowed] = [worst, limit].map((value) => value.toExponential(1));
  const labels = model.manifest.classes.scores ? ` Labels that differ: ${flips}.` : "";
  find("found").textContent = `${rows} golden rows: largest difference ${most}, allowed ${allowed}.${labels}`;
}
